"""float -> QAT -> export -> engines, with two ranks from QAT on; mistakes of the user."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dq.detector.config.read import read_config
from dq.detector.data.datasets import dataset_of
from dq.detector.data.datasets import test_classes as classes_of
from dq.detector.evaluation.evaluate import detect
from dq.detector.model.stored_detector import rounding_detector
from dq.engines import ENGINES
from dq.quant.export.onnx_graph import flatten
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.verify.cut_model import rounded_values
from dq.quant.verify.engine import Engine, Network
from dq.quant.verify.onnxruntime_session import OnnxNetwork, load_model
from dq.version import NAME, version
from tests.launcher.conftest import Launch, on_ranks, torchrun
from tests.quant.exported import tensor_of

pytestmark = pytest.mark.slow


def only_error(result: tuple[int, str, str]) -> str:
    """Return the one error line of a launch that failed by a mistake of the user."""
    code, _, err = result
    assert code == 2, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    return line


def frozen(config: Path, checkpoint: Path) -> tuple[nn.Module, QuantizedGraph]:
    """Return the fake-quantizing detector of a checkpoint, and its graph."""
    plan = read_config(config)
    content = torch.load(checkpoint, weights_only=True)
    detector, graph, _ = rounding_detector(plan, content, "it")
    return detector, graph


@pytest.fixture(scope="module")
def experiment(
    config: Path, float_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny float detector after QAT and export, on two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    for words in (
        ("qat", config, "--checkpoint", float_checkpoint, "--no-validate"),
        ("export", config, "--checkpoint", folder / "qat/qat.pth"),
    ):
        done = on_ranks(2, *words, "--work-dir", folder)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder


def test_exported_model_is_evaluated_beside_the_checkpoint_on_two_ranks(
    experiment: Path, tmp_path: Path
) -> None:
    # Only the model is given: it contains the config and the path of the checkpoint.
    done = torchrun(
        2, "eval", "--backend", "onnxruntime", experiment / "export/tiny.onnx",
        "--work-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("fake-quantized ") == 1
    found = json.loads((tmp_path / "eval_onnxruntime/summary.json").read_text())
    recorded = json.loads((experiment / "qat/summary.json").read_text())
    assert found["fake_quantized"] == recorded["value"]
    assert found["num_integer"] == 32
    assert found["num_float"] == 0
    # All layers run in integers, so torch and ONNX Runtime compute equal boxes.
    assert found["integer"] == found["fake_quantized"]
    assert found["boxes"]["num_matched"] == found["boxes"]["num_first"] > 0
    assert found["boxes"]["num_second"] == found["boxes"]["num_first"]
    assert found["boxes"]["corner_max"] < 1e-3
    assert found["boxes"]["score_max"] < 1e-5
    assert found["bytes_float"] > 2 * found["bytes_integer"]
    latency = found["latency"]
    assert (latency["num_integer"], latency["num_layers"], latency["threads"]) == (32, 32, 1)
    assert done.stdout.count("1 thread, 32 of 32 layers in integers (ONNX Runtime ") == 1
    beside = json.loads((experiment / "export/latency.json").read_text())
    assert beside["model"] == "tiny.onnx"
    assert beside["latency"]["times_as_fast"]["median"] > 0
    model = onnx.load(experiment / "export/tiny.onnx")
    assert (model.producer_name, model.producer_version) == (NAME, version())
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["results"] == "read"
    assert json.loads(metadata["classes"])[:2] == ["zero", "one"]
    assert json.loads(metadata["preprocessing"])["size"] == [96, 96]
    assert metadata["checkpoint_sha256"] == recorded["sha256"]
    assert len(json.loads((experiment / "export/tiny.qparams.json").read_text())) > 50


@pytest.mark.parametrize("ranks", [1, 2])
def test_openvino_evaluates_the_same_model_over_ranks(
    ranks: int, experiment: Path, tmp_path: Path
) -> None:
    words = ("eval", "--backend", "openvino", experiment / "export/tiny.onnx")
    done = on_ranks(ranks, *words, "--work-dir", tmp_path, "--threads", 1)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("fake-quantized ") == 1
    found = json.loads((tmp_path / "eval_openvino/summary.json").read_text())
    recorded = json.loads((experiment / "qat/summary.json").read_text())
    assert found["engine"].startswith("OpenVINO 20")
    assert found["fake_quantized"] == recorded["value"]
    assert abs(found["integer"] - found["fake_quantized"]) <= 0.001
    assert (found["num_integer"], found["num_float"]) == (32, 0)
    assert found["boxes"]["num_matched"] > 0.9 * found["boxes"]["num_first"] > 0
    assert found["boxes"]["score_mean"] < 0.001
    assert found["boxes"]["corner_mean"] < 0.5


def test_model_that_suppresses_is_evaluated_by_its_own_detections(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    words = ("--checkpoint", experiment / "qat/qat.pth", "--work-dir", tmp_path)
    code, out, err = launch("export", config, *words, "--decode", "nms")
    assert code == 0, err
    (path,) = (tmp_path / "export").glob("*.nms.onnx")
    assert str(path) in out
    assert re.search(
        r"^speed    int8 .*: [\d.]+ ms against [\d.]+ ms, 1 thread, 32 of 32", out, re.M
    )
    assert path.stat().st_size > (experiment / "export/tiny.onnx").stat().st_size
    recorded = json.loads((experiment / "qat/summary.json").read_text())
    for engine in ENGINES:
        backend = ("--backend", engine, "--work-dir", tmp_path, "--no-bench")
        code, out, err = launch("eval", path, *backend, "--checkpoint", experiment / "qat/qat.pth")
        assert code == 0, err
        assert "speed" not in out
        found = json.loads((tmp_path / f"eval_{engine}/summary.json").read_text())
        assert found["fake_quantized"] == recorded["value"]
        assert abs(found["integer"] - found["fake_quantized"]) <= 0.001
        assert found["num_integer"] == 32
        assert found["boxes"]["num_matched"] > 0.9 * found["boxes"]["num_first"] > 0
        assert found["boxes"]["score_mean"] < 0.01
        # Boxes are in pixels of the test images, not of the model's input.
        assert found["boxes"]["corner_mean"] < 1
    backend = ("--backend", "onnxruntime", "--work-dir", tmp_path)
    model = onnx.load(path)
    assert [output.name for output in model.graph.output] == ["boxes", "scores", "labels"]
    for node in model.graph.node:
        node.output[:] = [name.replace("output.0.0", "renamed") for name in node.output]
        node.input[:] = [name.replace("output.0.0", "renamed") for name in node.input]
    onnx.save(model, tmp_path / "foreign.nms.onnx")
    only = tmp_path / "one.py"
    only.write_text(f"_base_ = [{str(config)!r}]\ndata = dict(test=dict(classes=('zero',)))\n")
    path.write_bytes(path.read_bytes()[:7000])
    checkpoint = ("--checkpoint", experiment / "qat/qat.pth")
    for words, message in (
        (("eval", path, *backend), "is not an ONNX model, or damaged"),
        (("eval", tmp_path / "foreign.nms.onnx", *backend, *checkpoint), "has no value output.0.0"),
        (("eval", tmp_path / "foreign.nms.onnx", only, *backend, *checkpoint), "classes"),
        (("export", config, *checkpoint, "--decode", "nms", "--format", "torch-int"), "for ONNX"),
        (
            ("export", config, *checkpoint, "--decode", "nms", "--work-dir", tmp_path / "none",
             "--cfg-options", "model.test_cfg.nms.type=soft_nms"),
            "cannot suppress boxes as .*soft_nms",
        ),
    ):  # fmt: skip
        assert re.search(message, only_error(launch(*words)))
    assert not list((tmp_path / "none").glob("export/*"))


def test_tidl_has_the_ranges_of_the_calibrated_detector(
    launch: Launch, float_checkpoint: Path, config: Path, tmp_path: Path
) -> None:
    preset = ("--work-dir", tmp_path, "--cfg-options", "quant.preset=tidl")
    code, _, err = launch("calibrate", config, "--checkpoint", float_checkpoint, *preset)
    assert code == 0, err
    checkpoint = tmp_path / "calibrated/calibrated.pth"
    words = ("--checkpoint", checkpoint, "--format", "onnx-tidl", *preset)
    code, _, err = launch("export", config, *words)
    assert code == 0, err
    (path,) = (tmp_path / "export").glob("*.tidl.onnx")
    assert not (tmp_path / "export/latency.json").exists()  # Its layers run in float.
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    clips = {n.name: n for n in model.graph.node if n.op_type == "Clip"}
    graph = frozen(config, checkpoint)[1]
    sites = graph.activations()
    for site, quantizer in sites.items():
        low, high = (float(tensors[name]) for name in clips[f"{site}/clip"].input[1:])
        assert low == -high
        assert math.frexp(high)[0] == 0.5
        assert high == 128 * float(quantizer.scale)
    assert {node.op_type for node in model.graph.node} >= {"Conv", "Clip"}
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    got = OnnxNetwork(load_model(path)).tensors(images)
    with torch.no_grad():
        rounded = flatten(graph(images))[0]
        for quantizer in sites.values():  # TIDL's model contains ranges, but no quantization.
            quantizer.register_forward_hook(
                lambda own, given, _: given[0].clamp(-128 * own.scale, 128 * own.scale)
            )
        clipped = flatten(graph(images))[0]
    for a, b, c in zip(got, clipped, rounded, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
        assert (a - c).square().mean() < 0.01 * c.square().mean()


def own_truth(config: Path, checkpoint: Path, folder: Path) -> Path:
    """Write a config whose annotated boxes are the quantized detector's own detections.

    The detector was trained for seconds only, so with the real boxes its metric is almost 0 and
    could not become worse.
    """
    detector, _ = frozen(config, checkpoint)
    plan = read_config(config)
    classes = classes_of(plan)
    dataset = dataset_of(plan, "test", test_mode=True)
    found = detect(detector, dataset, device=torch.device("cpu"), workers=0)
    assert found is not None
    source = Path(plan.data.test.img_prefix)
    shutil.copytree(source, folder)
    for info, boxes in zip(dataset.data_infos, found, strict=True):
        path = folder / "Annotations" / f"{info['id']}.xml"
        tree = ElementTree.parse(path)
        root = tree.getroot()
        for old in root.findall("object"):
            root.remove(old)
        best = sorted(
            ((box, name) for name, own in zip(classes, boxes, strict=True) for box in own),
            key=lambda found: -found[0][4],
        )
        for box, name in best[:20]:
            new = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(new, "name").text = name
            ElementTree.SubElement(new, "difficult").text = "0"
            place = ElementTree.SubElement(new, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=False):
                ElementTree.SubElement(place, side).text = str(value)
        tree.write(path)
    path = folder / "own_truth.py"
    path.write_text(f"_base_ = [{str(config)!r}]\ndata_root = {str(folder)!r}\n")
    return path


@pytest.mark.parametrize("backend", ENGINES)
def test_gate_is_missed_and_names_the_layer(
    backend: str, launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    checkpoint = experiment / "qat/qat.pth"
    truth = own_truth(config, checkpoint, tmp_path / "data")
    model = onnx.load(experiment / "export/tiny.onnx")
    # The weights of a layer have the wrong sign, as a broken export could write them.
    layer = "bbox_head/cls_convs/0/0"
    tensor = tensor_of(model, layer, "integers")
    wrong = onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name)
    tensor.CopyFrom(wrong)
    onnx.save(model, tmp_path / "wrong.onnx")
    words = ("--backend", backend, "--checkpoint", checkpoint, "--work-dir", tmp_path)
    code, _, err = launch("eval", truth, tmp_path / "wrong.onnx", *words)
    found = json.loads((tmp_path / f"eval_{backend}/summary.json").read_text())
    assert found["fake_quantized"] > 0.3
    assert found["integer"] < found["fake_quantized"] - 0.001
    assert code == 1, found
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the exported graph itself differs" in line
    (named,) = re.findall(r"these differ most: (.*)", line)
    assert re.fullmatch(rf"{re.escape(layer)} \(\d+\.\d+ scales beyond rounding\)", named), line


class Coarse(OnnxNetwork):
    """An engine that computes one layer with steps three times too large."""

    def __init__(self, model: onnx.ModelProto, *, threads: int) -> None:
        super().__init__(model, threads=threads)
        site = "neck/fpn_convs/0/activate/out"
        self.changed = rounded_values(model, [site])[site]

    def compute(self, arrays: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
        """Change the results of the layer if the model returns them."""
        found = super().compute(arrays)
        for index in [i for i, name in enumerate(self.names) if name == self.changed]:
            found[index] = 3 * found[index]
        return found


def refuse(model: onnx.ModelProto, threads: int) -> OnnxNetwork:
    """Open whole models, but refuse a model that is cut into layers."""
    if len(model.graph.input) > 1:
        raise RuntimeError("too many inputs")
    return OnnxNetwork(model, threads=threads)


@pytest.mark.parametrize(
    ("open_network", "message"),
    [
        (
            lambda model, threads: Coarse(model, threads=threads),
            r"agrees when computed in float; its integer arithmetic differs in Mine; these differ"
            r" most: neck/fpn_convs/0/conv\+neck/fpn_convs/0/bn \(\d+\.\d+ scales beyond"
            r" rounding\)",
        ),
        (refuse, r"and layer by layer Mine 1\.0 cannot run the model: too many inputs"),
    ],
    ids=["wrong arithmetic", "no layers"],
)
def test_new_engine_is_one_object_and_its_arithmetic_is_judged_layer_by_layer(
    open_network: Callable[[onnx.ModelProto, int], Network],
    message: str,
    launch: Launch,
    experiment: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dq.detector.engines.agreement.GATE", -1.0)  # Every gate is missed.
    mine = SimpleNamespace(ENGINE=Engine(title="Mine", version="1.0", network=open_network))
    monkeypatch.setitem(sys.modules, "mine", mine)
    monkeypatch.setitem(ENGINES, "openvino", ("mine", "pip install mine", ENGINES["openvino"][2]))
    model = experiment / "export/tiny.onnx"
    code, out, err = launch("eval", model, "--backend", "openvino", "--work-dir", tmp_path)
    assert code == 1, err
    assert "engine   Mine 1.0" in out
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, line), line


def test_missed_gate_says_how_far_the_metric_can_be_known_where_all_layers_agree(
    launch: Launch, experiment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dq.detector.engines.agreement.GATE", -1.0)  # Every gate is missed.
    model = experiment / "export/tiny.onnx"
    code, _, err = launch("eval", model, "--backend", "onnxruntime", "--work-dir", tmp_path)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "each layer agrees" in line
    found = json.loads((tmp_path / "eval_onnxruntime/summary.json").read_text())
    moved = 100 * abs(found["fake_again"] - found["fake_quantized"])
    assert f"itself moves by {moved:.2f} points" in line
    assert moved < 5


def test_mistakes_are_told_in_one_line(
    launch: Launch, experiment: Path, float_checkpoint: Path, config: Path, tmp_path: Path
) -> None:
    model = experiment / "export/tiny.onnx"
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:5000])
    backend = ("--backend", "onnxruntime", "--work-dir", tmp_path)
    fewer = tmp_path / "fewer.py"
    fewer.write_text(
        f"_base_ = [{str(config)!r}]\nmodel = dict(bbox_head=dict(num_classes=2))\n"
        "data = dict(test=dict(classes=('zero', 'one')))\n"
    )
    calibrated = tmp_path / "plain.pth"
    torch.save(torch.load(float_checkpoint, weights_only=True), calibrated)
    running = onnx.load(model)
    (text,) = [entry for entry in running.metadata_props if entry.key == "config"]
    text.value += f"data = open({str(tmp_path / 'ran')!r}, 'w')\n"
    onnx.save(running, tmp_path / "running.onnx")
    importing = onnx.load(model)
    (text,) = [entry for entry in importing.metadata_props if entry.key == "config"]
    text.value += "custom_imports = {'imports': ['this']}\n"
    onnx.save(importing, tmp_path / "importing.onnx")
    for words, message in (
        (("eval", damaged, *backend), "is not an ONNX model, or damaged"),
        (("eval", damaged, "--backend", "openvino"), "is not an ONNX model, or damaged"),
        (("eval", tmp_path / "running.onnx", *backend), "not made of plain values .*give the conf"),
        (("eval", tmp_path / "importing.onnx", *backend), "imports this, which runs its code"),
        (("eval", config, *backend), "needs one MODEL.onnx"),
        (("eval", model, config), "add --backend onnxruntime"),
        (("eval", model, fewer, *backend), "classes|another model"),
        (("eval", model, "--checkpoint", calibrated, *backend), "is a float checkpoint"),
        (
            ("export", config, "--checkpoint", calibrated, "--work-dir", tmp_path),
            "is a float checkpoint; calibrate it",
        ),
        (
            ("export", config, "--checkpoint", experiment / "qat/qat.pth", "--work-dir", tmp_path,
             "--format", "onnx-tidl"),
            "onnx-tidl needs power-of-two scales",
        ),
    ):  # fmt: skip
        assert re.search(message, only_error(launch(*words)))
    assert not list(tmp_path.glob("export/*"))
    assert not (tmp_path / "ran").exists()


def test_integers_for_torch_are_a_plain_file_and_compute_the_same(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    checkpoint = experiment / "qat/qat.pth"
    words = ("--checkpoint", checkpoint, "--work-dir", tmp_path)
    code, _, err = launch("export", config, *words, "--format", "torch-int")
    assert code == 0, err
    (path,) = (tmp_path / "export").glob("*.int.pth")
    content = torch.load(path, weights_only=True)
    state = content["integer_network"]["state"]
    kinds = {value.dtype for key, value in state.items() if key.endswith(".integers")}
    assert kinds == {torch.int8}
    truth = own_truth(config, checkpoint, tmp_path / "data")
    backend = ("--backend", "torch-int", *words)
    code, out, err = launch("eval", path, truth, *backend)
    assert code == 0, err
    assert "torch-int " in out
    found = json.loads((tmp_path / "eval_torch_int/summary.json").read_text())
    assert found["fake_quantized"] > 0.3
    assert found["integer"] == found["fake_quantized"]
    assert found["boxes"]["num_matched"] == found["boxes"]["num_first"] > 0
    assert found["boxes"]["corner_max"] == found["boxes"]["score_max"] == 0
    assert found["bytes_float"] == 4 * found["bytes_integer"]
    (key,) = [k for k in state if "bbox_head/cls_convs/0/0" in k and k.endswith(".integers")]
    state[key] = -state[key]
    torch.save(content, tmp_path / "wrong.int.pth")
    code, _, err = launch("eval", tmp_path / "wrong.int.pth", truth, *backend)
    assert code == 1, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "1 tensor of the file differs from the checkpoint's" in line
    assert "bbox_head/cls_convs/0/0" in line
    content["meta"]["config"] += f"data = open({str(tmp_path / 'ran')!r}, 'w')\n"
    torch.save(content, tmp_path / "running.int.pth")
    damaged = tmp_path / "damaged.int.pth"
    damaged.write_bytes(path.read_bytes()[:5000])
    for wrong, message in (
        (("eval", path, config), "add --backend torch-int"),
        (("eval", damaged, *backend), "is damaged"),
        (("eval", tmp_path / "running.int.pth", *backend), "is not made of plain values"),
        (("eval", checkpoint, *backend), "has no integers"),
        (("eval", config, *backend), "needs one MODEL.int.pth"),
    ):
        assert re.search(message, only_error(launch(*wrong)))
    assert not (tmp_path / "ran").exists()
