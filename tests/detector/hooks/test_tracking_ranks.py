"""Ranks wait for the measurement of quantizers longer than a collective may take."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from dq.detector.hooks.tracking import TrackingHook
from tests.processes.ranks import rank_outcomes

GROUP_TIMEOUT_S = 2.0


class Slow:
    """Measures longer than a collective may take."""

    def measure(self, detector: nn.Module, *, oscillation: Any) -> list[dict[str, Any]]:
        time.sleep(2 * GROUP_TIMEOUT_S)
        return [{"rank": dist.get_rank()}]


def measured() -> list[Any]:
    tables: list[Any] = []
    runner: Any = SimpleNamespace(
        companions={},
        model=nn.Linear(1, 1),
        iter=7,
        tracker=SimpleNamespace(table=lambda *row: tables.append(row)),
    )
    hook = TrackingHook(1, by_epoch=True, figures=Slow())  # type: ignore[arg-type]
    hook._measure(runner, 3)
    dist.all_reduce(torch.zeros(1))
    return tables


def test_other_ranks_outwait_the_time_limit_of_collectives() -> None:
    outcomes = rank_outcomes(measured, 2, group_timeout_s=GROUP_TIMEOUT_S)
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.result for outcome in outcomes] == [[(7, 3, "epoch", [{"rank": 0}])], []]
