"""The detector of a config with what a checkpoint holds: float weights, and ranges."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, nn

from dq.detector.data.class_names import check_order, class_list
from dq.detector.model.build import build_model, float_state, load_float_state
from dq.detector.model.checkpoint_content import (
    load_quantization,
    originals_of,
    recipe_of,
    repaired_state,
)
from dq.detector.model.graph import quantize_detector
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDetector:
    """A detector as its checkpoint has it.

    Attributes:
        detector: On its device.
        graph: Its own, with ranges that are frozen; None for a float detector.
        recipe: What the graph was prepared with; None for a float detector.
        originals: See `dq.quant.ptq.repairs.Calibration.originals`.
    """

    detector: nn.Module
    graph: QuantizedGraph | None
    recipe: Recipe | None
    originals: Mapping[str, Tensor] = field(default_factory=dict)


def float_detector(
    config: Config, content: Mapping[str, Any], source: str, device: torch.device
) -> nn.Module:
    """Return the config's detector with a checkpoint's float weights.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        content: Of a checkpoint, float or quantized.
        source: Its name, for messages.
        device: Where the detector is to be.

    Raises:
        ValueError: The checkpoint is another model's, or its classes have another order than the
            annotations.
    """
    classes = class_list(config)
    check_order(classes, content, source)
    detector = build_model(config, classes.names, initialise=False)
    load_float_state(detector, float_state(content, source), source)
    return detector.to(device)


def quantize_as_stored(
    detector: nn.Module, recipe: Recipe, content: Mapping[str, Any], source: str
) -> QuantizedGraph:
    """Quantize a float detector and give it a checkpoint's ranges and weights; return its graph.

    Args:
        detector: In float; changed in place.
        recipe: What the checkpoint was quantized with.
        content: Of the checkpoint.
        source: Its name, for messages.

    Raises:
        ValueError: The checkpoint has no ranges, or those of another model or recipe.
    """
    load_float_state(detector, repaired_state(content, source), source)
    graph = quantize_detector(detector, recipe)
    load_quantization(graph, content, source)
    return graph


def stored_detector(
    config: Config,
    content: Mapping[str, Any],
    source: str,
    device: torch.device,
    *,
    as_float: bool = False,
) -> StoredDetector:
    """Return a checkpoint's detector: fake-quantizing if it is quantized, else in float.

    Args:
        config: As `dq.detector.config.read.finish` returns it.
        content: Of the checkpoint.
        source: Its name, for messages.
        device: Where the detector is to be.
        as_float: Leave the quantizers out.

    Raises:
        ValueError: The checkpoint is another model's.
    """
    detector = float_detector(config, content, source, device)
    recipe = None if as_float else recipe_of(content)
    if recipe is None:
        return StoredDetector(detector=detector, graph=None, recipe=None)
    graph = quantize_as_stored(detector, recipe, content, source)
    set_phase(graph.quantizers, Phase.FROZEN)
    originals = originals_of(graph, content, source)
    return StoredDetector(detector=detector, graph=graph, recipe=recipe, originals=originals)


def rounding_detector(
    config: Config, content: Mapping[str, Any], source: str
) -> tuple[nn.Module, QuantizedGraph, Recipe]:
    """Return a quantized checkpoint's detector on the CPU in evaluation mode, its graph and recipe.

    Raises:
        ValueError: The checkpoint is a float one, or another model's.
    """
    if recipe_of(content) is None:
        raise ValueError(
            f"{source} is a float checkpoint; calibrate it or train it quantized first"
        )
    stored = stored_detector(config, content, source, torch.device("cpu"))
    assert stored.graph is not None
    assert stored.recipe is not None
    stored.detector.eval()  # Not chained: for mmdet's distilling detectors it returns None.
    return stored.detector, stored.graph, stored.recipe
