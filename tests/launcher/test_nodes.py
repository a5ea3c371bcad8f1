"""Two hosts with their own addresses train one detector, with and without a shared disk."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.dist.checkpoint import load_checkpoint
from tests.launcher.conftest import on_ranks
from tests.launcher.test_resume import differences
from tests.nodes import Node, two_nodes

pytestmark = pytest.mark.slow

SETTINGS = """
_base_ = [{base!r}]
runner = dict(max_epochs={epochs})
log_config = dict(interval=1)
checkpoint_config = dict(steps=1, max_keep_ckpts=-1)
{more}
"""


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    with two_nodes() as pair:
        yield pair


def settings(config: Path, folder: Path, epochs: int = 1, more: str = "") -> Path:
    path = folder / "nodes.py"
    path.write_text(SETTINGS.format(base=str(config), epochs=epochs, more=more))
    return path


def weights(folder: Path) -> dict[str, object]:
    content = load_checkpoint(folder)
    return {name: content[name] for name in ("state_dict", "quantization") if name in content}


def test_two_hosts_run_a_whole_chain_as_one_does(
    nodes: tuple[Node, Node], config: Path, tmp_path: Path
) -> None:
    # Each host has a disk of its own: the second never sees what the first writes.
    path = settings(config, tmp_path)
    started = [
        node.start(
            nodes[0], "run", path, "--work-dir", tmp_path / f"disk{number}", "--sync-bn", "on",
            "--threads", "1", output=tmp_path / f"node{number}.txt",
        )
        for number, node in enumerate(nodes)
    ]  # fmt: skip
    codes = [process.wait(timeout=240) for process in started]
    said = [(tmp_path / f"node{number}.txt").read_text() for number in (0, 1)]
    assert codes == [0, 0], said
    # Which of the two became rank 0 is torchrun's to say.
    main, other = (tmp_path / "disk0", tmp_path / "disk1")
    if not (main / "qat").exists():
        main, other = other, main
    assert not list(other.glob("*/*.pth"))
    assert not list(other.glob("*/*.json"))
    assert list((other / "logs").glob("rank_1.log"))
    proofs = [
        re.findall(r"digest (\w{16})", (disk / f"logs/rank_{rank}.log").read_text())
        for rank, disk in enumerate((main, other))
    ]
    assert proofs[0] == proofs[1] != []
    done = on_ranks(
        2, "run", path, "--work-dir", tmp_path / "one", "--sync-bn", "on", "--threads", "1"
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("float/float.pth", "calibrated/calibrated.pth", "qat/qat.pth"):
        assert differences(weights(tmp_path / "one" / stage), weights(main / stage)) == [], stage
    found, wanted = (
        json.loads((folder / "qat/summary.json").read_text()) for folder in (main, tmp_path / "one")
    )
    assert found["metrics"] == wanted["metrics"] != {}


def test_training_goes_on_on_the_host_that_is_left(
    nodes: tuple[Node, Node], config: Path, tmp_path: Path
) -> None:
    path = settings(config, tmp_path, epochs=15)
    words = ("train", path, "--work-dir", tmp_path / "shared", "--no-validate", "--timeout", "30")
    started = [
        node.start(
            nodes[0], *words, output=tmp_path / f"node{number}.txt", nodes="1:2",
            options=("--max-restarts", "3"),
        )
        for number, node in enumerate(nodes)
    ]  # fmt: skip
    folder = tmp_path / "shared/float"
    end = time.monotonic() + 120
    while len(list(folder.glob("step_*.pth"))) < 3 and time.monotonic() < end:
        time.sleep(0.2)
    before = sorted(int(p.stem.split("_")[1]) for p in folder.glob("step_*.pth"))
    assert before, (tmp_path / "node0.txt").read_text()
    nodes[1].lose_power()
    assert started[0].wait(timeout=400) == 0, (tmp_path / "node0.txt").read_text()[-5000:]
    with contextlib.suppress(Exception):
        started[1].wait(timeout=10)
    said = (tmp_path / "node0.txt").read_text()
    resumed = re.findall(r"resumed from \S+_(\d+)\.pth", said)
    assert resumed, said[-3000:]
    assert "2 micro-batches a step" in said
    content = load_checkpoint(folder / "float.pth")
    assert content["meta"]["epoch"] == 15
