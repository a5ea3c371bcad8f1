"""The detector of a quantized checkpoint, rounding with its ranges."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from dq.detector.model.checkpoint_content import load_quantization, recipe_of
from dq.detector.model.graph import quantize_detector
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from launcher.plan import Plan
from launcher.session import Session
from launcher.stages.float_detector import float_detector


def rounding_detector(
    plan: Plan, place: Session, content: Mapping[str, Any], checkpoint: Path
) -> tuple[nn.Module, QuantizedGraph, Recipe]:
    """Return the detector on the CPU in evaluation mode, its graph and its recipe.

    Raises:
        ValueError: The checkpoint is a float one, or another model's.
    """
    recipe = recipe_of(content)
    if recipe is None:
        raise ValueError(
            f"{checkpoint} is a float checkpoint; calibrate it or train it quantized first"
        )
    detector = float_detector(plan, place, content, checkpoint).cpu()
    detector.eval()  # mmdet's detectors that distil return nothing here.
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, str(checkpoint))
    set_phase(graph.quantizers, Phase.FROZEN)
    return detector, graph, recipe
