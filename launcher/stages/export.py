"""The stage that exports a quantized checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from dq.detector.data.class_names import class_list, classes_of_checkpoint
from dq.detector.export.write import export_detector, image_size, metadata_of
from dq.detector.model.stored_detector import rounding_detector
from dq.dist.work.on_main_rank import on_main_rank
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.stage import read_checkpoint


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
    """Write the exported files into ``<work dir>/export`` and return their paths."""
    parent = read_checkpoint(checkpoint, trusted=trusted)
    pixels = image_size(plan.config, size)
    detector, graph, recipe = rounding_detector(plan.config, parent.content, parent.source)
    metadata = metadata_of(
        plan.config,
        classes_of_checkpoint(class_list(plan.config), parent.content),
        kind=kind,
        size=pixels,
        sha256=parent.sha256,
        recipe=recipe,
        checkpoint=os.path.relpath(checkpoint, place.experiment / "export"),
        decode=decode,
    )

    def work() -> list[Path]:
        return export_detector(
            detector,
            graph,
            place.experiment / "export",
            name=place.experiment.name,
            kind=kind,
            size=pixels,
            opset=opset,
            metadata=metadata,
            decode=decode,
        )

    return on_main_rank(work)
