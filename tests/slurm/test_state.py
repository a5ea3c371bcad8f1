"""How `jobs` and `cancel` find submissions, and read Slurm's output about them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from slurm import index
from slurm.end import write_end
from slurm.record import Chain, Submitted, chains, find_chain, keep
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


SUBMITS = """
import sys, time
from pathlib import Path
from slurm.record import Chain, keep
folder = Path(sys.argv[1])
mine = [folder / f"{sys.argv[2]}-{n}" for n in range(5)]
for path in mine:
    path.mkdir()
(folder / f"ready-{sys.argv[2]}").touch()
while not (folder / "go").exists():
    time.sleep(0.001)
for path in mine:
    keep(Chain(name=path.name, executor="slurm", folder=str(path), created=1.0, jobs=()))
"""


def test_submissions_at_the_same_moment_are_all_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    words = [sys.executable, "-c", SUBMITS, str(tmp_path)]
    processes = [subprocess.Popen([*words, str(number)]) for number in range(8)]
    while len(list(tmp_path.glob("ready-*"))) < len(processes):
        assert all(process.poll() is None for process in processes)
    (tmp_path / "go").touch()
    assert [process.wait(60) for process in processes] == [0] * len(processes)
    assert {c.name for c in chains()} == {f"{n}-{k}" for n in range(8) for k in range(5)}


def submitted(folder: Path, created: float) -> Chain:
    folder.mkdir()
    chain = Chain(name=folder.name, executor="slurm", folder=str(folder), created=created, jobs=())
    keep(chain)
    return chain


def test_the_index_of_an_earlier_version_is_read_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "old"))
    first, second = submitted(tmp_path / "a", 1.0), submitted(tmp_path / "b", 2.0)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "new"))
    (tmp_path / "new/dq-launcher").mkdir(parents=True)
    lines = f"{first.folder}\n{second.folder}\n"
    (tmp_path / "new/dq-launcher/chains").write_text(lines)
    assert chains() == [first, second]
    third = submitted(tmp_path / "c", 3.0)
    keep(second)
    assert chains() == [first, second, third]
    assert find_chain("b", chains()) == second


def test_the_index_forgets_the_oldest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(index, "KEPT", 2)
    kept = [submitted(tmp_path / name, number) for number, name in enumerate("abc")]
    assert chains() == kept[1:]


def test_jobs_are_submitted_where_no_index_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "state").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    submitted(tmp_path / "mine", 1.0)
    assert (tmp_path / "mine/chain.json").is_file()
    assert "`launcher jobs` will not list mine: " in caplog.text
    assert chains() == []
