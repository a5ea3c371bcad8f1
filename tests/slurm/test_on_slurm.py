"""Jobs on a real Slurm: chains, time-outs, preemption, lost nodes, killed ranks, cancelling.

All jobs are submitted at the start and run in parallel, because a start of the launcher takes
seconds of processor time. Each test then checks its own jobs.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from slurm.record import Chain, chains
from tests.launcher.training.test_resume import compare, rich
from tests.slurm.cluster import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

GATE = """
custom_imports = dict(imports=['tests.slurm.gate'], allow_failed_imports=False)
custom_hooks = [dict(type='GateHook', step=2, marker={marker!r}, attempts={attempts})]
"""
LOST = """
custom_imports = dict(imports=['tests.launcher.failures.fault_hook'], allow_failed_imports=False)
custom_hooks = [
    dict(type='FaultHook', what={what!r}, rank=1, step=2, marker={marker!r}),
    # srun's SIGTERM reaches the other rank before it can notice the loss.
    dict(type='FaultHook', what='delay', rank=0, step=2, marker={marker!r} + '-0', argument=4),
]
"""
# Exists if Slurm held the job of the lost node after a launch that failed, which it counts too.
RELEASED = "released"
PROFILE = """
nodes = 2
tasks_per_node = 2
gpus_per_node = 2
cpus_per_task = 1
time = 15
signal_delay_s = 20
[stages.float]
nodes = 1
tasks_per_node = 1
[stages.eval]
nodes = 1
tasks_per_node = 1
"""
SMALL = ("--cpus-per-task", "1", "--signal-delay-s", "20", "--time", "15")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """The submitted jobs.

    Attributes:
        cluster: The cluster that runs them.
        folder: Has a folder for each chain.
        chains: Chains by a short name.
    """

    cluster: Cluster
    folder: Path
    chains: dict[str, Chain]

    def job(self, name: str, number: int = 0) -> str:
        return self.chains[name].jobs[number].job_id

    def log(self, name: str, number: int = 0, rank: int = 0) -> str:
        chain = self.chains[name]
        return chain.log(chain.jobs[number], rank).read_text()

    def ended_well(self, name: str, number: int = 0) -> None:
        state = self.cluster.await_state(
            self.job(name, number), "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", limit_s=550
        )
        assert state == "COMPLETED", self.log(name, number)[-3000:]

    def await_gate(self, name: str, attempt: int = 0, ranks: int = 1) -> None:
        """Wait until all ranks of an attempt wait at the gate."""
        end = time.monotonic() + 200
        markers = [self.folder / f"{name}-gate-{attempt}-{rank}" for rank in range(ranks)]
        while not all(marker.exists() for marker in markers):
            state = self.cluster.state(self.job(name))
            assert state in ("PENDING", "RUNNING", "COMPLETING"), (state, self.log(name)[-3000:])
            assert time.monotonic() < end, self.log(name)[-3000:]
            time.sleep(0.2)


def disturb(scene: Scene) -> None:
    """Requeue, preempt and take away a node, each as soon as its training waits at the gate."""
    cluster, job = scene.cluster, scene.job("frail")
    scene.await_gate("frail")
    cluster.ask("scontrol", "requeue", job)
    scene.await_gate("preempted")
    cluster.ask("sbatch", "-p", "high", "-o", "/dev/null", "--exclusive", "--wrap", "sleep 3")
    scene.await_gate("frail", attempt=1)
    cluster.ask("scontrol", "update", "NodeName=dqn4", "State=DOWN", "Reason=test")
    end = time.monotonic() + 60
    while cluster.state(job) == "RUNNING" and time.monotonic() < end:
        time.sleep(0.2)
    # A node that takes the job again while its former step still ends refuses a second copy of it,
    # and Slurm then drains the node and holds the job.
    end = time.monotonic() + 60
    while _has_a_step(job) and time.monotonic() < end:
        time.sleep(0.2)
    with contextlib.suppress(AssertionError):  # It may register by itself, then it is not down.
        cluster.ask("scontrol", "update", "NodeName=dqn4", "State=RESUME")
    if "held" in cluster.ask("squeue", "-h", "-o", "%r", "-j", job):
        cluster.ask("scontrol", "release", job)
        (scene.folder / RELEASED).touch()


def _has_a_step(job: str) -> bool:
    """Say whether a daemon of one of the job's steps is still there."""
    title = f"slurmstepd: [{job}.".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().startswith(title):
                return True
    return False


@pytest.fixture(scope="module")
def scene(
    cluster: Cluster,
    config: Path,
    float_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    """Submit everything."""
    folder = tmp_path_factory.mktemp("slurm")
    more = {"XDG_STATE_HOME": str(tmp_path_factory.getbasetemp() / "state"), "OMP_NUM_THREADS": "1"}
    more |= cluster.environ
    former = dict(os.environ)
    os.environ.update(more)
    submitted: dict[str, Chain] = {}

    def submit(name: str, *words: object) -> None:
        assert main(["submit", *map(str, words)]) == 0, name
        submitted[name] = chains()[-1]

    def qat(name: str, more: str, *options: str) -> None:
        path = rich(config, folder / f"{name}-config", steps=1, workers=0, more=more)
        words = ("qat", path, "--checkpoint", float_checkpoint, "--work-dir", folder / name)
        submit(name, *SMALL, *options, *words, "--device", "cpu")

    def gate(name: str, attempts: int = 1) -> str:
        marker = str(folder / f"{name}-gate-{{attempt}}-{{rank}}")
        return GATE.format(marker=marker, attempts=attempts)

    try:
        two = ("--tasks-per-node", "2")
        qat("timeout", gate("timeout"), *two, "--time", "3", "--signal-delay-s", "60")
        qat("preempted", gate("preempted"), "--partition", "low")
        qat("frail", gate("frail", attempts=2), "--partition", "frail")
        odd = folder / 'it\'s a "folder"'
        odd.mkdir()
        (odd / "a config.py").write_text(config.read_text())
        (folder / "cluster.toml").write_text(PROFILE)
        submit(
            "chain", "--cluster", folder / "cluster.toml", "--group", "it's mine",
            "run", odd / "a config.py", "--work-dir", odd / "o'k", "--device", "cpu",
        )  # fmt: skip
        # Later edits must not affect submitted jobs.
        (odd / "a config.py").write_text("nonsense(")
        for name, what in (("killed", "kill"), ("broken", "lose_gpu")):
            qat(name, LOST.format(what=what, marker=str(folder / f"{name}-at")), *two)
        (folder / "bad.pth").write_bytes(float_checkpoint.read_bytes()[:-2000])
        submit("bad", *SMALL, "run", config, "--checkpoint", folder / "bad.pth",
               "--work-dir", folder / "bad", "--device", "cpu")  # fmt: skip
        qat("whole-2", "", *two)
        qat("whole-1", "")
        # Occupies both nodes until it is cancelled, so it comes last, like its test.
        qat("cancelled", gate("cancelled"), "--nodes", "2", "--torchrun")
        made = Scene(cluster=cluster, folder=folder, chains=submitted)
        disturb(made)
        yield made
    finally:
        os.environ.clear()
        os.environ.update(former)


def test_preempted_training_goes_on_bit_for_bit(scene: Scene) -> None:
    scene.ended_well("preempted")
    assert scene.cluster.restarts(scene.job("preempted")) == 1
    assert "stopped by SIG" in scene.log("preempted")
    assert re.search(r"resumed from .*/step_3.pth", scene.log("preempted"))
    scene.ended_well("whole-1")
    compare(scene.folder / "whole-1/qat", scene.folder / "preempted/qat")


def test_requeue_and_lost_node_resume_from_periodic_checkpoint(scene: Scene) -> None:
    scene.ended_well("frail")
    failed_launches = int((scene.folder / RELEASED).exists())
    assert scene.cluster.restarts(scene.job("frail")) == 2 + failed_launches
    assert len(re.findall(r"resumed from .*/step_\d.pth", scene.log("frail"))) == 2
    scene.ended_well("whole-1")
    compare(scene.folder / "whole-1/qat", scene.folder / "frail/qat")


def test_timed_out_training_writes_a_checkpoint_and_goes_on_bit_for_bit(scene: Scene) -> None:
    scene.ended_well("timeout")
    said = scene.log("timeout")
    # Once for each warning; a slow machine is warned again.
    assert scene.cluster.restarts(scene.job("timeout")) == said.count("stopped by SIGUSR2")
    assert "stopped by SIGUSR2" in said
    assert re.search(r"resumed from .*/step_3.pth", said)
    scene.ended_well("whole-2")
    compare(scene.folder / "whole-2/qat", scene.folder / "timeout/qat")


@pytest.mark.parametrize("name", ["killed", "broken"])
def test_lost_rank_ends_its_job(scene: Scene, name: str) -> None:
    job = scene.job(name)
    state = scene.cluster.await_state(job, "FAILED", "COMPLETED", limit_s=300)
    assert state == "FAILED", scene.log(name)[-3000:]
    struck = float((scene.folder / f"{name}-at").read_text())
    shown = scene.cluster.ask("scontrol", "-o", "show", "job", job)
    if name == "killed":  # The job's text tells a death by this code.
        assert "ExitCode=137:0" in shown
    ended = time.mktime(time.strptime(re.findall(r"EndTime=(\S+)", shown)[0], "%Y-%m-%dT%H:%M:%S"))
    assert ended - struck < 60
    assert scene.cluster.processes(job) == []


def test_failing_calibration_cancels_what_follows(scene: Scene) -> None:
    states = [
        scene.cluster.await_state(scene.job("bad", number), "FAILED", "CANCELLED", "COMPLETED")
        for number in range(3)
    ]
    assert states == ["FAILED", "CANCELLED", "CANCELLED"]
    errors = [line for line in scene.log("bad").splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "bad.pth" in errors[0]


def test_chain_over_two_nodes_ends_with_the_table(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        scene.ended_well("chain", number)
    experiment = Path(scene.chains["chain"].jobs[0].experiment)
    table = (experiment / "results.md").read_text().strip()
    assert table in scene.log("chain", 3)
    assert re.search(r"\| mAP, % \| float +\| int8 calibrated +\| int8 QAT", table)
    summaries = {
        p.parent.name: json.loads(p.read_text()) for p in experiment.glob("*/summary.json")
    }
    assert [summaries[s]["world_size"] for s in ("float", "calibrated", "qat")] == [1, 1, 4]
    assert summaries["calibrated"]["parent"] == summaries["float"]["sha256"]
    assert summaries["qat"]["parent"] == summaries["calibrated"]["sha256"]
    assert summaries["eval"]["parent"] == summaries["qat"]["sha256"]
    assert summaries["eval"]["range_digest"] == summaries["qat"]["range_digest"]
    logs = [(experiment / f"logs/rank_{rank}.log").read_text() for rank in range(4)]
    proofs = [re.findall(r"digest (\w{16})", log) for log in logs]
    assert proofs[0][-len(proofs[3]) :] == proofs[1] == proofs[2] == proofs[3] != []
    # Two tasks on each node; each sees all GPUs and chooses by local rank.
    tasks = [re.findall(r"task \d of 4 on (\w+), local (\d), GPUs (\S+),",
                        scene.log("chain", 2, rank)) for rank in range(4)]  # fmt: skip
    assert tasks == [[(f"dqn{n}", str(i), "0,1")] for n in (1, 2) for i in (0, 1)]
    assert "GPUs 0," in scene.log("chain", 1)
    assert main(["jobs", scene.chains["chain"].name]) == 0
    listed = capsys.readouterr().out
    assert re.search(r"qat +COMPLETED +dqn\[1-2\] .* mAP \d", listed)
    assert main(["logs", f"{scene.chains['chain'].name}:qat", "--rank", "3", "--follow"]) == 0
    assert "task 3 of 4" in capsys.readouterr().out


def test_text_of_a_job_is_what_dry_run_prints(scene: Scene) -> None:
    chain = scene.chains["chain"]
    text = Path(chain.folder, "jobs", f"{chain.jobs[2].job_id}_submission.sh").read_text()
    assert f"#SBATCH --dependency=afterok:{chain.jobs[1].job_id}\n" in text
    assert "#SBATCH --gpus-per-node=2\n" in text
    calibrate = Path(chain.folder, "jobs", f"{chain.jobs[1].job_id}_submission.sh").read_text()
    assert "#SBATCH --gpus-per-node=1\n" in calibrate
    assert "#SBATCH --nodes=1\n" in calibrate


def test_what_slurm_refuses_is_one_line(scene: Scene, launch: Any, config: Path) -> None:
    for option, value, mend in (
        ("--partition", "nowhere", "sinfo -s"),
        ("--nodes", "9", "--nodes"),
        ("--gpus-per-node", "7", "fewer"),
        ("--constraint", "h200", "--constraint"),
        ("--time", "9-0", "--time"),
    ):
        words = (
            "submit",
            "--time",
            "30",
            option,
            value,
            "run",
            config,
            "--work-dir",
            scene.folder / "refused",
        )
        code, _, err = launch(*words)
        lines = [line for line in err.splitlines() if line.strip()]
        assert code == 2, (option, err)
        assert len(lines) == 1, err
        assert lines[0].startswith("error: Slurm refuses")
        assert mend in lines[0]
    with contextlib.suppress(AssertionError):
        assert "refused" not in scene.cluster.ask("squeue", "-h", "-o", "%j")


def test_cancelled_job_leaves_no_process_and_stays_cancelled(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    scene.await_gate("cancelled", ranks=2)
    job = scene.job("cancelled")
    assert len(scene.cluster.processes(job)) > 4
    assert main(["cancel", scene.chains["cancelled"].name]) == 0
    assert job in capsys.readouterr().out
    scene.cluster.await_state(job, "CANCELLED", limit_s=60)
    assert scene.cluster.processes(job) == []
    assert scene.cluster.restarts(job) == 0
    assert main(["cancel", job]) == 0
    assert "ended already" in capsys.readouterr().out
