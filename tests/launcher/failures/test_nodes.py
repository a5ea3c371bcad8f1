"""Two hosts with their own addresses train one detector, with and without a shared disk."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import on_ranks
from tests.launcher.training.test_resume import differences
from tests.processes.nodes import Node, two_nodes

pytestmark = pytest.mark.slow

SETTINGS = """
_base_ = [{base!r}]
runner = dict(max_epochs={epochs})
log_config = dict(interval=1)
checkpoint_config = dict(steps=1, max_keep_ckpts=-1)
{more}
"""
HOLD = """
accumulate = 2
custom_imports = dict(imports=['tests.launcher.failures.fault_hook'], allow_failed_imports=False)
custom_hooks = [dict(type='FaultHook', what='hold', rank=0, step=4, marker={marker!r})]
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
    # Each host has its own disk: the second does not see the files of the first.
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
    # torchrun decides which of the two becomes rank 0.
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


def test_training_goes_on_when_a_host_joins_and_when_it_is_lost(
    nodes: tuple[Node, Node], config: Path, tmp_path: Path
) -> None:
    # Two micro-batches per step, so that one rank or two can process it. After some steps the first
    # host waits until the second has joined.
    more = HOLD.format(marker=str(tmp_path / "held"))
    path = settings(config, tmp_path, epochs=14, more=more)
    words = ("train", path, "--work-dir", tmp_path / "shared", "--no-validate", "--timeout", "30")
    folder = tmp_path / "shared/float"
    outputs = [tmp_path / f"node{number}.txt" for number in (0, 1)]

    def start(number: int) -> subprocess.Popen[bytes]:
        return nodes[number].start(
            nodes[0], *words, output=outputs[number], nodes="1:2",
            options=("--max-restarts", "3"), conf="last_call_timeout=1",
        )  # fmt: skip

    def await_steps(least: int, ranks: int) -> int:
        """Wait until this number of ranks has done some steps together; return the newest step."""
        said = f"rank 0 of {ranks} "
        end = time.monotonic() + 120
        while time.monotonic() < end:
            text = "".join(p.read_text() for p in outputs if p.exists())
            steps = [int(p.stem.split("_")[1]) for p in folder.glob("step_*.pth")]
            if said in text and steps and max(steps) >= least and (tmp_path / "held").exists():
                return max(steps)
            time.sleep(0.2)
        raise AssertionError(text[-5000:])

    first = start(0)
    alone = await_steps(4, ranks=1)
    second = start(1)
    together = await_steps(alone + 6, ranks=2)
    nodes[1].lose_power()
    assert first.wait(timeout=400) == 0, outputs[0].read_text()[-5000:]
    with contextlib.suppress(subprocess.TimeoutExpired):
        second.wait(timeout=10)
    said = outputs[0].read_text() + outputs[1].read_text()
    resumed = [int(step) for step in re.findall(r"resumed from \S+_(\d+)\.pth", said)]
    assert len(resumed) == 2, said[-5000:]
    assert resumed[0] >= alone
    assert max(resumed) >= together
    content = load_checkpoint(folder / "epoch_14.pth")
    assert content["training"]["chunks_per_step"] == 2
    # The tiny set has 24 images: 3 steps of 2 x 4 per epoch, on any number of ranks.
    assert content["training"]["iteration"] == 42
