"""The stage that exports a quantized checkpoint."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from dq.detector.data.class_names import class_list, classes_of_checkpoint
from dq.detector.engines.latency import measured
from dq.detector.export.write import ExportFormat, export_detector, image_size, metadata_of
from dq.detector.model.stored_detector import rounding_detector
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.latency.result import Latency
from dq.tracking.record.latency import write_latency
from launcher.plan import Plan
from launcher.session import Session
from launcher.stage.stage import read_checkpoint


def exported(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    kind: str,
    size: tuple[int, int] | None,
    opset: int | None,
    decode: str,
    trusted: bool,
) -> list[Path]:
    """Write the exported files into ``<work dir>/export`` and return their paths.

    Every rank must call it.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: The quantized checkpoint.
        kind: ``onnx-qdq``, ``onnx-tidl`` or ``torch-int``.
        size: Height and width of the images in pixels; None for the size of the test pipeline.
        opset: Of ONNX; None for 18, or 21 if 4-bit or 16-bit integers need it.
        decode: ``none``, ``boxes`` or ``nms``.
        trusted: Whether the checkpoint may be unpickled.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    form = ExportFormat(kind=kind, size=image_size(plan.config, size), opset=opset, decode=decode)
    detector, graph, recipe = rounding_detector(plan.config, parent.content, parent.source)
    folder = place.experiment / "export"
    metadata = metadata_of(
        plan.config,
        classes_of_checkpoint(class_list(plan.config), parent.content),
        form,
        sha256=parent.sha256,
        recipe=recipe,
        checkpoint=os.path.relpath(checkpoint, folder),
    )

    def work() -> list[Path]:
        name = place.experiment.name
        return export_detector(detector, graph, folder, name=name, form=form, metadata=metadata)

    return on_main_rank(work)


def exported_latency(model: Path) -> Latency | str | None:
    """Time an exported network in the engine that it is for, and write the result into its folder.

    Every rank must call it.

    Args:
        model: The file of the network.

    Returns:
        The result of `dq.detector.engines.latency.measured`.
    """
    return measured(
        model, None, lambda found: write_latency(model.parent, model.name, asdict(found))
    )
