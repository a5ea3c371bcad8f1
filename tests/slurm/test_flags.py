"""Every flag of a command reaches every job that it applies to."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import COMMANDS, build_parsers, parse
from slurm.plan import COMPUTING, Element
from slurm.profile import Profile
from slurm.task import task_of
from tests.launcher.conftest import ROOT, Launch

CONFIG = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
PARSERS = build_parsers()[1]
CHAIN = ("train", "calibrate", "qat", "eval")
# Flags that the plan of the chain sets itself, and why a job with them does not get the user's.
NOT_HANDED_ON = {
    "work_dir": "absolute in every job",
    "fresh": "--reuse and --resume are left out",
    "checkpoint": "each job begins from the one before",
    "trust_checkpoint": "",
}
SAMPLES: dict[str, list[str]] = {
    "cfg_options": ["optimizer.lr=0.3", "data.samples_per_gpu=2"],
    "wandb": ["online"],
    "sync_bn": ["node"],
    "device": ["cuda:1"],
    "resume": [],
}


def flags(command: str) -> list[argparse.Action]:
    """Return the command's flags, each once."""
    found: dict[str, argparse.Action] = {}
    for action in PARSERS[command]._actions:
        if action.option_strings and action.dest not in ("help", *NOT_HANDED_ON):
            found.setdefault(action.dest, action)
    return list(found.values())


def said(action: argparse.Action) -> list[str]:
    """Return a flag with a value that differs from its default."""
    if action.nargs == 0:
        return [action.option_strings[0]]
    value = SAMPLES.get(action.dest, ["3" if action.type in (int, float) else "a,b"])
    return [action.option_strings[0], *value]


def jobs(out: str) -> dict[str, argparse.Namespace]:
    """Return the jobs' parsed arguments from a dry run, by command."""
    lines = re.findall(r"^# launcher (.*)$", out, re.MULTILINE)
    return {words[0]: parse(words) for words in map(shlex.split, lines)}


@pytest.mark.parametrize("action", flags("run"), ids=lambda action: action.dest)
def test_a_flag_of_the_chain_reaches_each_job_that_has_it(
    launch: Launch, tmp_path: Path, action: argparse.Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.commands.cluster.submit._check", lambda order: [])
    given = said(action)
    code, out, err = launch("submit", "--dry-run", "run", CONFIG, *given)
    assert code == 0, err
    wanted: Any = getattr(parse(["run", CONFIG, *given]), action.dest)
    assert wanted != action.default
    found = jobs(out)
    assert set(found) == set(CHAIN)
    has = {name for name in CHAIN if any(a.dest == action.dest for a in PARSERS[name]._actions)}
    assert has
    # Calibration is a job of one rank, so its number does not matter.
    concerned = {"qat"} if action.dest == "calibration_rank" else has
    for name in concerned:
        assert getattr(found[name], action.dest) == wanted, name


@pytest.mark.parametrize("action", flags("run"), ids=lambda action: action.dest)
def test_a_flag_of_the_chain_reaches_a_sweep(
    launch: Launch, action: argparse.Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    if action.dest == "seed":
        return  # It has --seeds.
    monkeypatch.setattr("launcher.commands.cluster.submit._check", lambda order: [])
    given = said(action)
    words = ("--presets", "int8", "w4a8", "--seeds", "4", *given)
    code, out, err = launch("submit", "--dry-run", "sweep", CONFIG, *words)
    assert code == 0, err
    wanted = getattr(parse(["run", CONFIG, *given]), action.dest)
    found = jobs(out)
    assert set(found) == {"train", "run"}
    for name, job in found.items():
        if action.dest in ("calibration_rank", "control") and name == "train":
            continue
        value = getattr(job, action.dest)
        if action.dest == "cfg_options" and name == "run":
            value = [v for v in value if not v.startswith("quant.preset=")]
        assert value == wanted, name
        assert job.seed == 4


def test_checkpoint_and_trust_reach_those_that_read_it(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.commands.cluster.submit._check", lambda order: [])
    words = ("--checkpoint", "f.pth", "--trust-checkpoint", "--fresh")
    code, out, err = launch("submit", "--dry-run", "run", CONFIG, *words)
    assert code == 0, err
    found = jobs(out)
    assert set(found) == {"calibrate", "qat", "eval"}
    assert found["calibrate"].checkpoint == str(Path("f.pth").absolute())
    assert all(job.trust_checkpoint for job in found.values())
    assert not any(getattr(job, "reuse", False) for job in found.values())
    assert found["qat"].resume is None
    code, out, err = launch("submit", "--dry-run", "sweep", CONFIG, *words[:3])
    assert code == 0, err
    assert jobs(out)["run"].trust_checkpoint


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_the_checkpoint_of_one_training_is_not_passed_to_several(
    launch: Launch, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.commands.cluster.submit._check", lambda order: [])
    code, _, err = launch("submit", "--dry-run", command, CONFIG, "--resume", "epoch_1.pth")
    assert code == 2
    assert "submit train ... --resume FILE.pth" in err


SHOWN = {
    "partition": "#SBATCH --partition=3",
    "account": "#SBATCH --account=3",
    "qos": "#SBATCH --qos=3",
    "constraint": "#SBATCH --constraint=3",
    "time": "#SBATCH --time=7",
    "nodes": "#SBATCH --nodes=3",
    "gpus_per_node": "#SBATCH --gpus-per-node=3",
    "tasks_per_node": "#SBATCH --ntasks-per-node=3",
    "cpus_per_task": "#SBATCH --cpus-per-task=3",
    "mem_gb": "#SBATCH --mem=3GB",
    "signal_delay_s": "#SBATCH --signal=USR2@33",
    "parallel": "#SBATCH --array=0-1%1",
    "group": "WANDB_RUN_GROUP:-3}",
}
# These do not appear in a job's text.
ELSEWHERE = ("help", "debug", "cluster", "torchrun", "include", "dry_run", "max_restarts")


@pytest.mark.parametrize(
    "action",
    [a for a in PARSERS["submit"]._actions if a.option_strings and a.dest not in ELSEWHERE],
    ids=lambda action: action.dest,
)
def test_a_flag_of_the_submission_reaches_the_job_s_text(
    launch: Launch, action: argparse.Action, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.commands.cluster.submit._check", lambda order: [])
    value = {"signal_delay_s": "33", "time": "7", "parallel": "1"}.get(action.dest, "3")
    sweep = ("sweep", CONFIG, "--seeds", "0", "1")
    code, out, err = launch("submit", "--dry-run", action.option_strings[0], value, *sweep)
    assert code == 0, err
    assert SHOWN[action.dest] in out


@pytest.mark.parametrize("command", COMPUTING)
@pytest.mark.parametrize(
    ("own", "wanted"), [((), 3), (("--threads", "5"), 5), (("--threads=5",), 5)]
)
def test_a_rank_s_cpus_are_its_threads_unless_others_are_asked_for(
    command: str, own: tuple[str, ...], wanted: int
) -> None:
    words = (command, CONFIG, "--checkpoint", "f.pth", *own)
    words = words[:2] + own if command == "train" else words
    words += ("--max-drop", "1") if command == "quantize" else ()
    element = Element(words=words, experiment=Path("/r"))
    assert parse(task_of(element, Profile(cpus_per_task=3)).words).threads == wanted
    assert parse(task_of(element, Profile()).words).threads == (wanted if own else None)
    data = Element(words=("data", "digits"), experiment=Path("/r"))
    assert task_of(data, Profile(cpus_per_task=3)).words == ("data", "digits")


def test_commands_that_compute_take_threads() -> None:
    having = {
        name for name in COMMANDS
        if any(action.dest == "threads" for action in PARSERS[name]._actions)
    }  # fmt: skip
    # bench times on one thread unless asked, however many a job has.
    assert having - {"bench"} == set(COMPUTING)
