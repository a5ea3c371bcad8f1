"""A run that has not recorded its end is running, has died, or is not visible."""

from __future__ import annotations

import subprocess
import time
from typing import Any

import pytest

from dq.tracking.record.liveness import state_of, this_process

HERE = this_process()


def test_this_process_is_running_however_long_it_is_silent() -> None:
    assert HERE["began"] > 0
    assert HERE["boot"]
    assert state_of(HERE, 0.0) == "running"


def test_a_process_that_has_gone_has_died_and_so_has_a_zombie() -> None:
    child = subprocess.Popen(["sleep", "30"])
    from dq.proc import began_of

    process = {**HERE, "pid": child.pid, "began": began_of(child.pid)}
    assert state_of(process, time.time()) == "running"
    child.kill()
    end = time.monotonic() + 10
    while state_of(process, time.time()) == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    assert state_of(process, time.time()) == "died"
    child.wait()
    assert state_of(process, time.time()) == "died"


@pytest.mark.parametrize(
    ("other", "wanted"),
    [
        ({"began": HERE["began"] + 1}, "died"),  # The pid belongs to another process now.
        ({"boot": "another"}, "died"),
        ({"host": "another", "boot": "another"}, "running"),
        ({"space": "another"}, "running"),
    ],
)
def test_pids_are_compared_only_where_they_are_comparable(
    other: dict[str, Any], wanted: str
) -> None:
    assert state_of({**HERE, **other}, 1000.0, now=1060.0) == wanted


def test_invisible_processes_are_reported_as_silent() -> None:
    elsewhere = {**HERE, "host": "another", "boot": "another"}
    assert state_of(elsewhere, 0.0, now=5 * 3600.0) == "silent for 5 h"
    assert state_of({}, 0.0, now=5 * 3600.0) == "silent for 5 h"
    assert state_of({}, 0.0, now=60.0) == "running"
