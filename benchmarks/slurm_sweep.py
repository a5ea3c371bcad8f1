"""Disturb each element of a sweep on a real Slurm; compare with an undisturbed sweep.

    python -m benchmarks.slurm_sweep [--presets int8 w4a8] [--seeds 0 1] [--kinds warn ...]

Starts the tests' cluster (root and apt-get), submits the sweep twice, and disturbs every element of
the second, of its float array and of its main array, in each way while other elements run:

    warn      scancel -s USR2 A_I
    timeout   its time limit is lowered, so Slurm warns it
    preempt   a job of a higher partition wants its node
    requeue   scontrol requeue A_I, without a warning in time

Fails unless every element ends well after one restart per disturbance, no other element was
restarted meanwhile, all checkpoints and logged losses are those of the undisturbed sweep bit for
bit, and no file of a finished element was written again, not even by submitting the sweep again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dq.data.digits import write_digits
from launcher.cli import main as launcher
from slurm.record import Chain, Submitted, chains
from tests.launcher.conftest import CONFIG, ROOT
from tests.launcher.training.test_resume import compare, rich
from tests.slurm.cluster import Cluster, running_cluster

KINDS = ("warn", "timeout", "preempt", "requeue")
GATE = """
custom_imports = dict(imports=['tests.slurm.gate'], allow_failed_imports=False)
custom_hooks = [dict(type='GateHook', step=2, marker={marker!r}, attempts={attempts})]
"""
# A node has two CPUs, which is one element, so that one can be preempted alone.
RESOURCES = (
    "--partition",
    "swept",
    "--cpus-per-task",
    "2",
    "--signal-delay-s",
    "20",
    "--time",
    "15",
)
LIMIT_S = 900.0
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The sweep and its disturbances.

    Attributes:
        presets: If there are several, they share a float training, in an array of its own.
        seeds: At least one.
        kinds: The disturbances; element N starts with the Nth.
        strikes: How often each element is disturbed.
        checkpoint: A float detector for all, instead of float trainings.
        options: More options of the command line.
    """

    presets: Sequence[str]
    seeds: Sequence[int]
    kinds: Sequence[str] = KINDS
    strikes: int = len(KINDS)
    checkpoint: Path | None = None
    options: Sequence[str] = ()

    def words(self, config: Path, folder: Path) -> list[str]:
        """Return the command line that submits it."""
        words = ["submit", *RESOURCES, "--parallel", "2", "sweep", str(config)]
        words += ["--device", "cpu", "--threads", "1"]
        words += ["--presets", *self.presets, "--seeds", *map(str, self.seeds)]
        words += ["--checkpoint", str(self.checkpoint)] if self.checkpoint else []
        return [*words, "--work-dir", str(folder), *self.options]


@contextlib.contextmanager
def surroundings(cluster: Cluster, folder: Path) -> Iterator[None]:
    """Make the launcher find the cluster, and keep its index of submissions in ``folder``."""
    former = dict(os.environ)
    os.environ.update(cluster.environ, XDG_STATE_HOME=str(folder / "state"), OMP_NUM_THREADS="1")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(former)


def submit(words: Sequence[str]) -> Chain:
    """Submit a sweep and return its record."""
    assert launcher(list(words)) == 0
    return chains()[-1]


def strike(cluster: Cluster, job_id: str, kind: str) -> None:
    """Disturb one element of an array."""
    if kind == "warn":
        cluster.ask("scancel", "-s", "USR2", job_id)
    elif kind == "timeout":
        shown = cluster.ask("scontrol", "-o", "show", "job", job_id)
        elapsed = shown.split("RunTime=")[1].split()[0].split(":")
        minutes = 60 * int(elapsed[0]) + int(elapsed[1]) + 1
        cluster.ask("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}")
    elif kind == "preempt":
        node = cluster.ask("squeue", "-h", "-o", "%N", "-j", job_id)
        wanted = ("-p", "urgent", "-w", node, "-o", "/dev/null", "--exclusive", "--wrap", "sleep 1")
        cluster.ask("sbatch", *wanted)
    else:
        cluster.ask("scontrol", "requeue", job_id)


class Striker:
    """Disturb each element of a chain, once in each of its first attempts, one at a time.

    Args:
        cluster: The cluster on which the chain runs.
        chain: The submitted sweep.
        grid: The sweep and its disturbances.
        marker: File that says that an element waits, with ``{element}`` and ``{attempt}``.
    """

    def __init__(self, cluster: Cluster, chain: Chain, grid: Grid, marker: str) -> None:
        self.cluster, self.chain, self.grid, self.marker = cluster, chain, grid, marker
        self.struck: list[tuple[str, str]] = []

    def strike_all(self) -> None:
        """Continue until every element has been disturbed as often as planned."""
        end = time.monotonic() + LIMIT_S
        while len(self.struck) < len(self.chain.jobs) * self.grid.strikes:
            assert time.monotonic() < end, self.state()
            self._refuse_lost()
            for number, job in enumerate(self.chain.jobs):
                attempt = sum(job_id == job.job_id for job_id, _ in self.struck)
                waits = self.marker.format(element=job.job_id, attempt=attempt, rank=0)
                if attempt < self.grid.strikes and Path(waits).exists():
                    kinds = self.grid.kinds
                    self._strike(job, attempt, kinds[(attempt + number) % len(kinds)])
            time.sleep(0.5)

    def _refuse_lost(self) -> None:
        """Fail as soon as an element has ended that must still be disturbed."""
        for job in self.chain.jobs:
            state = self.cluster.state(job.job_id)
            struck = sum(job_id == job.job_id for job_id, _ in self.struck)
            lost = state in ENDED and (state != "COMPLETED" or struck < self.grid.strikes)
            assert not lost, (job.job_id, state, self.chain.log(job, 0).read_text()[-3000:])

    def _strike(self, job: Submitted, attempt: int, kind: str) -> None:
        began, before = time.monotonic(), self.restarts()
        strike(self.cluster, job.job_id, kind)
        while self.restarts()[job.job_id] == attempt:
            assert time.monotonic() - began < 150, f"{kind} of {job.job_id}: {self.state()}"
            time.sleep(0.3)
        if kind == "timeout":
            self.cluster.ask("scontrol", "update", f"JobId={job.job_id}", "TimeLimit=15")
        self.struck.append((job.job_id, kind))
        assert self.restarts() == {**before, job.job_id: attempt + 1}, "a sibling was restarted"
        print(f"{kind} of {job.job_id}: {time.monotonic() - began:.0f} s", flush=True)

    def restarts(self) -> dict[str, int]:
        """Return how often each element was started again."""
        return {job.job_id: self.cluster.restarts(job.job_id) for job in self.chain.jobs}

    def state(self) -> str:
        """Return Slurm's list of all jobs."""
        return self.cluster.ask("squeue", "-r", "-t", "all")


def await_all(cluster: Cluster, chain: Chain) -> None:
    """Wait until every element has ended successfully."""
    for job in chain.jobs:
        state = cluster.await_state(job.job_id, *ENDED, limit_s=LIMIT_S)
        assert state == "COMPLETED", (job.job_id, chain.log(job, 0).read_text()[-3000:])


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return inode and time of each result, which change if it is written again."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.name in ("summary.json", "metrics.jsonl") or path.suffix == ".pth":
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


def prove(cluster: Cluster, config: Path, folder: Path, grid: Grid) -> dict[str, int]:
    """Run the sweep undisturbed and disturbed, compare, and return the restarts of each element.

    Args:
        cluster: A running cluster.
        config: Config of a small detector.
        folder: Folder for all output.
        grid: The sweep and its disturbances.
    """
    marker = str(folder / "gate-{element}-{attempt}-{rank}")
    gates = {name: GATE.format(marker=marker, attempts=number)
             for name, number in (("whole", 0), ("struck", grid.strikes))}  # fmt: skip
    configs = {name: rich(config, folder / f"{name}-config", steps=1, workers=0, more=more)
               for name, more in gates.items()}  # fmt: skip
    struck = submit(grid.words(configs["struck"], folder / "struck"))
    striker = Striker(cluster, struck, grid, marker)
    striker.strike_all()
    whole = submit(grid.words(configs["whole"], folder / "whole"))
    for chain in (struck, whole):
        await_all(cluster, chain)
    restarts = striker.restarts()
    assert set(restarts.values()) == {grid.strikes}, restarts
    for job in struck.jobs:
        name = Path(job.experiment).name
        for stage in ("float", "qat"):
            if (folder / "whole" / name / stage).is_dir():
                compare(folder / "whole" / name / stage, folder / "struck" / name / stage)
    return restarts


def prove_done_once(cluster: Cluster, folder: Path, grid: Grid) -> None:
    """Submit the disturbed sweep of `prove` again: nothing of it may be done again."""
    before = files_of(folder / "struck")
    config = folder / "struck-config/rich.py"
    await_all(cluster, submit(grid.words(config, folder / "struck")))
    assert files_of(folder / "struck") == before, "finished work was done again"


def main() -> None:
    """Run it on a cluster of this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=["int8", "w4a8"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    given = parser.parse_args()
    grid = Grid(
        presets=given.presets, seeds=given.seeds, kinds=given.kinds, strikes=len(given.kinds)
    )
    with tempfile.TemporaryDirectory(prefix="slurm-sweep-") as name:
        folder = Path(name)
        digits = write_digits(
            folder / "digits", num_train=24, num_val=7, num_test=11, image_size=160, seed=3
        )
        config = folder / "tiny.py"
        base = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
        config.write_text(CONFIG.format(base=base, data_root=str(digits)))
        began = time.monotonic()
        with running_cluster() as cluster, surroundings(cluster, folder):
            restarts = prove(cluster, config, folder, grid)
            prove_done_once(cluster, folder, grid)
        print(f"{len(restarts)} elements, {sum(restarts.values())} restarts, all equal:"
              f" {time.monotonic() - began:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
