"""If the store is gone at any step of joining or leaving, neither group nor sockets stay open."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from dq.dist.exchange import collectives
from dq.dist.group import presence, process_group
from dq.dist.rendezvous.environment import Environment

TWO = Environment(rank=0, world_size=2, local_rank=0, local_world_size=2)


def gone(*given: Any, **named: Any) -> Any:
    raise dist.DistError("the server is gone")


class Keys:
    """A client of a store, whose methods can be made to fail."""

    def __init__(self) -> None:
        self.store = dist.HashStore()  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Play one of two ranks in a group of one; yield its stores by name, and all its sockets."""
    found = SimpleNamespace(stores={"process_group": Keys(), "presence": Keys()}, sockets=[])
    create = socket.create_server

    def created(*given: Any, **named: Any) -> socket.socket:
        found.sockets.append(create(*given, **named))
        return found.sockets[-1]

    def begin(*given: Any) -> None:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    monkeypatch.setattr(socket, "create_server", created)
    monkeypatch.setattr(process_group, "_begin", begin)
    monkeypatch.setattr(process_group, "open_store", lambda name: found.stores[name])
    monkeypatch.setattr(presence, "open_store", lambda name: found.stores[name])
    yield found
    if dist.is_initialized():
        dist.destroy_process_group()


STEPS = [
    "open the group's store", "open the presence's store", "tell the address", "find the main rank",
    "begin", "tell of the failure", "meet at the end",
]  # fmt: skip


@pytest.mark.parametrize("step", [None, *STEPS])
def test_nothing_stays_open(monkeypatch: pytest.MonkeyPatch, opened: Any, step: str | None) -> None:
    body = LookupError("the body's own")
    if step == "open the group's store":
        monkeypatch.setattr(process_group, "open_store", gone)
    elif step == "open the presence's store":
        monkeypatch.setattr(presence, "open_store", gone)
    elif step == "tell the address":
        opened.stores["presence"].set = gone
    elif step == "find the main rank":
        monkeypatch.setattr(collectives, "is_main_rank", lambda: False)
        opened.stores["presence"].wait = gone
    elif step == "begin":
        monkeypatch.setattr(process_group, "open_meeting", gone)
    elif step == "tell of the failure":
        opened.stores["process_group"].set = gone
    elif step == "meet at the end":
        monkeypatch.setattr(process_group, "meet", gone)
    else:
        monkeypatch.setattr(process_group, "meet", lambda *given, **named: [])
    entered = False

    def join() -> None:
        nonlocal entered
        with process_group.process_group(TWO, device=torch.device("cpu")):
            entered = True
            assert dist.is_initialized()
            if step == "tell of the failure":
                raise body

    if step in (None, "meet at the end"):
        # The work is done by then.
        join()
    else:
        with pytest.raises(LookupError if step == "tell of the failure" else dist.DistError):
            join()
    assert entered == (step in (None, "tell of the failure", "meet at the end"))
    assert not dist.is_initialized()
    assert all(each.fileno() == -1 for each in opened.sockets)
