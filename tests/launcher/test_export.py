"""float -> QAT -> export -> ONNX Runtime, from QAT on with two ranks; what a user may do wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import onnx
import pytest
import torch

from dq.detector.build import build_model, float_state, load_float_state
from dq.detector.checkpoint import load_quantization, recipe_of
from dq.detector.config import read_config
from dq.detector.data import dataset_of
from dq.detector.data import test_classes as classes_of
from dq.detector.evaluate import detect
from dq.detector.graph import quantize_detector
from dq.quant.phase import Phase, set_phase
from tests.launcher.conftest import Launch, on_ranks, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(
    config: Path, float_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The tiny float detector trained quantized and exported, on two ranks."""
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
    # The model alone: config and checkpoint are found through it.
    done = torchrun(
        2, "eval", "--backend", "onnxruntime", experiment / "export/tiny.onnx",
        "--work-dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("fake-quantized ") == 1
    found = json.loads((tmp_path / "eval_onnxruntime/summary.json").read_text())
    recorded = json.loads((experiment / "qat/summary.json").read_text())
    assert found["fake_quantized"] == recorded["value"]
    assert abs(found["integer"] - found["fake_quantized"]) <= 0.001
    assert found["num_integer"] == 32
    assert found["num_float"] == 0
    assert found["boxes"]["num_matched"] > 0.9 * found["boxes"]["num_first"] > 0
    assert found["bytes_float"] > 2 * found["bytes_integer"]
    model = onnx.load(experiment / "export/tiny.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(metadata["classes"])[:2] == ["zero", "one"]
    assert json.loads(metadata["preprocessing"])["size"] == [96, 96]
    assert metadata["checkpoint_sha256"] == recorded["sha256"]
    assert len(json.loads((experiment / "export/tiny.qparams.json").read_text())) > 50


def own_truth(config: Path, checkpoint: Path, folder: Path) -> Path:
    """Write a config whose test boxes are what the quantized detector itself finds.

    A detector that was trained for seconds finds next to nothing else, so its metric could not
    become worse.
    """
    plan = read_config(config)
    classes = classes_of(plan)
    content = torch.load(checkpoint, weights_only=True)
    detector = build_model(plan, classes, initialise=False)
    load_float_state(detector, float_state(content, "it"), "it")
    recipe = recipe_of(content)
    assert recipe is not None
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, "it")
    set_phase(graph.quantizers, Phase.FROZEN)
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


def test_gate_is_missed_and_names_the_layer(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    checkpoint = experiment / "qat/qat.pth"
    truth = own_truth(config, checkpoint, tmp_path / "data")
    model = onnx.load(experiment / "export/tiny.onnx")
    # A layer's weights with the wrong sign, as a broken export could write them.
    (tensor,) = [
        t for t in model.graph.initializer if t.name == "bbox_head/cls_convs/0/0/integers"
    ]  # fmt: skip
    wrong = onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name)
    tensor.CopyFrom(wrong)
    onnx.save(model, tmp_path / "wrong.onnx")
    words = ("--backend", "onnxruntime", "--checkpoint", checkpoint, "--work-dir", tmp_path)
    code, _, err = launch("eval", truth, tmp_path / "wrong.onnx", *words)
    found = json.loads((tmp_path / "eval_onnxruntime/summary.json").read_text())
    assert found["fake_quantized"] > 0.3
    assert found["integer"] < found["fake_quantized"] - 0.001
    assert code == 1, found
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the exported graph itself differs" in line
    layer = tensor.name.removesuffix("/integers")
    (named,) = re.findall(r"these differ most: (.*)", line)
    assert re.fullmatch(rf"{re.escape(layer)} \(\d+\.\d+ scales beyond rounding\)", named), line


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
    for words, message in (
        (("eval", damaged, *backend), "is no ONNX model, or damaged"),
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
        code, _, err = launch(*words)
        assert code == 2, (words, err)
        lines = [line for line in err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1
        assert re.search(message, lines[0]), lines[0]
    assert not list(tmp_path.glob("export/*"))


def test_integers_for_torch_are_a_plain_file(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    code, _, err = launch(
        "export", config, "--checkpoint", experiment / "qat/qat.pth", "--format", "torch-int",
        "--work-dir", tmp_path,
    )  # fmt: skip
    assert code == 0, err
    (path,) = (tmp_path / "export").glob("*.int.pth")
    content = torch.load(path, weights_only=True)
    state = content["integer_network"]["state"]
    kinds = {value.dtype for key, value in state.items() if key.endswith(".integers")}
    assert kinds == {torch.int8}
