"""How `jobs` and `cancel` read Slurm's output, for arrays and for jobs Slurm has forgotten."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from slurm.end import write_end
from slurm.record import Chain, Submitted
from slurm.state import cancel_chain, states

FORGOTTEN = "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chain:
    (tmp_path / "jobs").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    tool(tmp_path, "sacct", "exit 1")
    tool(tmp_path, "scancel", f'echo "$@" > {tmp_path}/cancelled')
    jobs = tuple(
        Submitted(job_id=f"7_{n}", name="sweep", label=f"e{n}", words=("run",), experiment="",
                  stage="", tasks=1)
        for n in range(3)
    )  # fmt: skip
    return Chain(name="c", executor="slurm", folder=str(tmp_path), created=0.0, jobs=jobs)


def tool(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_each_element_has_its_own_state(chain: Chain, tmp_path: Path) -> None:
    tool(tmp_path, "squeue", "echo '7_0|RUNNING|n1|0:10'; echo '7_2|PENDING|(Priority)|0:00'")
    write_end(tmp_path / "jobs", "7_1", 0, 1)
    found = {number: state.name for number, state in states(chain).items()}
    assert found == {"7_0": "RUNNING", "7_1": "COMPLETED", "7_2": "PENDING"}
    assert cancel_chain(chain) == ["7_0", "7_2"]
    assert (tmp_path / "cancelled").read_text().split() == ["7_2", "7_0"]


def test_forgotten_jobs_have_ended(chain: Chain, tmp_path: Path) -> None:
    tool(tmp_path, "squeue", FORGOTTEN)
    assert {state.name for state in states(chain).values()} == {"GONE"}
    assert cancel_chain(chain) == []


def test_a_controller_that_does_not_answer_ends_nothing(chain: Chain, tmp_path: Path) -> None:
    tool(tmp_path, "squeue", "echo 'slurm_load_jobs error: Unable to contact' >&2; exit 1")
    assert {state.name for state in states(chain).values()} == {"UNKNOWN"}
    tool(tmp_path, "scancel", "echo 'scancel: error: Unable to contact' >&2; exit 1")
    with pytest.raises(RuntimeError, match="Unable to contact; `scontrol ping`"):
        cancel_chain(chain)
    tool(tmp_path, "scancel", "echo 'scancel: error: Invalid job id 7_0' >&2; exit 1")
    assert cancel_chain(chain) == ["7_0", "7_1", "7_2"]


def test_cancelling_without_slurm_is_said(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scancel").unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="scancel cannot be run: No such file or directory; "):
        cancel_chain(chain)

    def hangs(words: list[str], timeout: float, **others: object) -> None:
        raise subprocess.TimeoutExpired(words, timeout)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(RuntimeError, match="scancel did not answer within 60 s"):
        cancel_chain(chain)
