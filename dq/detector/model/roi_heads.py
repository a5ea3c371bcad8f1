"""RoI heads as separate graphs; they run on the boxes of the first stage."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dq.detector.instance_methods import replace_method
from dq.detector.model.channels import input_channels
from dq.error_text import error_text
from dq.quant.graph.prepare import prepare_part
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import is_layer
from dq.quant.graph.trace import LeafTest, TraceError
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.quantizers.restore import restored_state
from dq.quant.recipes.recipe import Recipe

# They run in float like every activation function, so they are not reported.
NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm2d)
# Boxes per image for calibration.
NUM_BOXES = 100
_EXAMPLE_SIZE = 128


def find_roi_heads(detector: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Return example inputs of every RoI head that `run_roi_heads` runs.

    Such heads take one or two tensors and no options. Heads that are called in another way, or only
    in training, would never be calibrated, so they are not included.

    Args:
        detector: A float detector; one without RoI heads has none.
    """
    roi_head = getattr(detector, "roi_head", None)
    if not isinstance(roi_head, nn.Module):
        return {}
    seen: dict[str, tuple[Tensor, ...] | None] = {}
    some = next(detector.parameters())
    shape = (1, input_channels(detector), _EXAMPLE_SIZE, _EXAMPLE_SIZE)
    image = torch.zeros(shape, device=some.device, dtype=some.dtype)
    extract: Any = detector.extract_feat
    handles = []
    for name, module in detector.named_modules():
        if _is_head(name):

            def record(module: nn.Module, inputs: Any, options: Any, name: str = name) -> None:
                needed = len(inspect.signature(module.forward).parameters)
                fits = not options and all(isinstance(x, Tensor) for x in inputs)
                fits = fits and len(inputs) == needed
                # Two boxes are enough to find the number of dimensions and the structure.
                seen[name] = tuple(x[:2] for x in inputs) if fits and needed < 3 else None

            handles.append(module.register_forward_pre_hook(record, with_kwargs=True))
    try:
        with restored_state(detector), torch.no_grad():
            detector.eval()
            run_roi_heads(detector, extract(image), image)
    except Exception:
        return {}  # Its stages get their inputs in another way; they stay float and are reported.
    finally:
        for handle in handles:
            handle.remove()
    return {name: inputs for name, inputs in seen.items() if inputs}


def _is_head(name: str) -> bool:
    """Return whether ``name`` is a head of the RoI head, or one of its stages."""
    parts = name.split(".")
    if parts[0] != "roi_head" or len(parts) not in (2, 3) or not parts[1].endswith("_head"):
        return False
    return len(parts) == 2 or parts[2].isdigit()


def quantize_roi_heads(
    detector: nn.Module,
    graph: QuantizedGraph,
    recipe: Recipe,
    heads: dict[str, tuple[Tensor, ...]],
    *,
    is_leaf: LeafTest,
) -> None:
    """Give each head a quantized graph that the detector runs; update ``left_float``.

    Args:
        detector: The prepared detector.
        graph: Its graph; the heads' graphs are stored in ``graph.parts``.
        recipe: Bits and formats of each module.
        heads: Result of `find_roi_heads`.
        is_leaf: Returns whether to keep a module as one node.
    """
    reasons: dict[str, str] = {}
    for name, examples in heads.items():
        head = detector.get_submodule(name)
        try:
            traced = trace_tolerantly(detector, head, *examples, is_leaf=is_leaf)
        except TraceError as error:
            reasons[name] = error_text(error)
            continue
        if name in traced.left_float:
            reasons[name] = traced.left_float[name]
            continue
        if not any(is_layer(detector, node) for node in traced.graph.nodes):
            continue
        part = prepare_part(graph, recipe, traced, name)
        graph.left_float.update(traced.left_float)
        replace_method(head, "forward", part)
    if graph.parts:
        graph.left_float.pop("roi_head", None)
        for owner in _float_heads(detector, graph):
            graph.left_float.setdefault(owner, reasons.get(owner, "gets its inputs in another way"))


def _float_heads(detector: nn.Module, graph: QuantizedGraph) -> list[str]:
    """Return the RoI heads, and other children of the RoI head, that are in no graph."""
    found = []
    for name, module in detector.named_modules():
        if not name.startswith("roi_head.") or any(_is_in(name, part) for part in graph.parts):
            continue
        if isinstance(module, NORMS):
            continue
        if any(parameter.dim() > 1 for parameter in module.parameters(recurse=False)):
            parts = name.split(".")
            found.append(".".join(parts[: 3 if len(parts) > 2 and parts[2].isdigit() else 2]))
    return list(dict.fromkeys(found))


def _is_in(name: str, part: str) -> bool:
    """Return whether the module is the part or inside it; stage 10 is not inside stage 1."""
    return name == part or name.startswith(f"{part}.")


@torch.no_grad()
def run_roi_heads(
    detector: nn.Module,
    features: Sequence[Tensor],
    images: Tensor,
    boxes: Sequence[Tensor] | None = None,
) -> list[Tensor]:
    """Run every RoI head on the proposals of the first stage, or on given boxes.

    Inference is not enough: it runs mask heads only on detections, and there may be none.

    Args:
        detector: A two-stage detector in evaluation mode.
        features: Result of its ``extract_feat``.
        images: ``(N, C, H, W)``.
        boxes: For each image, ``(boxes, 4)``, corners in pixels; None for the proposals.

    Returns:
        The boxes of each image.
    """
    roi_head: Any = detector.roi_head
    if boxes is None:
        boxes = _proposals(detector, features, images)
    for index, proposals in enumerate(boxes):
        roi_head.forward_dummy(tuple(level[index : index + 1] for level in features), proposals)
    return list(boxes)


def _proposals(detector: nn.Module, features: Sequence[Tensor], images: Tensor) -> list[Tensor]:
    """Return the first stage's boxes of each image, random ones if it has no network."""
    channels, height, width = images.shape[-3:]
    meta = {
        "img_shape": (height, width, channels),
        "ori_shape": (height, width, channels),
        "pad_shape": (height, width, channels),
        "scale_factor": np.ones(4, dtype=np.float32),
        "flip": False,
        "flip_direction": None,
    }
    rpn_head: Any = getattr(detector, "rpn_head", None)
    if rpn_head is None:
        corners = torch.rand(NUM_BOXES, 2, 2, device=images.device).sort(1).values
        size = torch.tensor([width, height], device=images.device)
        return [(corners * size).flatten(1).to(images.dtype)] * len(images)
    found = rpn_head.simple_test_rpn(features, [meta] * len(images))
    return [box[:NUM_BOXES, :4] for box in found]
