"""The store before there is a process group: who holds it, who waits for it, and its errors."""

from __future__ import annotations

import re
import threading
import time

import pytest

from dq.dist.rendezvous.environment import Environment
from dq.dist.rendezvous.meeting_place import is_agents_store, open_meeting_place, read_address
from tests.processes.ports import free_port

FIRST = Environment(rank=0, world_size=2, local_rank=0, local_world_size=2)
SECOND = Environment(rank=1, world_size=2, local_rank=1, local_world_size=2)


@pytest.fixture(autouse=True)
def _address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_the_main_rank_holds_the_store_and_another_may_come_first() -> None:
    found: list[bytes] = []

    def second() -> None:
        store = open_meeting_place(SECOND, limit_s=20)
        store.set("from the second", "b")
        found.append(store.get("from the first"))

    thread = threading.Thread(target=second)
    thread.start()
    time.sleep(0.3)
    store = open_meeting_place(FIRST, limit_s=20)
    store.set("from the first", "a")
    assert store.get("from the second") == b"b"
    thread.join(20)
    assert found == [b"a"]


def test_each_use_has_keys_of_its_own() -> None:
    store = open_meeting_place(FIRST, limit_s=20)
    other = open_meeting_place(SECOND, limit_s=20, name="others")
    store.set("key", "a")
    assert not other.check(["key"])
    assert open_meeting_place(SECOND, limit_s=20).check(["key"])


def test_torchruns_agent_holds_the_store_and_each_start_has_its_keys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = open_meeting_place(FIRST, limit_s=20)  # Plays the agent: it holds the store.
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert not is_agents_store()
    assert open_meeting_place(SECOND, limit_s=20).check([]) == agent.check([])
    agent.set("key", "a")
    assert open_meeting_place(SECOND, limit_s=20).check(["key"])  # The count is not torchrun's.
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    assert is_agents_store()
    main = open_meeting_place(FIRST, limit_s=20)  # It does not open the port a second time.
    assert not main.check(["key"])
    main.set("key", "b")
    assert open_meeting_place(SECOND, limit_s=20).get("key") == b"b"
    assert agent.get("key") == b"a"


def test_without_a_store_the_wait_ends() -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match=r"Connection refused, for 0\.5 s"):
        open_meeting_place(SECOND, limit_s=0.5)
    assert time.monotonic() - began >= 0.5


WRONG = {
    "MASTER_ADDR": [None, "", " ", "tcp://127.0.0.1", "127.0.0.1:29500", "a b", "host/path"],
    "MASTER_PORT": [None, "", "http", "0", "-1", "65536", "99999", "1e3", "29500 29501"],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in WRONG.items() for v in values])
def test_what_can_be_no_address_is_refused_at_once(
    name: str, value: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    said = repr(value) if (value or "").strip() else "not set"
    for rank in (FIRST, SECOND):
        with pytest.raises(ValueError, match=re.escape(f"{name} is {said}; set it to the")):
            open_meeting_place(rank, limit_s=60)


@pytest.mark.parametrize(
    "host", ["node-1", "10.0.0.1", "::1", "fe80::1%eth0", "a.b.example", "n_1"]
)
def test_every_form_of_an_address_is_accepted(host: str) -> None:
    found = read_address({"MASTER_ADDR": f" {host}", "MASTER_PORT": "29500 "})
    assert found == (host, 29500)
