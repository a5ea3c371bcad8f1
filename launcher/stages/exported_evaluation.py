"""The stages that evaluate an exported file and compare it with the fake-quantized detector."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from dq.detector.data.datasets import test_classes
from dq.detector.engines.agreement import Agreement, refuse_other
from dq.detector.engines.integer_evaluation import evaluate_integers
from dq.detector.engines.integer_file import load_networks, read_integer_file
from dq.detector.engines.latency import measured
from dq.detector.engines.onnx_detector import load_models
from dq.detector.engines.onnx_evaluation import IntegerResult, evaluate_in_engine
from dq.detector.model.stored_detector import rounding_detector
from dq.dist.work.on_main_rank import on_main_rank
from dq.engines import engine_named
from dq.quant.latency.result import Latency
from dq.quant.verify.onnxruntime_session import metadata_of
from dq.tracking.record.json_file import write_json
from dq.tracking.record.stage_summary import FILE_NAME
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.stage import read_checkpoint


def evaluated_in_engine(
    plan: Plan,
    place: Session,
    backend: str,
    model: Path,
    checkpoint: Path,
    *,
    trusted: bool,
    bench: bool,
) -> tuple[IntegerResult, Latency | str | None]:
    """Evaluate an exported model and its checkpoint on ``data.test``, over all ranks.

    Every rank must call it; all get the same result.

    Args:
        plan: Of the config that the model was exported with.
        place: The process; the result is written into its work dir.
        backend: Name of the engine in `dq.engines.ENGINES`.
        model: The ONNX file.
        checkpoint: The checkpoint that it was exported from.
        trusted: Whether the checkpoint may run code.
        bench: Whether the model is also timed.

    Returns:
        The result of both evaluations, and that of `dq.detector.engines.latency.measured`.

    Raises:
        ValueError: The engine is not installed, or cannot run the model; the model is damaged, or
            does not belong to this checkpoint, config or data set.
    """
    engine = engine_named(backend)
    _refuse_missing(checkpoint, model)
    parent = read_checkpoint(checkpoint, trusted=trusted)
    detector, graph, _ = rounding_detector(plan.config, parent.content, parent.source)
    models = load_models(model, graph, test_classes(plan.config))
    said = metadata_of(models[""]).get("checkpoint_sha256")
    refuse_other(model, said, checkpoint, parent.sha256)
    result = evaluate_in_engine(plan.config, detector, graph, models, engine)
    folder = place.experiment / f"eval_{backend}"
    on_main_rank(lambda: _write(folder, result))
    latency = None
    if bench:
        latency = measured(model, backend, lambda found: _write(folder, result, found))
    return result, latency


def evaluated_integer_file(
    plan: Plan, place: Session, path: Path, checkpoint: Path, *, trusted: bool
) -> Agreement:
    """Evaluate a torch-int file and its checkpoint on ``data.test``, over all ranks.

    Weights and scales are read from the file. Every rank must call it; all get the same result.

    Raises:
        ValueError: The file is damaged, or does not belong to this checkpoint, config or data set.
    """
    _refuse_missing(checkpoint, path)
    file: dict[str, Any] = on_main_rank(lambda: read_integer_file(path))
    parent = read_checkpoint(checkpoint, trusted=trusted)
    detector, graph, _ = rounding_detector(plan.config, parent.content, parent.source)
    networks, differing = load_networks(path, file, graph, test_classes(plan.config))
    refuse_other(path, file["meta"].get("checkpoint_sha256"), checkpoint, parent.sha256)
    result = evaluate_integers(plan.config, detector, graph, networks, differing)
    folder = place.experiment / "eval_torch_int"
    on_main_rank(lambda: _write(folder, result))
    return result


def _refuse_missing(checkpoint: Path, exported: Path) -> None:
    """Raise ValueError if the checkpoint of an exported file does not exist."""
    if not checkpoint.is_file():
        raise ValueError(
            f"checkpoint {checkpoint} does not exist; give the one that {exported} was exported"
            " from with --checkpoint"
        )


def _write(folder: Path, result: Agreement, latency: Latency | None = None) -> None:
    """Write the result as the folder's ``summary.json``; for the main rank only."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {**asdict(result), "passed": result.passed}
    if latency is not None:
        content["latency"] = asdict(latency)
    write_json(folder / FILE_NAME, content)
