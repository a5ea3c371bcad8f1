"""Limits of time and defaults of everything about ranks: docs name them, jobs rely on them."""

from __future__ import annotations

import inspect
import signal
from collections.abc import Callable
from datetime import timedelta
from types import ModuleType
from typing import Any

import pytest

from dq import exit_codes
from dq.dist.errors.notes import Notes
from dq.dist.exchange import collectives, data_parallel
from dq.dist.group import claim, early_failure, presence, process_group
from dq.dist.norm.sync_batch_norm import SyncBatchNorm
from dq.dist.rendezvous import environment, meeting_place, slurm_step, store
from dq.dist.watch import agreement, signals, straggler
from dq.dist.work import all_here, on_one_rank

DAY_S = 24 * 3600.0
LIMITS: dict[ModuleType, dict[str, Any]] = {
    exit_codes: {"STOPPED_CODE": 75},
    signals: {
        "SAME_REQUEST_S": 1.0,
        "SIGNALS": (
            signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP
        ),
    },
    # A machine that vanishes counts as gone after 30 + 6 * 10 seconds.
    presence: {
        "CONNECT_S": 3.0,
        "AGAIN_S": 30.0,
        "PROBES": (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)),
    },
    claim: {"ANSWER_S": 20.0, "ORPHAN_S": 3.0, "LINGER_S": 2.0, "_MAIN": 0},
    early_failure: {"REACH_S": 10.0, "AGAIN_S": 15.0, "PATIENCE_S": 60.0, "FAREWELL_S": 10.0},
    process_group: {"_END_LIMIT_S": 5.0, "_FAREWELL_S": 1.0},
    all_here: {"UNSEEN_S": 1800.0},
    on_one_rank: {"UNSEEN_S": 900.0},
    meeting_place: {"TRY_S": 3.0, "TRY_EVERY_S": 0.2},
    slurm_step: {"_FIRST_SPECIAL": 4294967280},
    store: {"_ANSWER": timedelta(seconds=15)},
}  # fmt: skip
DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    collectives.broadcast_: {"source": 0},
    collectives.broadcast_coalesced_: {"source": 0},
    collectives.broadcast_object: {"source": 0},
    collectives.gather_objects: {"destination": 0},
    data_parallel.wrap: {
        "find_unused_parameters": False,
        "static_graph": False,
        "gradient_as_bucket_view": True,
        "late": (),
    },
    presence.read_key: {"limit_s": 3.0},
    process_group.process_group: {
        "shares_device": False,
        "timeout_s": 1800.0,
        "arrival_s": 300.0,
        "name": "ranks",
    },
    SyncBatchNorm: {"eps": 1e-5, "momentum": 0.1, "affine": True, "track_running_stats": True},
    environment.Environment: {
        "rank": 0,
        "world_size": 1,
        "local_rank": 0,
        "local_world_size": 1,
        "node": 0,
        "num_nodes": 1,
    },
    store.pauses: {"longest_s": 1.0},
    agreement.Agreement: {"check_every": 1},
    straggler.slow_rank_message: {"least_s": 0.5},
    all_here.wait_for_all_ranks: {"limit_s": DAY_S},
    on_one_rank.run_on_rank: {
        "rank": 0,
        "limit_s": DAY_S,
        "heartbeat_s": 2.0,
        "hung_s": 3600.0,
    },
    Notes: {
        "reported": False,
        "reported_elsewhere": False,
        "exit_code": None,
        "is_expected": None,
    },
}


@pytest.mark.parametrize("module", LIMITS, ids=lambda module: module.__name__)
def test_a_limit_stays(module: ModuleType) -> None:
    assert {name: getattr(module, name) for name in LIMITS[module]} == LIMITS[module]


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__qualname__)
def test_a_default_stays(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters
    found = {name: parameters[name].default for name in DEFAULTS[function]}
    assert found == DEFAULTS[function]
