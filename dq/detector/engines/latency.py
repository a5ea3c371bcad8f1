"""How fast an exported model runs, measured in a second or two at the end of another command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.latency.comparison import BRIEF_S, Latency, Terms, latency_of
from dq.quant.latency.engines import timed_engine
from dq.quant.verify.onnxruntime_session import load_model


def measured(model: Path, engine: str, keep: Callable[[Latency], None]) -> Latency | str | None:
    """Return an exported model's speed beside that in float; every rank must call it.

    It is measured on the main rank with one thread, while the others wait.

    Args:
        model: The file.
        engine: A key of `dq.engines.ENGINES`.
        keep: Stores what was measured; main rank only.

    Returns:
        What was measured; None for a float model; the reason where the engine cannot run it.
    """

    def work() -> Latency | str | None:
        try:
            found = latency_of(load_model(model), timed_engine(engine), Terms(limit_s=BRIEF_S))
        except ValueError as error:
            return str(error)
        if found is not None:
            keep(found)
        return found

    return on_main_rank(work)
