"""A hanging rank makes all ranks write their stacks, and ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from dq.dist.exchange import collectives
from dq.dist.watch.watchdog import watchdog
from tests.processes.ranks import run_ranks


def stand_still_on_rank_1(folder: Path) -> None:
    stacks = folder / f"rank_{collectives.rank()}.stacks"
    with watchdog(quiet_s=0.6, limit_s=60, stacks=stacks) as dog, dog.watching("the start"):
        for step in range(20):
            if collectives.rank() == 1 and step == 2:
                stuck_here()
            time.sleep(0.1)
            dog.alive(f"step {step}")


def stuck_here() -> None:
    time.sleep(2.0)


@pytest.mark.slow
def test_all_ranks_write_their_stacks(tmp_path: Path) -> None:
    run_ranks(stand_still_on_rank_1, 2, tmp_path)
    own, other = ((tmp_path / f"rank_{rank}.stacks").read_text() for rank in (1, 0))
    assert "nothing since step 1 for" in own
    assert "stuck_here" in own
    assert "another rank raised the alarm" in other
    assert "stand_still_on_rank_1" in other


def test_a_rank_with_signs_of_life_writes_no_stacks(tmp_path: Path) -> None:
    stacks = tmp_path / "not/yet/there/rank_0.stacks"
    with watchdog(quiet_s=0.4, limit_s=60, stacks=stacks) as dog:
        time.sleep(0.6)  # Nobody asked to watch yet.
        with dog.watching("the start"):
            for step in range(4):
                time.sleep(0.15)
                dog.alive(f"step {step}")
            with dog.paused():
                time.sleep(0.7)
        time.sleep(0.6)
    assert not stacks.exists()


@pytest.mark.parametrize(("quiet_s", "limit_s", "used_s"), [(5, 60, 60), (5, 2, 6), (5, 5.5, 6)])
def test_a_process_ends_after_it_has_written_its_stacks(
    tmp_path: Path, quiet_s: float, limit_s: float, used_s: float
) -> None:
    with watchdog(quiet_s=quiet_s, limit_s=limit_s, stacks=tmp_path / "stacks") as dog:
        assert (dog.quiet_s, dog.limit_s) == (quiet_s, used_s)


ENDS = """
import sys, time
from pathlib import Path
from dq.dist.watch.watchdog import watchdog
with watchdog(quiet_s=0.2, limit_s=0.1, stacks=Path(sys.argv[1])) as dog, dog.watching("all"):
    time.sleep(60)
"""


def test_a_hanging_process_ends(tmp_path: Path) -> None:
    stacks = tmp_path / "stacks"
    done = subprocess.run(
        [sys.executable, "-c", ENDS, str(stacks)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "has not finished a step" in done.stderr
    assert "Timeout" in stacks.read_text()
