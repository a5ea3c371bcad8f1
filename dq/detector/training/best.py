"""Make the best checkpoint of a quantized training its result, and keep the last one too."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.hooks.start import LATEST, START
from dq.detector.model.build import float_state, load_float_state
from dq.detector.model.checkpoint_content import compose, load_quantization
from dq.detector.training.assignment import Quantization
from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.work.on_main_rank import on_main_rank

log = logging.getLogger("dq.train")
LAST = "last.pth"


def take_best_(runner: Any, detector: nn.Module, quantization: Quantization) -> str | None:
    """Load the best checkpoint into the detector, unless it is that of the last step.

    The detector of the last step is written to ``last.pth`` then. Every rank must call it, after
    the last step. Nothing is done if nothing was evaluated.

    Args:
        runner: After its run.
        detector: Unwrapped, with its final weights.
        quantization: The prepared graph and the settings of its training.

    Returns:
        The name of the loaded file, or None if the detector is still that of the last step.
    """
    best = runner.meta.get("hook_msgs", {}).get("best_ckpt")
    if not best or _is_last(runner, Path(best).stem):
        return None
    if not on_main_rank(Path(best).is_file):
        log.warning("%s is gone, so the result is the detector of the last step", best)
        return None
    graph = quantization.graph
    last = Path(runner.work_dir) / LAST
    content = compose(detector, graph=graph, recipe=quantization.recipe, meta=dict(runner.meta))
    on_main_rank(lambda: save_checkpoint(last, content))
    found = on_main_rank(lambda: _without_optimizer(load_checkpoint(Path(best))))
    load_float_state(detector, float_state(found, str(best)), str(best))
    load_quantization(graph, found, str(best))
    name = Path(best).name
    log.info("the result is %s, the best by evaluation; the last step is in %s", name, last)
    return name


def _without_optimizer(content: dict[str, Any]) -> dict[str, Any]:
    """Return what the other ranks need; the optimizer's state may be twice as large."""
    return {name: value for name, value in content.items() if name != "optimizer"}


def last_drop(runner: Any) -> float:
    """Return how far the last evaluation of a run was below its start, 0 to 1."""
    start = runner.meta.get(START, {})
    return max(0.0, start["value"] - start[LATEST]) if LATEST in start else 0.0


def _is_last(runner: Any, stem: str) -> bool:
    unit, done = ("epoch", runner.epoch) if runner.counts_epochs else ("iter", runner.iter)
    return stem.endswith(f"_{unit}_{done}")
