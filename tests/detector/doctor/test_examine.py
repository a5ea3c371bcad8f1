"""A check that crashes, hangs or raises is one line, and the others run all the same."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dq.detector.doctor import hardware, machine, packages, services
from dq.detector.doctor.examine import CHECKS, examine
from dq.detector.doctor.finding import FAIL, OK, WARN, Finding, good


def crash() -> Finding:
    faulthandler.disable()  # Pytest's would print this wanted end of a child.
    os.abort()


def hang() -> Finding:
    time.sleep(1000)
    return good("")


def broken() -> Finding:
    raise RuntimeError("two\nlines")


def missing() -> Finding:
    import nowhere_to_be_found  # type: ignore[import-not-found]  # noqa: F401

    return good("")


def leave() -> Finding:
    sys.exit(3)


def quit_at_once() -> Finding:
    os._exit(7)


def noisy() -> Finding:
    print("noise")
    os.system("echo noise; echo noise >&2")
    return good("quiet")


def test_nothing_that_a_check_does_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    bad = (crash, hang, broken, missing, leave, quit_at_once, noisy)
    checks: dict[str, Callable[[], Finding]] = {}
    for check in bad:
        checks[check.__name__] = check
        checks[f"after {check.__name__}"] = lambda: good("here")
    found = dict(examine(checks, limit_s=2.0))
    assert list(found) == list(checks)
    assert all(found[f"after {check.__name__}"] == good("here") for check in bad)
    assert found["noisy"] == good("quiet")
    assert found["crash"].said == "the process ended: SIGABRT"
    assert found["hang"].said == "no answer for 2 s"
    assert found["broken"].said == "RuntimeError: two lines"
    assert found["missing"].said == "the package nowhere_to_be_found is missing"
    assert found["leave"].said == "SystemExit: 3"
    assert found["quit_at_once"].said == "the process ended: exit code 7"
    lines = [found[name].line(name) for name in found]
    assert all("\n" not in line for line in lines)
    assert lines[0].startswith("fail  crash       the process ended: SIGABRT; install")
    assert {found[c.__name__].status for c in bad[:-1]} == {FAIL}
    assert "noise" not in "".join(capfd.readouterr())


def test_the_last_check_may_hang_too() -> None:
    began = time.monotonic()
    found = dict(examine({"hang": hang}, limit_s=0.5))
    assert found["hang"].said.startswith("no answer")
    assert time.monotonic() - began < 60


def test_no_checks_are_no_findings() -> None:
    assert list(examine({})) == []


def test_names_fit_their_column() -> None:
    assert max(map(len, CHECKS)) <= 10


def fake(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


SINFO = {
    "echo 'gpu* up'; echo 'cpu up'; echo 'old down'": (OK, "partitions gpu*, cpu"),
    "echo 'old down'": (WARN, "no partition is up"),
    "echo no controller >&2; exit 1": (WARN, "sinfo ended with 1: no controller"),
    None: (WARN, "sbatch is here and sinfo is not"),
}


@pytest.mark.parametrize("text", SINFO)
def test_slurm_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert services.slurm().status == OK
    fake(tmp_path / "bin", "sbatch", "")
    if text is not None:
        fake(tmp_path / "bin", "sinfo", text)
    found = services.slurm()
    assert (found.status, found.said) == SINFO[text]
    assert bool(found.mend) == (found.status != OK)


def test_wandb_needs_a_login_online_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DISABLED", "WANDB_BASE_URL", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert services.wandb().status == OK
    monkeypatch.setenv("WANDB_MODE", "online")
    assert services.wandb().status == FAIL
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password x\n")
    assert services.wandb().status == OK
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert services.wandb().status == FAIL
    monkeypatch.setenv("WANDB_API_KEY", "x")
    assert services.wandb().status == OK
    monkeypatch.setenv("WANDB_DIR", "/somewhere")
    found = services.wandb()
    assert (found.status, found.mend) == (WARN, "unset WANDB_DIR")


def test_compilers_and_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DQ_NATIVE", raising=False)
    assert hardware.compilers().status == OK
    monkeypatch.setenv("CC", "")
    assert hardware.compilers().said.startswith("gcc ")
    assert hardware.kernels().said == "4 C++ files compiled and loaded"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert hardware.compilers().said == "no no-such-compiler"
    found = hardware.kernels()
    assert found.status == WARN
    assert found.said.startswith("0 of 4 can be built: no native kernels of ")
    monkeypatch.setenv("DQ_NATIVE", "0")
    assert hardware.kernels().said == "switched off by DQ_NATIVE=0"


def test_packages_work_and_wrong_versions_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for check in (packages.python, packages.torch, packages.mmcv, packages.operators,
                  packages.mmdet):  # fmt: skip
        assert check().status == OK
    wanted = ["numpy>=2.0", "torch>=99", "no-such-package", "mypy ; extra == 'test'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: wanted)
    found = packages.launcher()
    assert found.status == FAIL
    assert ", but torch is " in found.said
    assert found.said.endswith(", no-such-package is missing")


def test_wrong_operators_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import mmcv.ops

    real = mmcv.ops.roi_align
    monkeypatch.setattr(mmcv.ops, "roi_align", lambda *given: real(*given) + 1)
    assert packages.operators().said.startswith("roi_align is wrong on cpu")
    monkeypatch.setattr(mmcv.ops, "nms", lambda b, s, t: (b, s.argsort()))
    assert packages.operators().said == "nms keeps [2, 1, 0] on cpu, not [0, 2]"


def test_limits_of_a_container_are_read(tmp_path: Path) -> None:
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("2147483648\n")
    assert machine.cpu_quota(tmp_path) == 1.5
    assert machine.memory_limit(tmp_path) == 2 * machine.GIB
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota(tmp_path) is None
    assert machine.memory_limit(tmp_path) is None
    old = tmp_path / "old"
    (old / "cpu").mkdir(parents=True)
    (old / "memory").mkdir()
    (old / "cpu/cpu.cfs_quota_us").write_text("300000\n")
    (old / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (old / "memory/memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert machine.cpu_quota(old) == 3.0
    assert machine.memory_limit(old) is None


def test_little_of_anything_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for check in (machine.cpus, machine.memory, machine.files, machine.disk, machine.shm):
        assert "\n" not in check().said
    monkeypatch.setattr(machine, "cpu_quota", lambda: 0.5)
    assert machine.cpus().mend == "use --threads 1"
    monkeypatch.setattr(machine, "cpu_quota", lambda: None)
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    assert machine.cpus().status == WARN
    monkeypatch.setattr(machine, "memory_limit", lambda: machine.GIB // 2)
    assert machine.memory().status == FAIL
    monkeypatch.setattr(machine, "memory_limit", lambda: 3 * machine.GIB)
    assert machine.memory().status == WARN
    monkeypatch.setattr(machine, "LITTLE_DISK", 2**60)
    assert machine.disk().status == WARN
    monkeypatch.setattr(machine, "LEAST_DISK", 2**60)
    assert machine.disk().status == FAIL
    monkeypatch.setattr(machine, "LITTLE_SHM", 2**60)
    assert "--shm-size" in machine.shm().mend
    assert machine.shm(tmp_path / "none").status == WARN
