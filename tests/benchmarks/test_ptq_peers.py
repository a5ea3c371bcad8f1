"""The comparison of post-training quantization: rows, resuming, tools that fail, the table."""

from __future__ import annotations

import ast
import contextlib
import errno
import io
import json
import os
import runpy
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import onnx
import pytest

from benchmarks.ptq_peers import __main__ as benchmark
from benchmarks.ptq_peers import environments
from benchmarks.ptq_peers.detector import write_config
from benchmarks.ptq_peers.environments import INSTALLED, python_of
from benchmarks.ptq_peers.ours import OURS
from benchmarks.ptq_peers.table import FLOAT, table
from benchmarks.ptq_peers.tools import PEERS, SCRIPTS, TOOLS, Peer, Tool, timed_run
from dq.detector.config.nested_sections import innermost
from dq.detector.config.read import finish, read_config
from launcher.cli import build_parser

CONFIG = Path(__file__).resolve().parents[2] / "configs/yolox/yolox_nano_416_ptq.py"
# Writes what it was given, and with "steered" the metric that it asked for.
QUANTIZER = """
import sys
import threading
source, images, out, method = sys.argv[1:]
if method == "broken":
    sys.exit("this net has no name | here")
with open(out, "w") as file:
    file.write("0.25")
if method == "steered":
    print(f"EVALUATE {out}", flush=True)
    value = float(sys.stdin.readline())
    with open(out, "w") as file:
        file.write(str(value + 0.05))
"""


class FakeDetector:
    """A detector whose files contain their own metric."""

    def __init__(self, *_: object, **__: object) -> None:
        self.evaluated: list[tuple[str, str]] = []

    def write_float(self, path: Path) -> None:
        path.write_text("0.35")

    def write_images(self, path: Path, num_images: int) -> None:
        path.write_text(str(num_images))

    def metric(self, path: Path, split: str = "test") -> tuple[str, float]:
        self.evaluated.append((path.stem, split))
        return "bbox_mAP", float(path.read_text())


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments of a comparison with tools that need nothing."""
    for split, ids in (("calibrate", range(19)), ("evaluate", (20, 21))):
        content = {
            "images": [{"id": i} for i in ids],
            "annotations": [{"image_id": ids[-1]}, {"image_id": ids[0]}],
        }
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    script = tmp_path / "with_fake.py"
    script.write_text(QUANTIZER)
    monkeypatch.setitem(TOOLS, "fake", Tool(script=str(script)))
    monkeypatch.setitem(TOOLS, "absent", Tool(script="", requirements=("./no_such_package",)))
    for method in ("plain", "steered", "broken"):
        monkeypatch.setitem(PEERS, method, Peer(title=method, tool="fake", method=method))
    monkeypatch.setitem(PEERS, "absent", Peer(title="absent", tool="absent", method=""))
    monkeypatch.setattr(benchmark, "Detector", FakeDetector)
    monkeypatch.setattr(benchmark.Comparison, "speed", lambda *_: 2.0)
    given = {
        "--config": CONFIG,
        "--checkpoint": tmp_path / "float.pth",
        "--calibrate": tmp_path / "calibrate.json",
        "--evaluate": tmp_path / "evaluate.json",
        "--images": tmp_path,
        "--out": tmp_path / "out",
        "--write": tmp_path / "doc.md",
    }
    return [str(word) for pair in given.items() for word in pair]


def test_every_tool_is_a_row_and_one_that_fails_says_why(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "doc.md").write_text("# Peers\n")
    assert benchmark.main([*words, "--peers", "plain", "broken", "steered"]) == 0
    text = (tmp_path / "doc.md").read_text()
    rows = [[part.strip() for part in line.split("|")[1:-1]] for line in text.splitlines()[6:-2]]
    shown = {row[0]: (*row[1:3], row[4], row[-1]) for row in rows}
    assert shown == {
        "float": ("35.00", "", "-", ""),
        "plain": ("25.00", "10.00", "2.00", ""),
        "steered": ("30.00", "5.00", "2.00", ""),
        "broken": ("", "", "-", "exit code 1: this net has no name / here"),
    }
    assert text.startswith("# Peers\n")
    assert (tmp_path / "out/images16.npy").is_file()  # Whole batches of eight.


def test_a_second_call_makes_only_what_is_missing(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = [*words, "--peers", "plain", "broken"]
    benchmark.main(chosen)
    before = (tmp_path / "doc.md").read_text()
    runs: list[str] = []

    def run(words: Sequence[object], log: Path, **_: object) -> float:
        runs.append(log.stem)
        raise RuntimeError("still broken")

    monkeypatch.setattr(benchmark, "timed_run", run)
    benchmark.main(chosen)
    assert runs == []
    assert (tmp_path / "doc.md").read_text() == before
    # A row that was interrupted after its file is evaluated, and not quantized again.
    path = tmp_path / "out/rows/plain.json"
    row = json.loads(path.read_text())
    path.write_text(json.dumps({"title": row["title"], "seconds": row["seconds"]}))
    benchmark.main([*chosen, "--retry"])
    assert runs == ["broken"]
    assert json.loads(path.read_text()) == row
    assert "still broken" in (tmp_path / "doc.md").read_text()


def test_a_file_may_have_several_tables(words: list[str], tmp_path: Path) -> None:
    for more in ((), ("--block", "exchanged"), ()):
        benchmark.main([*words, "--peers", "plain", *more])
    lines = (tmp_path / "doc.md").read_text().splitlines()
    assert [line for line in lines if line.startswith("<!-- made")] == [
        "<!-- made by benchmarks.ptq_peers: yolox_nano_416_ptq -->",
        "<!-- made by benchmarks.ptq_peers: exchanged -->",
    ]


def test_a_tool_steers_by_the_calibration_images(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[FakeDetector] = []

    class Seen(FakeDetector):
        def __init__(self, *_: object, **__: object) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(benchmark, "Detector", Seen)
    benchmark.main([*words, "--peers", "steered"])
    assert made[0].evaluated == [("float", "test"), ("steered", "val"), ("steered", "test")]


@pytest.mark.slow
def test_a_tool_that_cannot_be_installed_is_a_row(words: list[str], tmp_path: Path) -> None:
    assert benchmark.main([*words, "--peers", "absent"]) == 0
    row = json.loads((tmp_path / "out/rows/absent.json").read_text())
    assert row["failed"].startswith("cannot be installed: ERROR")
    assert "no_such_package" in row["failed"]


def test_an_environment_is_made_once_for_its_requirements(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[object, ...]] = []
    monkeypatch.setattr(environments, "_run", lambda *words: runs.append(words))
    (tmp_path / "env").mkdir()
    python = python_of(tmp_path / "env", ("a", "b"))
    assert python == tmp_path / "env/bin/python"
    assert runs[1] == (python, "-m", "pip", "install", "-q", "a", "b")
    assert python_of(tmp_path / "env", ("a", "b")) == python
    assert len(runs) == 2
    python_of(tmp_path / "env", ("a",))
    assert len(runs) == 4
    assert (tmp_path / "env" / INSTALLED).read_text() == "a"
    python_of(tmp_path / "env", ("a",), ("c",))
    assert runs[-1] == (python, "-m", "pip", "install", "-q", "--no-deps", "c")
    assert python_of(tmp_path / "env", ("a",), ("c",)) == python
    assert len(runs) == 7
    assert python_of(tmp_path, ()) == Path(sys.executable)


def test_a_tool_that_fails_says_why_whatever_it_printed(tmp_path: Path) -> None:
    """What a tool prints comes late, because it is collected before it is written."""
    told = [sys.executable, "-c", "print('all is well'); raise ValueError('no such layer')"]
    with pytest.raises(RuntimeError, match="exit code 1: ValueError: no such layer"):
        timed_run(told, tmp_path / "log.txt", limit_s=60)
    told[-1] = "print('only printed'); raise SystemExit(3)"
    with pytest.raises(RuntimeError, match="exit code 3: only printed"):
        timed_run(told, tmp_path / "log.txt", limit_s=60)


def test_nncf_ranks_layers_by_the_metric_of_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise it ranks by the outputs, which it cannot do for an ONNX model."""
    nncf = MagicMock()
    monkeypatch.setitem(sys.modules, "nncf", nncf)
    monkeypatch.setitem(sys.modules, "openvino", MagicMock())
    script = runpy.run_path(str(SCRIPTS / TOOLS["nncf"].script))
    batches = [{"images": np.zeros((1, 3, 4, 4), np.float32)}] * 3
    script["quantized"]("a model", batches, "accuracy_control", tmp_path / "draft.onnx")
    metric = nncf.quantize_with_accuracy_control.call_args.args[3]
    model = onnx.helper.make_model(onnx.helper.make_graph([], "net", [], []))
    for items in (batches[:1], batches):
        monkeypatch.setattr(sys, "stdin", io.StringIO("0.25\n"))
        assert metric(model, iter(items)) == (0.25, [0.25] * len(items))


def test_a_tool_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(RuntimeError, match="not finished after"):
        timed_run(sleep, tmp_path / "log.txt", limit_s=0.2)


def test_a_tool_that_has_just_ended_is_not_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time ran out between its end and the moment at which the timer looked for it."""

    def gone(pid: int, number: int) -> None:
        raise ProcessLookupError(errno.ESRCH, "No such process")

    monkeypatch.setattr(os, "killpg", gone)
    failed: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failed.append)
    sleep = [sys.executable, "-c", "import time; time.sleep(1)"]
    assert timed_run(sleep, tmp_path / "log.txt", limit_s=0.1) > 0.1
    assert not failed


@pytest.mark.parametrize("killed", [False, True])
def test_a_file_of_openvino_is_there_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    openvino = MagicMock()

    def save(model: object, name: str) -> None:
        Path(name).write_text("half")
        if killed:
            raise KeyboardInterrupt
        Path(name).with_suffix(".bin").write_text("weights")
        Path(name).write_text("whole")

    openvino.save_model = save
    monkeypatch.setitem(sys.modules, "nncf", MagicMock())
    monkeypatch.setitem(sys.modules, "openvino", openvino)
    script = runpy.run_path(str(SCRIPTS / TOOLS["nncf"].script))
    np.save(tmp_path / "images.npy", np.zeros((2, 3, 4, 4), np.float32))
    out = tmp_path / "net.xml"
    with contextlib.suppress(KeyboardInterrupt):
        script["main"]("net.onnx", str(tmp_path / "images.npy"), str(out), "mixed")
    found = {path.name: path.read_text() for path in tmp_path.glob("net.[xb]*")}
    assert found == ({} if killed else {"net.xml": "whole", "net.bin": "weights"})


def test_no_script_of_a_quantizer_writes_its_file_in_place() -> None:
    """A killed run would leave a cut file, which the next one would use."""
    for path in SCRIPTS.glob("with_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and "save" in ast.unparse(node.func):
                target = ast.unparse(node.args[-1])
                assert "draft" in target, f"{path.name}:{node.lineno} writes {target}"


def test_each_peer_has_a_script_and_each_of_our_commands_exists(tmp_path: Path) -> None:
    for peer in PEERS.values():
        assert (SCRIPTS / TOOLS[peer.tool].script).is_file()
    for own in OURS.values():
        parsed = build_parser().parse_args(
            [own.command, "config.py", "--checkpoint", "a.pth", *own.words]
        )
        assert parsed.checkpoint


def test_our_commands_evaluate_one_image_that_has_boxes(tmp_path: Path, words: list[str]) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    files = {name: tmp_path / f"{name}.json" for name in ("calibrate", "evaluate")}
    path, short, number = write_config(CONFIG, folder, images=tmp_path, num_images=128, **files)
    assert number == 16
    assert short.quant == {"schedule": {"calibration_batches": 2, "calibration_batch_size": 8}}
    content = json.loads(Path(short.data.test.ann_file).read_text())
    assert content["images"] == [{"id": 21}]
    assert content["annotations"] == [{"image_id": 21}]
    assert str(files["evaluate"]) in path.read_text()


def test_a_config_of_another_kind_of_data_gets_coco_files(tmp_path: Path, words: list[str]) -> None:
    config = CONFIG.parents[1] / "bccd/ssd_mobilenet_fpn_160.py"
    files = {name: tmp_path / f"{name}.json" for name in ("calibrate", "evaluate")}
    path, short, _ = write_config(config, tmp_path, images=tmp_path, num_images=8, **files)
    content = finish(read_config(path))
    assert content.evaluation == {"metric": "bbox"}
    (train,), (test,) = (list(innermost(content.data[part])) for part in ("train", "test"))
    assert train.type == test.type == "CocoDataset"
    assert (train.ann_file, test.ann_file) == tuple(map(str, files.values()))
    assert train.classes == ("RBC", "WBC", "Platelets")
    (shown,) = innermost(short.data.test)
    assert json.loads(Path(shown.ann_file).read_text())["images"] == [{"id": 21}]


def test_the_table_has_what_is_known() -> None:
    rows = {
        FLOAT: {"title": "float", "metric": "mAP", "value": 0.5, "seconds": 0.0},
        "one": {
            "title": "one",
            "value": 0.45,
            "seconds": 61.4,
            "speed": {"a": 1.5, "b": "it cannot run the model"},
        },
        "two": {"title": "two", "failed": "it fails"},
    }
    lines = table(rows, {"a": "A 1", "b": "B 2"}).splitlines()
    assert lines[0] == "|  | mAP, % | drop | seconds | x float, A 1 | x float, B 2 |  |"
    assert lines[2:] == [
        "| float | 50.00 |  |  | - | - |  |",
        "| one | 45.00 | 5.00 | 61 | 1.50 | - |  |",
        "| two |  |  |  | - | - | it fails |",
    ]
