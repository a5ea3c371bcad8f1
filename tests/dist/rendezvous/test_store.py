"""Meetings on the store: who arrived, when it is called off, and what is left of it."""

from __future__ import annotations

import itertools
import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist

from dq.dist.rendezvous import store as module
from dq.dist.rendezvous.store import forget, meet, open_store, pauses


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no time pass but that of the pauses."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: 100.0 + sum(slept))
    return slept


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Play rank 1 of 3."""
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    return dist.HashStore()


def test_pauses_become_longer_up_to_a_limit(slept: list[float]) -> None:
    for _ in itertools.islice(pauses(), 14):
        pass
    assert slept[:4] == pytest.approx([0.02, 0.03, 0.045, 0.0675])
    assert slept[-1] == 1.0
    assert slept[9] == pytest.approx(0.02 * 1.5**9)
    slept.clear()
    for _ in itertools.islice(pauses(0.2), 9):
        pass
    assert max(slept) == slept[-1] == 0.2
    assert slept[5] == pytest.approx(0.02 * 1.5**5)


def test_all_have_arrived(ranks: Any, slept: list[float]) -> None:
    for rank in (0, 2):
        ranks.set(f"here/{rank}", "here")
        ranks.add("count", 1)
    ranks.add("forgotten", 2)
    assert meet(ranks, limit_s=9.0) == []
    assert slept == []
    for key in ("here/0", "here/1", "here/2", "count", "forgotten"):
        assert not ranks.check([key]), key


def test_those_who_are_late_are_named_after_the_limit(ranks: Any, slept: list[float]) -> None:
    ranks.set("here/0", "here")
    ranks.add("count", 1)
    assert meet(ranks, limit_s=9.0) == [2]
    assert 9.0 < sum(slept) < 9.3
    assert max(slept) == 0.2
    assert ranks.get("here/1") == b"here"
    assert ranks.add("count", 0) == 2


def test_a_meeting_that_is_called_off_ends_at_once(ranks: Any, slept: list[float]) -> None:
    ranks.set("called off", "")
    assert meet(ranks, limit_s=9.0) == [0, 2]
    assert slept == []
    assert meet(ranks, limit_s=0.5, unless="failed") == [0, 2]
    assert sum(slept) > 0.5


def test_the_last_one_deletes_the_keys(ranks: Any) -> None:
    for number in (1, 2, 3):
        ranks.set("a", "1")
        forget(ranks, ["a"])
        assert ranks.check(["a"]) is (number < 3)
    assert not ranks.check(["forgotten"])


def test_a_client_gives_up_early_and_the_groups_client_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[timedelta] = []

    class Group:
        timeout = timedelta(seconds=900)

        def set_timeout(self, limit: timedelta) -> None:
            self.timeout = limit

        def clone(self) -> Any:
            seen.append(self.timeout)
            if len(seen) > 1:
                raise RuntimeError("gone")
            return dist.HashStore()

    group = Group()
    c10d = SimpleNamespace(_get_default_store=lambda: group)
    monkeypatch.setattr(module, "distributed_c10d", c10d)
    store = open_store("name")
    store.set("a", "1")
    assert store.underlying_store.get("dq/name/a") == b"1"
    with pytest.raises(RuntimeError, match="gone"):
        open_store("name")
    assert seen == [timedelta(seconds=15)] * 2
    assert group.timeout == timedelta(seconds=900)
