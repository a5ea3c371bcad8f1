"""Names are compared before their values share a collective."""

from __future__ import annotations

import pytest
import torch

from dq.dist.exchange import collectives
from dq.dist.exchange.agreed_names import agreed_names
from dq.dist.watch.straggler import PhaseClock
from tests.processes.ranks import run_ranks


def agree(of_rank: list[list[str]]) -> list[str] | str:
    try:
        return agreed_names(of_rank[collectives.rank()], "losses", "log the same")
    except ValueError as error:
        return str(error)


def test_the_order_of_names_does_not_matter() -> None:
    assert run_ranks(agree, 2, [["b", "a"], ["a", "b"]]) == [["a", "b"]] * 2


def test_extra_names_are_refused_on_all_ranks_with_rank_and_name() -> None:
    said = run_ranks(agree, 3, [["a", "b"], ["a"], ["a", "b", "c"]])
    assert said[0] == (
        "losses differ between ranks: b on rank 0, 2 of 3 alone; c on rank 2 of 3 alone;"
        " log the same"
    )
    assert said == [said[0]] * 3


def test_no_names_differ_from_some_names() -> None:
    said = run_ranks(agree, 2, [[], ["a"]])
    assert said[0] == "losses differ between ranks: a on rank 1 of 2 alone; log the same"


def test_at_most_four_names_and_four_ranks_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def said(everywhere: list[list[str]]) -> str:
        monkeypatch.setattr(collectives, "world_size", lambda: len(everywhere))
        monkeypatch.setattr(collectives, "all_gather", lambda x: torch.stack([x, x + 1]))
        monkeypatch.setattr(collectives, "all_gather_objects", lambda own: everywhere)
        with pytest.raises(ValueError, match="losses differ") as caught:
            agreed_names(everywhere[0], "losses", "log the same")
        return str(caught.value)

    assert said([["a"], ["a"], ["a"], ["a"], []]) == (
        "losses differ between ranks: a on rank 0, 1, 2, 3 of 5 alone; log the same"
    )
    assert said([["a"]] * 5 + [[]]) == (
        "losses differ between ranks: a on rank 0, 1, 2, 3, ... of 6 alone; log the same"
    )
    four = "; ".join(f"{name} on rank 0 of 2 alone" for name in "abcd")
    assert said([[*"abcd"], []]) == f"losses differ between ranks: {four}; log the same"
    assert said([[*"abcdef"], []]) == (
        f"losses differ between ranks: {four} and 2 more; log the same"
    )


@pytest.mark.parametrize("names", [["b", "a"], []])
def test_a_single_process_accepts_any_names_and_gathers_nothing(
    names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "all_gather", None)
    assert agreed_names(names, "losses", "") == sorted(names)


def other_phases() -> list[str]:
    clock = PhaseClock()
    with clock.phase("loading"):
        pass
    if collectives.rank() == 1:
        with clock.phase("another"):
            pass
    return [slow.phase for slow in clock.report()]


def test_a_phase_on_only_one_rank_does_not_hang() -> None:
    assert run_ranks(other_phases, 2) == [["loading"]] * 2
