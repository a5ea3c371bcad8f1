"""How a restarted job is told apart from a new one."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dq.dist.rendezvous.restarts import is_known_agent, restart_counted, torchrun_agent
from tests.launcher.conftest import ROOT


@pytest.mark.parametrize("name", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_counts_of_torchrun_and_slurm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "0")
    assert not restart_counted()
    monkeypatch.setenv(name, "2")
    assert restart_counted()


def test_processes_of_one_parent_have_one_agent_and_only_under_torchrun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = [
        sys.executable,
        "-c",
        "from dq.dist.rendezvous.restarts import torchrun_agent; print(torchrun_agent())",
    ]

    def ask() -> str:
        return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout

    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert ask() == "None\n"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job")
    first, second = ask(), ask()
    assert first == second
    assert first.count(":") == 2
    assert torchrun_agent() != first.strip()  # This process has another parent.


def test_a_checkpoint_of_another_torchrun_is_not_this_jobs() -> None:
    assert is_known_agent(["a:1:5", None], ["b:2:6", "a:1:5"])
    assert not is_known_agent(["a:1:7", None], ["b:2:6", "a:1:5"])
    assert not is_known_agent([None], [])
