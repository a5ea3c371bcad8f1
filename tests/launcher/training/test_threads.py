"""The number of threads of a rank: the user's setting, but not the 1 that torchrun sets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dq.dist.rendezvous.environment import Environment
from launcher.threads import threads_of, wanted_by_user

OF_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    ("environ", "starter", "wanted"),
    [
        ({}, {"A": "1"}, None),
        ({"OMP_NUM_THREADS": "3"}, {}, "3"),
        ({"OMP_NUM_THREADS": ""}, {}, None),
        (OF_TORCHRUN, {"A": "1"}, None),
        (OF_TORCHRUN, {"OMP_NUM_THREADS": "1"}, "1"),
        ({**OF_TORCHRUN, "OMP_NUM_THREADS": "2"}, {"OMP_NUM_THREADS": "2"}, "2"),
        # If the environment of the parent cannot be read, the variable counts.
        (OF_TORCHRUN, {}, "1"),
    ],
)
def test_the_users_word_counts(
    environ: dict[str, str], starter: dict[str, str], wanted: str | None
) -> None:
    assert wanted_by_user(environ, starter) == wanted


def test_the_flag_goes_first_then_the_variable_then_a_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "7,2")
    assert threads_of(3, Environment()) == 3
    assert threads_of(None, Environment()) == 7
    monkeypatch.delenv("OMP_NUM_THREADS")
    cores = len(os.sched_getaffinity(0))
    assert threads_of(None, Environment()) == cores
    assert threads_of(None, Environment(world_size=1000, local_world_size=1000)) == 1


@pytest.mark.parametrize("value", ["0", "-1", "many", "1.5"])
def test_what_is_no_number_of_threads_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    with pytest.raises(ValueError, match=f"OMP_NUM_THREADS is {value}; give a whole number"):
        threads_of(None, Environment())
    with pytest.raises(ValueError, match="--threads is 0"):
        threads_of(0, Environment())


SAY = (
    "import os; from dq.proc import environ_of; from launcher.threads import wanted_by_user;"
    "line = f'wanted {wanted_by_user(os.environ, environ_of(os.getppid()))}\\n';"
    # In one write, because two ranks share the file.
    "os.write(1, line.encode())"
)


@pytest.mark.slow
@pytest.mark.parametrize(("given", "wanted"), [(None, "None"), ("1", "1"), ("2", "2")])
def test_under_torchrun(given: str | None, wanted: str, tmp_path: Path) -> None:
    (tmp_path / "say.py").write_text(SAY)
    environ = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[3])
    if given is not None:
        environ["OMP_NUM_THREADS"] = given
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(tmp_path / "say.py")]
    found = subprocess.run(
        command, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.count(f"wanted {wanted}\n") == 2
