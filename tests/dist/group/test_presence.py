"""How a rank watches another, and what it uses if the network blocks the connection."""

from __future__ import annotations

import ast
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from dq.dist.exchange import collectives
from dq.dist.group import presence
from dq.dist.work import on_one_rank as one_rank
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_one_rank import run_on_rank
from tests.processes.ranks import rank_outcomes

DIST = Path(presence.__file__).parent


def die_on_another_machine(address: str) -> str:
    """Watch a rank that seems to be on another machine and is killed during its work."""
    os.environ.pop("MASTER_ADDR", None)
    if address:
        os.environ["MASTER_ADDR"] = address
    presence._machine = lambda: [f"machine {collectives.rank()}"]
    one_rank.UNSEEN_S = 3.0
    wait_for_all_ranks("the beginning")

    def die() -> None:
        time.sleep(1.5)
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        run_on_rank(die, rank=1, heartbeat_s=0.2)
    except RuntimeError as error:
        return f"{presence.presence().of(1).is_open} {error}"
    return "no error"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1", "True rank 1 was lost while the others waited"),
        ("", "False rank 1 gave no sign of life for 3 s"),
    ],
)
def test_a_rank_elsewhere_is_watched_where_the_network_lets_us_through(
    address: str, said: str
) -> None:
    first, killed = rank_outcomes(die_on_another_machine, 2, address)
    assert killed.error == "died with exit code -9"
    assert first.error is None
    assert first.result.startswith(said)


def test_the_machine_of_the_store_is_known_by_the_name_under_which_ranks_meet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert presence._own_address() == ""
    for name in ("localhost", "127.0.0.1", socket.gethostname()):
        monkeypatch.setenv("MASTER_ADDR", name)
        assert presence._own_address() == name
    monkeypatch.setenv("MASTER_ADDR", "no.such.host.invalid")
    assert presence._own_address() == ""


def test_no_module_has_a_hidden_counter() -> None:
    looked = 0
    for path in DIST.glob("*.py"):
        for node in ast.parse(path.read_text()).body:
            looked += 1
            if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                text = ast.unparse(node.value)
                assert "count(" not in text, f"{path.name}: {ast.unparse(node)}"
    assert looked


@pytest.mark.parametrize("with_ipv6", [True, False])
def test_ranks_of_one_machine_listen_at_free_ports(
    with_ipv6: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not with_ipv6:
        monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: False)
    with presence._listener(1) as first, presence._listener(1) as second:
        ports = {first.getsockname()[1], second.getsockname()[1]}
    assert len(ports) == 2
    assert min(ports) >= 1024
