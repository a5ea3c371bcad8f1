"""Training on several ranks: the parts that a training loop needs, without a detector library.

Process group, collectives, SyncBatchNorm for gloo and NCCL, data parallelism, work that one rank
does for all, digests, and checkpoints that are written whole. Names are imported when they are
first used, so that a machine without torch can import the parts that do not need it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dq.dist.equality.digest import differing_names, digest
    from dq.dist.errors.lost import LostRankError
    from dq.dist.exchange.data_parallel import sync_buffers_, unwrap, wrap
    from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
    from dq.dist.group.process_group import process_group
    from dq.dist.norm.sync_batch_norm import (
        SyncBatchNorm,
        convert_sync_batch_norm,
        revert_sync_batch_norm,
    )
    from dq.dist.rendezvous.environment import Environment, read_environment
    from dq.dist.watch.signals import Stopped, stop_signals
    from dq.dist.work.on_main_rank import on_main_rank
    from dq.dist.work.on_one_rank import run_on_rank

__all__ = [
    "Environment",
    "LostRankError",
    "Stopped",
    "SyncBatchNorm",
    "convert_sync_batch_norm",
    "differing_names",
    "digest",
    "load_checkpoint",
    "on_main_rank",
    "process_group",
    "read_environment",
    "revert_sync_batch_norm",
    "run_on_rank",
    "save_checkpoint",
    "stop_signals",
    "sync_buffers_",
    "unwrap",
    "wrap",
]

_MODULES = {
    "equality.digest": ("differing_names", "digest"),
    "errors.lost": ("LostRankError",),
    "exchange.data_parallel": ("sync_buffers_", "unwrap", "wrap"),
    "files.checkpoint": ("load_checkpoint", "save_checkpoint"),
    "group.process_group": ("process_group",),
    "norm.sync_batch_norm": ("SyncBatchNorm", "convert_sync_batch_norm", "revert_sync_batch_norm"),
    "rendezvous.environment": ("Environment", "read_environment"),
    "watch.signals": ("Stopped", "stop_signals"),
    "work.on_main_rank": ("on_main_rank",),
    "work.on_one_rank": ("run_on_rank",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
