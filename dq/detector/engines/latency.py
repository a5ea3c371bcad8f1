"""Measure the speed of an exported model in one or two seconds, at the end of another command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.latency.comparison import latency_of
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.result import Latency
from dq.quant.latency.terms import BRIEFLY
from dq.quant.verify.onnxruntime_session import load_model


def measured(model: Path, engine: str, keep: Callable[[Latency], None]) -> Latency | str | None:
    """Time an exported model and the same model in float; every rank must call it.

    The main rank measures with one thread, while the others wait.

    Args:
        model: The file.
        engine: A key of `dq.engines.ENGINES`.
        keep: Stores the result; called on the main rank.

    Returns:
        The result; None for a float model; the reason as text if the engine cannot run the model.
    """

    def work() -> Latency | str | None:
        try:
            found = latency_of(load_model(model), timed_engine(engine), BRIEFLY)
        except ValueError as error:
            return str(error)
        if found is not None:
            keep(found)
        return found

    return on_main_rank(work)
