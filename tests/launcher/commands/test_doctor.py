"""`launcher doctor`: lines or JSON, and its exit code."""

from __future__ import annotations

import json

import pytest

from dq.detector.doctor import examine as module
from dq.detector.doctor.finding import failure, good, warning
from tests.launcher.conftest import Launch


def test_lines_json_and_exit_code(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = {"one": lambda: good("fine"), "two": lambda: warning("slow", "wait")}
    monkeypatch.setattr(module, "CHECKS", checks)
    assert launch("doctor") == (0, "ok    one         fine\nwarn  two         slow; wait\n", "")
    code, out, err = launch("doctor", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == [
        {"name": "one", "status": "ok", "said": "fine", "mend": ""},
        {"name": "two", "status": "warn", "said": "slow", "mend": "wait"},
    ]
    monkeypatch.setattr(module, "CHECKS", {"three": lambda: failure("gone", "install it")})
    assert launch("doctor") == (1, "fail  three       gone; install it\n", "")
    assert launch("doctor", "--json")[0] == 1
