"""The end of every stage: its evaluation, its checkpoint, its summary; and whether it is done."""

from __future__ import annotations

import contextlib
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.config.config_text import config_text
from dq.detector.data.datasets import dataset_of, test_classes
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.engines.exact_torch import exact_arithmetic
from dq.detector.evaluation.evaluate import Scores, detect, main_metric, scores
from dq.detector.evaluation.kept_predictions import class_precision
from dq.detector.evaluation.results_file import Painter, write_results
from dq.detector.hooks.tracking import Figures
from dq.detector.model.checkpoint_content import compose
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.analysis.statistics import model_bytes
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.sync import check_equal_on_ranks
from dq.tracking.record.stage_summary import StageSummary, is_current, sha256_of, write_summary
from dq.tracking.tracker import Tracker
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.evidence import keep_predictions

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """What an evaluation leaves of its results besides the metrics.

    Attributes:
        out: A pickle of mmdet's results.
        painted: A folder of the test images with what is found in them.
        lowest_score: Boxes below are not painted.
    """

    out: Path | None = None
    painted: Path | None = None
    lowest_score: float = 0.3


NOTHING = Keep()


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A detector's evaluation on ``data.test``.

    Attributes:
        metrics: Equal on all ranks.
        classes: Average precision of each class at IoU 0.5.
        tables: What mmdet prints of the metrics.
        images_per_s: On all ranks together.
        dataset: What was evaluated on.
        results: mmdet's, of all images; main rank only.
    """

    metrics: dict[str, float]
    classes: dict[str, float]
    tables: str
    images_per_s: float
    dataset: Any
    results: list[Any]


def measure(
    plan: Plan,
    place: Session,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    keep: Keep = NOTHING,
) -> Measurement:
    """Evaluate a detector on ``data.test`` over all ranks; every rank must call it.

    On the CPU a quantized one computes as its export will, to the last bit. A GPU has no sums of
    integers in torch, so there it rounds real numbers, which differs where ties fall.

    Raises:
        ValueError: On all ranks: the data set cannot evaluate what the detector finds.
    """
    dataset = dataset_of(plan.config, "test", test_mode=True)
    results, seconds = detected(plan, place, detector, graph, dataset, keep)
    found, classes = scored(plan, dataset, results)
    name, value = main_metric(found.metrics)
    log.info("%s on %d images: %.2f %%", name, len(dataset), 100 * value)
    return Measurement(
        metrics=found.metrics,
        classes=classes,
        tables=found.tables,
        images_per_s=round(len(dataset) / max(1e-9, seconds), 2),
        dataset=dataset,
        results=results or [],
    )


def detected(
    plan: Plan,
    place: Session,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    dataset: Any,
    keep: Keep,
) -> tuple[list[Any] | None, float]:
    """Return mmdet's results of ``data.test``, on the main rank, and the seconds they took.

    What is to be kept of them is written before any metric is computed. Every rank must call it.
    """
    watch = None
    if keep.painted is not None:
        watch = Painter(detector, dataset, keep.painted, keep.lowest_score)
    workers = evaluation_workers(plan.config, "test")
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        if graph is not None and place.device.type == "cpu":
            stack.enter_context(exact_arithmetic(detector, graph))
        results = detect(detector, dataset, device=place.device, workers=workers, watch=watch)
    seconds = time.monotonic() - began
    if keep.out is not None:
        path = keep.out
        on_main_rank(lambda: write_results(path, results or []))
    return results, seconds


def scored(plan: Plan, dataset: Any, results: list[Any] | None) -> tuple[Scores, dict[str, float]]:
    """Return the metrics, and the precision of each class, on all ranks; every rank must call it.

    The main rank computes them, however long it takes, and what it raises is raised on all.
    """

    def work() -> tuple[Scores, dict[str, float]]:
        settings = plan.config.get("evaluation") or {}
        assert results is not None
        return scores(dataset, results, settings), class_precision(dataset, results)

    return on_main_rank(work)


def track_row(summary: StageSummary) -> dict[str, Any]:
    """Return what a tracker keeps of a stage's result."""
    row: dict[str, Any] = {**summary.metrics, "images_per_s": summary.images_per_s or 0.0}
    row |= {f"class/{name}": value for name, value in summary.classes.items()}
    if summary.model_bytes is not None:
        row["model_bytes"] = summary.model_bytes
    row["seconds"] = summary.seconds
    if summary.range_digest is not None:
        row["digest"] = summary.range_digest
    return row


def _keep_evidence(
    plan: Plan,
    place: Session,
    tracker: Tracker,
    detector: nn.Module,
    graph: QuantizedGraph | None,
    measurement: Measurement,
    figures: Figures | None,
    steps: int,
    folder: Path,
) -> None:
    keep_predictions(
        plan,
        place,
        tracker,
        folder,
        detector,
        graph,
        measurement.dataset,
        measurement.results,
        steps,
    )
    if figures is not None:
        when = "end" if steps else "calibration"
        tracker.table(steps, 0, when, figures.measure(detector))


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
    tracker: Tracker | None = None,
    figures: Figures | None = None,
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
        tracker: Of the stage's run.
        figures: Measures the quantizers, for a last time here.
    """
    tracker = tracker or Tracker()
    run, steps = tracker.run, tracker.last_step
    folder = place.experiment / stage
    path = folder / f"{stage}.pth"
    proof = None
    if graph is not None:
        set_phase(graph.quantizers, Phase.FROZEN)
        proof = check_equal_on_ranks(graph, f"at the end of {stage}")
    meta = {
        "CLASSES": tuple(getattr(detector, "CLASSES", None) or test_classes(plan.config)),
        "config": config_text(plan.config),
        "stage": stage,
        "key": key,
        "run_id": None if run is None else run.id,
    }
    content = compose(detector, graph=graph, recipe=recipe, meta=meta)
    on_main_rank(lambda: save_checkpoint(path, content))
    log.info("checkpoint %s", path)
    place.signals.raise_if_stopped()
    try:
        measurement = measure(plan, place, detector, graph)
    except (ValueError, RuntimeError) as error:
        if type(error) not in (ValueError, RuntimeError):
            raise
        raise type(error)(
            f"{error}; {path} is written: `launcher eval` it when that is mended, or begin the next"
            f" stage with --checkpoint {path}"
        ) from error
    metrics = measurement.metrics
    name, value = main_metric(metrics)
    if collectives.is_main_rank():
        _keep_evidence(plan, place, tracker, detector, graph, measurement, figures, steps, folder)

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
            run_id=None if run is None else run.id,
            parent_run=None if run is None else run.parent,
            bits="float32" if graph is None else plan.bits,
            model_bytes=model_bytes(detector, graph),
            images_per_s=measurement.images_per_s,
            classes=measurement.classes,
            finished=time.time(),
        )
        write_summary(folder, summary)
        tracker.log("test", steps, track_row(summary))
        tracker.log("checkpoint", steps, {"file": path.name, "sha256": summary.sha256})
        return summary

    return on_main_rank(summarize)
