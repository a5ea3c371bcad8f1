"""How the tests are shared out between the workers of `pytest -n N`.

A worker runs all tests of a file, in the file's order: what a fixture of the module prepares is
prepared once. The folders of `TOGETHER` are one unit each, because their tests share something
that this machine has once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# One Slurm cluster for each machine: its nodes have fixed names in /etc/hosts.
TOGETHER = ("tests/slurm/",)


def unit(nodeid: str) -> str:
    """Return what a test belongs to: all tests of one unit run in the same worker.

    Args:
        nodeid: pytest's name of the test, such as ``tests/test_sync.py::test_ranges[2]``.
    """
    path = nodeid.split("::")[0]
    return next((folder for folder in TOGETHER if path.startswith(folder)), path)


class ByUnit(LoadScopeScheduling):
    """Give each worker a unit at a time, in the order of the tests."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # `in_order` knows more than the number of tests.

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)


def in_order(tests: Sequence[tuple[str, bool]]) -> list[int]:
    """Return the order in which several workers start the tests, as indices.

    The units of `TOGETHER` are the longest and start first. While one worker is busy with them, the
    others run files without slow tests, which leave the processes of that unit enough of the cores.
    Files with slow tests follow, those with the most first, so that no worker has a long one left
    when the others are done.

    Args:
        tests: For each test its node id and whether it is slow, in the order of collection.
    """
    units = [unit(nodeid) for nodeid, _ in tests]
    number = Counter(units)
    slow = Counter(one for one, (_, is_slow) in zip(units, tests, strict=True) if is_slow)
    place = {
        one: (one not in TOGETHER, slow[one] > 0, -slow[one], -number[one], index)
        for index, one in enumerate(dict.fromkeys(units))
    }
    return sorted(range(len(tests)), key=lambda index: (place[units[index]], index))
