"""Every command on a login node: it works, or one line names the missing package."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from dq.tracking.record.run import Run, write_run
from dq.tracking.record.stage_summary import StageSummary, read_summary
from launcher.cli import COMMANDS
from tests.launcher.conftest import ROOT
from tests.slurm.login_node import login

CONFIG = ROOT / "configs/digits/ssd_resnet_fpn_160.py"
# The first package that each command needs in addition to submitit; the others work.
NEEDS = {
    "train": "torch",
    "calibrate": "torch",
    "quantize": "torch",
    "qat": "torch",
    "eval": "torch|mmcv-full",
    "analyze": "torch",
    "export": "torch",
    "bench": "torch",
    "run": "torch",
    "init": "Pillow",
    "data": "Pillow",
    "coverage": "numpy",
    "completion": "shtab",
}
WORDS = {
    "bench": ("m.onnx",),
    "init": ("photos",),
    "data": ("digits", "--folder", "d"),
    "coverage": ("--families", "ssd"),
    "quantize": (CONFIG, "--checkpoint", "f.pth", "--max-drop", "1"),
    "train": (CONFIG,),
    "run": (CONFIG,),
    "completion": ("bash",),
}
SENT = ("sync", "compare", "doctor", "configs", "submit", "jobs", "logs", "cancel")


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with one finished experiment and an unsent W&B run."""
    folder = tmp_path / "runs"
    for stage in ("float", "qat"):
        write_run(folder / "tiny" / stage, Run(id="a", experiment="tiny", stage=stage))
        summary = StageSummary(stage=stage, key="k", metric="mAP", value=0.5)
        (folder / "tiny" / stage / "summary.json").write_text(json.dumps(asdict(summary)))
        assert read_summary(folder / "tiny" / stage) is not None
    offline = folder / "tiny/float/wandb/offline-run-1-a"
    offline.mkdir(parents=True)
    (offline / "run-a.wandb").touch()
    return folder


@pytest.mark.parametrize("command", ["", *COMMANDS, "data digits", "submit sweep", "submit qat"])
def test_help_needs_nothing(tmp_path: Path, command: str) -> None:
    done = login(tmp_path, *command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: launcher")


def test_every_command_is_listed() -> None:
    assert {*NEEDS, *SENT} == set(COMMANDS)


@pytest.mark.parametrize("command", [*NEEDS, "CONFIG"])
def test_a_missing_package_is_named(tmp_path: Path, command: str) -> None:
    (tmp_path / "f.pth").touch()
    words = WORDS.get(command, (CONFIG, "--checkpoint", "f.pth"))
    given = (CONFIG,) if command == "CONFIG" else (command, *words)
    done = login(tmp_path, *given)
    assert done.returncode == 2, done.stderr
    line = rf"error: `launcher {command}` needs the package ({NEEDS.get(command, 'torch')}), .*\n"
    assert re.fullmatch(line, done.stderr)
    assert not (tmp_path / "runs").exists()


def test_experiments_are_compared(tmp_path: Path, runs: Path) -> None:
    wanted = ("--markdown", "x.md", "--csv", "x.csv", "--json", "x.json")
    done = login(tmp_path, "compare", runs, *wanted)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^tiny .* 50\.00 .* finished$", done.stdout, re.MULTILINE)
    assert all((tmp_path / name).is_file() for name in wanted[1::2])
    for option, package in ((("--html", "x.html"), "matplotlib|numpy"), (("--report",), "report")):
        done = login(tmp_path, "compare", runs, *option)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert re.search(package, done.stderr)


def test_the_doctor_says_what_is_missing(tmp_path: Path) -> None:
    done = login(tmp_path, "doctor")
    assert done.returncode == 1, done.stderr
    assert re.search(
        r"^fail  torch       the package torch is missing; ", done.stdout, re.MULTILINE
    )
    assert re.search(r"^(ok|warn)  +cpus ", done.stdout, re.MULTILINE)


def test_sync_needs_wandb_only_with_runs_to_send(tmp_path: Path, runs: Path) -> None:
    done = login(tmp_path, "sync", runs)
    assert done.returncode == 2
    assert re.fullmatch(r"error: `launcher sync` needs the package wandb, .*\n", done.stderr)
    assert login(tmp_path, "sync", runs / "tiny/qat").stdout == "nothing to send\n"


@pytest.mark.parametrize("job", [c for c in COMMANDS if c not in SENT[4:]] + ["sweep"])
def test_every_command_is_submitted(tmp_path: Path, job: str) -> None:
    """A fake sbatch accepts the submission, and `jobs` and the others know it."""
    (tmp_path / "f.pth").touch()
    words = WORDS.get(job, (CONFIG, "--checkpoint", "f.pth"))
    words = {
        "compare": (),
        "sync": (),
        "doctor": (),
        "configs": (),
        "sweep": (CONFIG, "--presets", "int8", "w4a8"),
    }.get(job, words)
    done = login(tmp_path, "submit", "--dry-run", "--cluster", "a100", job, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("#!/bin/bash") == {"run": 4, "sweep": 2}.get(job, 1)
    assert not (tmp_path / "runs").exists()


def test_jobs_are_submitted_listed_read_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = {
        "sbatch": "echo Submitted batch job 7",
        "srun": "",
        "squeue": "echo '7|PENDING|Priority|0:00'",
        "scancel": f'echo "$@" > {tmp_path}/cancelled',
    }
    for name, text in tools.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    done = login(tmp_path, "submit", "train", CONFIG, "--work-dir", tmp_path / "work")
    assert done.returncode == 0, done.stderr
    assert "torch and mmdet are not installed here" in done.stdout
    assert re.search(
        r"^ +7 +train +PENDING +Priority", login(tmp_path, "jobs").stdout, re.MULTILINE
    )
    log = next((tmp_path / "work/submissions").glob("*/jobs")) / "7_0_log.out"
    log.write_text("it runs\n")
    assert login(tmp_path, "logs", "7").stdout == "it runs\n"
    assert "cancelled 7" in login(tmp_path, "cancel", "7").stdout
    assert (tmp_path / "cancelled").read_text().split() == ["7"]
