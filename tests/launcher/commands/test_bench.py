"""`launcher bench`: its output and files, and mistakes of the user."""

from __future__ import annotations

import json
import re
from pathlib import Path

import onnx
import pytest

from dq.dist.rendezvous.environment import Environment
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.result import Latency
from tests.launcher.conftest import Launch
from tests.quant.latency.models import int8_model

FAST = ("--rounds", "2")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small model with the metadata that the export writes."""
    path = tmp_path / "int8.onnx"
    onnx.save(int8_model(), path)
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "float.onnx"
    onnx.save(float_twin(int8_model()), path)
    return path


def test_several_models_are_timed_in_turn(launch: Launch, model: Path, plain: Path) -> None:
    code, out, err = launch("bench", model, plain, *FAST)
    assert code == 0, err
    first, head, one, two = out.splitlines()[:4]
    assert re.fullmatch(r"ONNX Runtime \S+, 1 thread, 2 rounds in turn; .*", first)
    assert head.split()[-3:] == ["as", "the", "first"]
    ratio = r"\d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\)"
    assert re.match(rf"{re.escape(str(model))} +[\d.]+ +[\d.]+ +{ratio} +\d of 6 +0\.", one)
    assert re.match(rf"{re.escape(str(plain))} +[\d.]+ +{ratio}$", two)


def test_layers_a_rule_and_json(launch: Launch, model: Path, tmp_path: Path) -> None:
    file = tmp_path / "folder/numbers.json"
    code, out, err = launch("bench", model, *FAST, "--per-layer", "--json", file, "--batch", 2)
    assert code == 0, err
    assert out.splitlines()[-1] == str(file)
    found = json.loads(file.read_text())
    assert (found["batch"], found["threads"]) == (2, 1)
    own = found["models"][str(model)]
    assert own["latency"]["num_layers"] == 6
    assert [layer["module"] for layer in own["layers"]] == [
        *("stem", "depthwise", "shared", "up", "last")
    ]
    slow = [n["module"] for n in own["layers"] if n["ms_float"] / n["ms_integer"] < 1.02]
    advised = own["in_float"] or {"layers": [], "as_now": {"low": 0.0}}
    assert [n["module"] for n in advised["layers"]] == slow
    rules = re.findall(r"dict\(module='(\w+)', quantize=False\)", out)
    assert rules == (slow if advised["as_now"]["low"] > 1 else [])


def test_says_that_integers_are_slower_and_where(
    launch: Launch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Latency, "is_slower", property(lambda own: True))
    code, out, err = launch("bench", model, *FAST)
    assert code == 0, err
    last = out.splitlines()[-1]
    assert last.startswith(f"{model} is slower than in float; these layers cost most: ")


def test_openvino(launch: Launch, model: Path) -> None:
    code, out, err = launch("bench", model, *FAST, "--backend", "openvino")
    assert code == 0, err
    assert out.startswith("OpenVINO ")


def test_other_ranks_do_nothing(
    launch: Launch, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = Environment(rank=1, world_size=2, local_rank=1, local_world_size=2)
    monkeypatch.setattr("dq.dist.rendezvous.environment.read_environment", lambda: second)
    assert launch("bench", model, *FAST) == (0, "", "")


def test_mistakes_are_told_in_one_line(
    launch: Launch, model: Path, plain: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:900])
    content = int8_model()
    content.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    free = tmp_path / "free.onnx"
    onnx.save(content, free)
    (tmp_path / "taken").touch()
    for words, message in (
        ((tmp_path / "none.onnx",), "none.onnx does not exist"),
        ((damaged,), "is not an ONNX model, or damaged"),
        (
            (plain,),
            "is a float model, so there is nothing to compare it with; give a quantized model",
        ),
        ((model, model), "is given twice"),
        ((model, "--threads", 0), "--threads is 0; give a whole number of at least 1"),
        ((model, "--rounds", -1), "--rounds is -1"),
        ((model, "--batch", 0), "--batch is 0"),
        ((model, "--size", 0, 16), "--size is 0"),
        ((free,), r"free.onnx: input images has no fixed size; give --size HEIGHT WIDTH"),
        (
            (free, "--size", 3, 7),
            r"free.onnx: ONNX Runtime \S+ cannot run it on inputs of 1x3x3x16",
        ),
        ((model, *FAST, "--json", tmp_path / "taken/x.json"), "x.json cannot be written"),
    ):
        code, _, err = launch("bench", *words)
        assert code == 2, (words, err)
        (line,) = err.splitlines()
        assert re.search(message, line), line
