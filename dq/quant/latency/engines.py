"""The engines whose speed can be measured."""

from __future__ import annotations

import importlib

from dq.engines import ENGINES, engine_named
from dq.quant.latency.engine import Engine


def timed_engine(name: str) -> Engine:
    """Return an engine whose speed can be measured.

    Args:
        name: A key of `dq.engines.ENGINES`.

    Raises:
        ValueError: Its package is not installed, or cannot be loaded.
    """
    engine_named(name)
    engine: Engine = importlib.import_module(ENGINES[name][2]).TIMED
    return engine
