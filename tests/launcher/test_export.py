"""float -> QAT -> export -> ONNX Runtime on two ranks, and what a user may do wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest
import torch

from tests.launcher.conftest import Launch, on_ranks, torchrun

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def experiment(config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny detector trained in float and quantized, exported; two ranks."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    for words in (
        ("train", config, "--no-validate"),
        ("qat", config, "--checkpoint", folder / "float/float.pth", "--no-validate"),
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


def test_gate_names_the_layers_that_differ(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
) -> None:
    model = onnx.load(experiment / "export/tiny.onnx")
    (tensor,) = [
        t for t in model.graph.initializer if t.name.startswith("backbone/layer2/0/conv1+")
        and t.name.endswith("/scale")
    ]  # fmt: skip
    wrong = onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) * 4, tensor.name)
    tensor.CopyFrom(wrong)
    onnx.save(model, tmp_path / "wrong.onnx")
    words = ("--backend", "onnxruntime", "--checkpoint", experiment / "qat/qat.pth")
    code, _, err = launch("eval", config, tmp_path / "wrong.onnx", *words, "--work-dir", tmp_path)
    assert code == 1
    print(err)
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "the exported graph itself differs" in line
    assert re.search(r"these differ most: backbone/layer2", line), line


def test_mistakes_are_told_in_one_line(
    launch: Launch, experiment: Path, config: Path, tmp_path: Path
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
    torch.save(torch.load(experiment / "float/float.pth", weights_only=True), calibrated)
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
