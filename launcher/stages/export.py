"""The stage that exports a quantized checkpoint."""

from __future__ import annotations

import os
from pathlib import Path

from dq.detector.checkpoint import load_quantization, recipe_of
from dq.detector.data import test_classes
from dq.detector.export import export_detector, image_size, metadata_of
from dq.detector.graph import quantize_detector
from dq.dist.one_reader import on_main_rank
from dq.quant.phase import Phase, set_phase
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.conclusion import read_checkpoint
from launcher.stages.float_detector import float_detector


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
    content, sha256 = read_checkpoint(checkpoint, trusted=trusted)
    recipe = recipe_of(content)
    if recipe is None:
        raise ValueError(
            f"{checkpoint} is a float checkpoint; calibrate it or train it quantized first"
        )
    pixels = image_size(plan.config, size)
    detector = float_detector(plan, place, content, checkpoint).cpu().eval()
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, str(checkpoint))
    set_phase(graph.quantizers, Phase.FROZEN)
    metadata = metadata_of(
        plan.config,
        test_classes(plan.config),
        kind=kind,
        size=pixels,
        sha256=sha256,
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
