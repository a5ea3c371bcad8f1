"""The end of every stage: its evaluation, its checkpoint, its summary; and whether it is done."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.checkpoint import compose
from dq.detector.config import config_text
from dq.detector.data import dataset_of, test_classes
from dq.detector.evaluate import evaluate, main_metric
from dq.dist import collectives
from dq.dist.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.one_reader import on_main_rank
from dq.quant.phase import Phase, set_phase
from dq.quant.quantized_graph import QuantizedGraph
from dq.quant.recipe import Recipe
from dq.sync import prove_equal
from dq.tracking.summary import StageSummary, is_current, sha256_of, write_summary
from launcher.plan import Plan
from launcher.session import Session

log = logging.getLogger(__name__)


def read_checkpoint(path: Path, *, trusted: bool) -> tuple[dict[str, Any], str]:
    """Return a checkpoint's content and its SHA-256 on all ranks; the main rank reads the file."""

    def read() -> tuple[dict[str, Any], str]:
        return load_checkpoint(path, trusted=trusted), sha256_of(path)

    return on_main_rank(read)


def reusable(folder: Path, key: str) -> StageSummary | None:
    """Return the stage's summary on all ranks when the main rank finds it current."""
    done: StageSummary | None = on_main_rank(lambda: is_current(folder, key))
    if done is not None:
        log.info("%s is done already: %s %.2f %%", folder, done.metric, 100 * done.value)
    return done


def measured(plan: Plan, place: Session, detector: nn.Module) -> dict[str, float]:
    """Evaluate a detector on ``data.test`` over all ranks."""
    dataset = dataset_of(plan.config, "test", test_mode=True)
    workers = plan.config.data.get("test_dataloader", {}).get("workers_per_gpu", 1)
    metrics = evaluate(
        detector, dataset, plan.config.get("evaluation", {}), device=place.device, workers=workers
    )
    name, value = main_metric(metrics)
    log.info("%s on %d images: %.2f %%", name, len(dataset), 100 * value)
    return metrics


def conclude(
    plan: Plan,
    place: Session,
    detector: nn.Module,
    stage: str,
    key: str,
    began: float,
    graph: QuantizedGraph | None = None,
    recipe: Recipe | None = None,
    parent: str | None = None,
) -> StageSummary:
    """Write a stage's checkpoint, evaluate its detector, write its summary.

    Every rank must call it.

    Args:
        plan: What was to be done.
        place: Where.
        detector: What came of it, unwrapped.
        stage: Its name, and its folder's.
        key: Digest of what decided the result.
        began: `time.monotonic` of the stage's beginning.
        graph: The detector's quantized graph, if it is quantized.
        recipe: What that was prepared with.
        parent: SHA-256 of the checkpoint the stage began from.
    """
    folder = place.experiment / stage
    path = folder / f"{stage}.pth"
    proof = None
    if graph is not None:
        set_phase(graph.quantizers, Phase.FROZEN)
        proof = prove_equal(graph, f"at the end of {stage}")
    meta = {
        "CLASSES": test_classes(plan.config),
        "config": config_text(plan.config),
        "stage": stage,
    }
    content = compose(detector, graph=graph, recipe=recipe, meta=meta)
    on_main_rank(lambda: save_checkpoint(path, content))
    metrics = measured(plan, place, detector)
    name, value = main_metric(metrics)

    def summarize() -> StageSummary:
        summary = StageSummary(
            stage=stage,
            key=key,
            metric=name,
            value=value,
            metrics=metrics,
            checkpoint=path.name,
            sha256=sha256_of(path),
            parent=parent,
            range_digest=proof,
            world_size=collectives.world_size(),
            seconds=round(time.monotonic() - began, 1),
            num_quantizers=0 if graph is None else len(graph.sites),
        )
        write_summary(folder, summary)
        return summary

    return on_main_rank(summarize)
