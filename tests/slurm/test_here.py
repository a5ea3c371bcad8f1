"""``submit --cluster local``: output on the terminal, Ctrl-C, and what `jobs` shows meanwhile."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import follow
from slurm.here import _gpus, _handled, print_result
from slurm.own_process import is_of_this_host, pid_of, process_name, this_process
from slurm.placeless import rank_variables_removed
from slurm.record import Chain, Submitted
from slurm.state import State, states
from tests.launcher.conftest import ROOT, Launch
from tests.launcher.training.test_resume import rich

GATE = """
custom_imports = dict(imports=['tests.slurm.gate'], allow_failed_imports=False)
custom_hooks = [dict(type='GateHook', step=2, marker={marker!r})]
"""


class Terminal:
    """A process on its own terminal, whose output is recorded."""

    def __init__(self, *words: object, environ: dict[str, str]) -> None:
        self.pid, self._file = pty.fork()
        self.shown = ""
        if self.pid == 0:
            os.chdir(ROOT)
            # Tests in the background ignore this signal, and their child processes inherit that.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            command = [sys.executable, "-m", "launcher", *map(str, words)]
            os.execve(sys.executable, command, {**os.environ, **environ})

    def press(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def read(self, limit_s: float) -> None:
        """Read available output, waiting at most ``limit_s``."""
        if select.select([self._file], [], [], limit_s)[0]:
            try:
                self.shown += os.read(self._file, 65536).decode(errors="replace")
            except OSError:  # The other end is closed.
                time.sleep(0.05)

    def wait(self, limit_s: float = 120.0) -> int:
        """Return the exit code."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self.read(0.2)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.read(0.2)
                return os.waitstatus_to_exitcode(status)
        os.kill(self.pid, signal.SIGTERM)
        raise AssertionError(f"still at work: {self.shown[-3000:]}")


def states_shown(text: str) -> dict[str, str]:
    return dict(re.findall(r"^ +(?:\d+ )? *(float|calibrate|qat|eval) +(\w+)", text, re.MULTILINE))


@pytest.mark.slow
def test_ctrl_c_stops_the_job_with_a_checkpoint_and_without_a_traceback(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    marker = tmp_path / "gate"
    path = rich(config, tmp_path, steps=0, workers=0, more=GATE.format(marker=str(marker)))
    stale = {"SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "RANK": "3"}
    terminal = Terminal(
        "submit", "--cluster", "local", "run", path, "--work-dir", tmp_path / "work",
        "--device", "cpu", environ={**stale, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    end = time.monotonic() + 120
    while not marker.exists():
        assert time.monotonic() < end, terminal.shown
        terminal.read(0.2)
    _, out, _ = launch("jobs")
    assert states_shown(out) == {
        "float": "RUNNING", "calibrate": "PENDING", "qat": "PENDING", "eval": "PENDING"
    }  # fmt: skip
    code, _, err = launch("logs", f"{out.split()[0]}:qat")
    assert code == 2
    assert "has not begun (it is PENDING)" in err
    terminal.press(b"\x03")
    assert terminal.wait() == 75, terminal.shown
    assert "Traceback" not in terminal.shown
    assert terminal.shown.count("float: stopped by a signal; submit again to continue") == 1
    assert (tmp_path / "work/float/step_3.pth").is_file()
    _, out, _ = launch("jobs")
    assert states_shown(out) == {
        "float": "STOPPED", "calibrate": "CANCELLED", "qat": "CANCELLED", "eval": "CANCELLED"
    }  # fmt: skip
    _, out, _ = launch("cancel", out.split()[0])
    assert "ended already" in out


@pytest.mark.slow
def test_the_error_of_a_job_is_one_line_on_the_terminal(config: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"nothing")
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "submit", "--cluster", "local", "calibrate",
         str(config), "--checkpoint", str(bad), "--work-dir", str(tmp_path / "work"),
         "--device", "cpu", "--wandb", "disabled"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path / "state"), "WORLD_SIZE": "4"},
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "bad.pth" in lines[0]
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr + done.stdout


def test_results_and_errors_are_found_in_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log"
    noise = [
        "submitit INFO (2026-11-28 10:00:00,1) - Starting with JobEnvironment(job_id=3)",
        "W1128 10:00:00.1 12 torch/distributed/run.py:1] ",
        "*" * 41,
        "10:00:00 I checkpoint qat/epoch_1.pth",
    ]
    table = ["", "| mAP, % | float |", "| ------ | ----- |", "| tiny   | 50.0  |"]
    log.write_text("\n".join([*noise[:3], *table, *noise[3:]]))
    print_result("eval", log, 0)
    assert capsys.readouterr() == ("\n".join(table) + "\n", "")
    log.write_text("\n".join([*noise, "error: no room", "Traceback (most recent call last):"]))
    print_result("qat", log, 1)
    assert capsys.readouterr() == ("", "error: qat: no room\n")
    log.write_text("Segmentation fault\n")
    print_result("qat", log, 139)
    assert capsys.readouterr().err == (
        f"error: qat: ended with exit code 139; its log says why: {log}\n"
    )
    print_result("qat", tmp_path / "none", 75)
    assert "stopped by a signal; submit again" in capsys.readouterr().err


def test_a_closed_terminal_ends_the_job_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The waiting process forwards the signal; that it can no longer print is no error."""
    with _handled() as stop, subprocess.Popen(["sleep", "60"], start_new_session=True) as job:
        stop.process = job  # type: ignore[assignment]
        with monkeypatch.context() as closed:
            closed.setattr("os.write", lambda *_: (_ for _ in ()).throw(OSError(5, "gone")))
            os.kill(os.getpid(), signal.SIGHUP)
        assert job.wait(timeout=20) == -signal.SIGTERM
        assert stop.asked == "SIGHUP"
    with monkeypatch.context() as closed:
        closed.setattr("builtins.print", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "gone")))
        print_result("qat", tmp_path / "none", 75)


def test_signals_ignored_by_nohup_stay_ignored() -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with _handled() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop.asked is None
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_reused_pid_is_another_process() -> None:
    me = this_process()
    assert pid_of(me) == os.getpid()
    assert pid_of(f"{me}0") is None
    assert pid_of("elsewhere" + me[me.index(":") :]) is None
    assert not is_of_this_host("elsewhere:1:2")
    with subprocess.Popen(["true"]) as ended:
        name = process_name(ended.pid)
    assert pid_of(name) is None
    assert pid_of("") is None


def test_waiting_stages_are_cancelled_when_no_process_would_start_them(tmp_path: Path) -> None:
    waiting = Submitted(
        job_id="", name="qat", label="", words=("qat",), experiment="", stage="qat", tasks=1
    )
    for process, wanted in ((this_process(), "PENDING"), (f"{this_process()}0", "CANCELLED")):
        chain = Chain(
            name="c", executor="local", folder=str(tmp_path), created=0.0, jobs=(waiting,),
            process=process,
        )  # fmt: skip
        assert states(chain)[""].name == wanted


def test_waiting_for_a_job_whose_record_is_removed_ends_with_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = Submitted(
        job_id="", name="qat", label="", words=("qat",), experiment="", stage="qat", tasks=1
    )
    chain = Chain(
        name="c", executor="local", folder=str(tmp_path), created=0.0, jobs=(waiting,),
        process=this_process(),
    )  # fmt: skip
    found = iter(["PENDING", "PENDING", "CANCELLED"])
    monkeypatch.setattr(follow, "states", lambda chain: {"": State(name=next(found))})
    monkeypatch.setattr(follow, "chains", list)
    monkeypatch.setattr(follow, "PAUSE_S", 0.0)
    assert follow.await_begin(chain, waiting) == (chain, waiting)


def test_the_number_of_chains_to_list_is_at_least_one(launch: Launch) -> None:
    for number in ("0", "-3"):
        code, out, err = launch("jobs", f"--last={number}")
        assert (code, out) == (2, "")
        assert f"--last is {number}; give a whole number of at least 1" in err


def test_a_job_is_no_task_of_the_allocation_it_is_submitted_from() -> None:
    place = {
        "SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURMD_NODENAME": "n1", "SLURM_NTASKS": "4",
        "SLURM_RESTART_COUNT": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "n1",
        "TORCHELASTIC_RUN_ID": "x", "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1",
        "SUBMITIT_EXECUTOR": "slurm",
    }  # fmt: skip
    kept = {"SLURM_CONF": "/etc/x", "SLURM_JWT": "y", "SBATCH_ACCOUNT": "mine", "HOME": "/h"}
    assert rank_variables_removed({**place, **kept}) == kept


def test_a_local_job_uses_the_gpus_of_its_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert (_gpus(0), _gpus(2)) == ("", "0,1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6")
    assert (_gpus(0), _gpus(2)) == ("", "3,5")
