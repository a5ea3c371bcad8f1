"""Measure the speed of an exported model in one or two seconds, at the end of another command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx

from dq.dist.errors.disk import explain_disk
from dq.dist.work.on_main_rank import on_main_rank
from dq.engines import ENGINES, is_installed
from dq.quant.latency.comparison import latency_of
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.result import Latency
from dq.quant.latency.terms import BRIEFLY
from dq.quant.verify.onnxruntime_session import load_model

# The target ``int8`` is for no engine in particular.
_OF_TARGET = {"int8": "onnxruntime"}


def engine_of_target(target: str) -> str | None:
    """Return the engine in which a target's speed can be measured here; None if there is none."""
    name = _OF_TARGET.get(target, target)
    return name if name in ENGINES and is_installed(name) else None


def measured(
    model: Path, engine: str | None, keep: Callable[[Latency], None]
) -> Latency | str | None:
    """Time an exported model and the same model in float; every rank must call it.

    The main rank measures with one thread, while the others wait.

    Args:
        model: The file.
        engine: A key of `dq.engines.ENGINES`; None for the engine that the model was quantized for
            if it is here, and otherwise ONNX Runtime.
        keep: Stores the result; called on the main rank.

    Returns:
        The result; None for a float model; the reason as text if the engine cannot run the model.
    """

    def work() -> Latency | str | None:
        try:
            loaded = load_model(model)
            name = engine or engine_of_target(_target_of(loaded)) or "onnxruntime"
            found = latency_of(loaded, timed_engine(name), BRIEFLY)
        except (ValueError, OSError) as error:  # Such as a full folder for temporary files.
            return explain_disk(error) or str(error)
        if found is not None:
            keep(found)
        return found

    return on_main_rank(work)


def _target_of(model: onnx.ModelProto) -> str:
    """Return the target of the recipe in an exported model; empty if it has none."""
    found = {prop.key: prop.value for prop in model.metadata_props}
    return str(json.loads(found.get("recipe", "{}")).get("target", ""))
