"""A detector's backbone, neck and head as one graph, used by its own losses and decoding.

The graph replaces ``extract_feat``. mmdet then calls the head's ``forward`` on the result, which
returns the graph's outputs. So every training and test path of mmdet works unchanged on the
quantized detector. A single-stage detector is one graph. In all others, backbone, neck and the
first dense head form the graph. RoI heads have separate graphs. Other modules after them
(transformers) run in float on the graph's fake-quantized features.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import mmcv.cnn
import torch
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, fx, nn

from dq.counted import counted
from dq.detector.instance_methods import (
    replace_method,
    replacement_of,
    replacements_kept,
    restore_method,
)
from dq.detector.model.channels import input_channels
from dq.detector.model.roi_heads import NORMS, find_roi_heads, quantize_roi_heads
from dq.error_text import error_text
from dq.names import hint
from dq.quant.graph.prepare import prepare, undo_additions_on_error
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.roles import is_layer
from dq.quant.graph.trace import Traced, TraceError
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.quantizers.layer_types import declare_padding_layers, declare_plain_layers
from dq.quant.recipes.recipe import Recipe

log = logging.getLogger(__name__)

_ACTIVATIONS = (mmcv.cnn.Swish, mmcv.cnn.HSwish, mmcv.cnn.HSigmoid)
# Heads that mmdet calls on the features only.
_HEADS = ("bbox_head", "rpn_head", "mask_head")
FEATURES = "features"
# Side of the square image on which modules that cannot be traced are run once.
_EXAMPLE_SIZE = 128


class Features(tuple[Any, ...]):
    """A detector's features, together with the head outputs of the same graph.

    Attributes:
        outputs: Outputs of each head in the graph, by its name in the detector.
    """

    outputs: Mapping[str, Any]


def trace_detector(detector: nn.Module) -> Traced:
    """Trace backbone, neck and, if possible, the dense head after them into one graph.

    Args:
        detector: An mmdet detector, float.

    Returns:
        A graph of one input, images ``(N, C, H, W)``. For a single-stage detector it returns the
        head's outputs; otherwise a dict of ``features`` and a head's outputs by its name. Modules
        outside the graph, or kept whole in it, are in ``left_float``.

    Raises:
        ValueError: Backbone and neck have no static graph.
    """
    declare_plain_layers(
        wrappers.Conv2d, wrappers.Conv3d, wrappers.ConvTranspose2d, wrappers.Linear
    )
    declare_padding_layers(Conv2dAdaptivePadding)
    if not callable(getattr(detector, "extract_feat", None)):
        raise ValueError(
            f"{type(detector).__name__} is not an mmdet detector: it has no extract_feat"
        )
    with _own_methods(detector):
        return _traced(detector)


@contextmanager
def _own_methods(detector: nn.Module) -> Iterator[None]:
    """Remove the replacements by `attach`, so that the detector uses its own methods."""
    replaced = [
        (module, name)
        for module in detector.modules()
        for name in ("extract_feat", "forward")
        if isinstance(replacement_of(module, name), _ExtractFeat | _GraphOutputs)
    ]
    with replacements_kept(replaced):
        for module, name in replaced:
            restore_method(module, name)
        yield


def _traced(detector: nn.Module) -> Traced:
    head = _dense_head(detector)
    reasons: dict[str, str] = {}
    traced = None
    if head is not None:
        try:
            traced = _trace(detector, head)
        except TraceError as error:
            reasons[head] = error_text(error)
        if traced is not None and head in traced.left_float:
            reasons[head], traced = traced.left_float[head], None
    if traced is None:
        try:
            traced = _trace(detector, None)
        except TraceError as error:
            reason = error_text(error)
            raise ValueError(f"this detector cannot be quantized: {reason}") from error
    if not any(is_layer(detector, node) for node in traced.graph.nodes):
        first = next(iter(traced.left_float.values()), "it has no convolution")
        raise ValueError(f"this detector cannot be quantized: {first}")
    left_float = {**_outside(detector, traced.graph, reasons), **traced.left_float}
    return replace(traced, left_float=left_float)


def _dense_head(detector: nn.Module) -> str | None:
    """Return the name of the head that is a function of only the features, if there is one."""
    for name in _HEADS:
        head = getattr(detector, name, None)
        if isinstance(head, nn.Module):
            break
    else:
        return None
    if "forward" not in {n for c in type(head).__mro__[:-2] for n in vars(c)}:
        return None  # Stages of a cascade, or queries, are called in other ways.
    parameters = inspect.signature(head.forward).parameters.values()
    needed = [p for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    return name if len(needed) == 1 else None


def _trace(detector: nn.Module, head: str | None) -> Traced:
    extract: Any = detector.extract_feat
    children = {name for name, _ in detector.named_children()}
    whole = head is not None and children <= {"backbone", "neck", head} and head == "bbox_head"

    def network(img: Tensor) -> Any:
        features = extract(img)
        if head is None:
            return {FEATURES: features}
        outputs = getattr(detector, head)(features)
        return outputs if whole else {FEATURES: features, head: outputs}

    some = next(detector.parameters())
    shape = (1, input_channels(detector), _EXAMPLE_SIZE, _EXAMPLE_SIZE)
    example = torch.zeros(shape, device=some.device, dtype=some.dtype)
    return trace_tolerantly(detector, network, example, is_leaf=_is_leaf)


def _outside(detector: nn.Module, graph: fx.Graph, reasons: Mapping[str, str]) -> dict[str, str]:
    """Return the detector's children, and layers of the graph, that run in float, with reasons."""
    found: dict[str, str] = {}
    targets = {str(n.target) for n in graph.nodes if n.op in {"call_module", "get_attr"}}
    reached = {target.partition(".")[0] for target in targets}
    for name, child in detector.named_children():
        if name not in reached and name != CONTAINER and any(True for _ in child.parameters()):
            found[name] = reasons.get(name, "runs after the graph, on its outputs")
    for node in graph.nodes:
        if node.op == "call_module" and not is_layer(detector, node):
            module = detector.get_submodule(str(node.target))
            if not isinstance(module, NORMS) and any(p.dim() > 1 for p in module.parameters()):
                found.setdefault(str(node.target), f"{type(module).__name__} stays float by rule")
    return found


def parameters_outside(
    detector: nn.Module, graph: fx.Graph | Traced, *, heads: bool = False
) -> list[str]:
    """Return the names of backbone and neck parameters that the graph never uses.

    Such parameters (such as the last stage of a backbone with an unused output) never get a
    gradient, but DistributedDataParallel would wait for one.

    Args:
        detector: The traced model.
        graph: Its graph.
        heads: Those of the heads too, for a training that runs nothing but the graph.
    """
    traced = graph if isinstance(graph, Traced) else Traced(graph=graph)
    graphs = [g for g in (traced.graph, traced.training_graph) if g is not None]
    nodes = [node for g in graphs for node in g.nodes]
    targets = {str(n.target) for n in nodes if n.op in {"call_module", "get_attr"}}
    unused = []
    for name, _ in detector.named_parameters():
        if name.startswith(f"{CONTAINER}."):
            continue
        if not heads and name.partition(".")[0] not in {"backbone", "neck"}:
            continue
        parts = name.split(".")
        owners = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        if not owners & targets:
            unused.append(name)
    return unused


def _is_leaf(module: nn.Module) -> bool:
    """Return whether a module stays one node: an activation function, or a compiled operator."""
    if isinstance(module, (*_ACTIVATIONS, DropPath)):
        return True
    return type(module).__module__.startswith("mmcv.ops.")


def quantize_detector(detector: nn.Module, recipe: Recipe) -> QuantizedGraph:
    """Insert quantizers into the detector and make its own methods run on the quantized graph.

    Every quantizer begins in phase OFF. The detector's modules, parameters and float state-dict
    keys do not change; everything new is in ``detector.quantizers``. Modules that stay float are in
    the graph's ``left_float`` and in a warning.

    Args:
        detector: A float detector, built by mmdet.
        recipe: Bits and formats of each module.

    Raises:
        ValueError: It cannot be traced, is quantized already, or lacks a quantizer of the recipe.
    """
    traced = trace_detector(detector)
    heads = find_roi_heads(detector)
    with undo_additions_on_error(detector):
        graph = prepare(detector, recipe, traced)
        quantize_roi_heads(detector, graph, recipe, heads, is_leaf=_is_leaf)
        _check_raised(graph, recipe)
    if graph.left_float:
        log.warning(
            "left in float: %s",
            "; ".join(f"{name} ({reason})" for name, reason in summary(graph.left_float)),
        )
    attach(detector, graph)
    return graph


def _check_raised(graph: QuantizedGraph, recipe: Recipe) -> None:
    known = {site.name for network in graph.networks.values() for site in network.sites}
    for name in recipe.raised:
        if name not in known:
            raise ValueError(
                f"quant.raised: {name!r} is not a quantizer of this detector; {hint(name, known)}"
            )


def summary(left_float: Mapping[str, str], most: int = 6) -> Iterable[tuple[str, str]]:
    """Return names and reasons, with modules of the same reason grouped.

    Args:
        left_float: As in `Traced`.
        most: Maximum number of entries; the last one counts the rest.
    """
    groups: dict[str, list[str]] = {}
    for name, reason in left_float.items():
        groups.setdefault(reason, []).append(name)
    entries = [
        (names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", reason)
        for reason, names in groups.items()
    ]
    if len(entries) > most:
        entries = [
            *entries[:most],
            ("...", f"and {counted(len(entries) - most, 'other reason[s]')}"),
        ]
    return entries


def features_of(result: Any) -> Any:
    """Return the result of ``extract_feat`` from the result of the detector's graph."""
    if not (isinstance(result, dict) and FEATURES in result):
        return result
    if isinstance(result[FEATURES], Tensor):
        return result[FEATURES]
    features = Features(result[FEATURES])
    features.outputs = {name: part for name, part in result.items() if name != FEATURES}
    return features


def attach(detector: nn.Module, graph: Callable[[Tensor], Any]) -> None:
    """Make mmdet's methods of ``detector`` use ``graph`` for backbone, neck and head.

    Args:
        detector: An mmdet detector.
        graph: Callable, images -> result of the detector's graph, see `trace_detector`.
    """
    replace_method(detector, "extract_feat", _ExtractFeat(graph))
    name = _dense_head(detector)
    if name is not None:
        head = getattr(detector, name)
        replace_method(head, "forward", _GraphOutputs(name, head))


def attach_all(detector: nn.Module, networks: Mapping[str, Callable[..., Any]]) -> None:
    """Attach the detector's network, named ``""``, and the networks of the RoI heads.

    Args:
        detector: As for `attach`.
        networks: By the qualified name of the part.
    """
    for name, network in networks.items():
        if name:
            replace_method(detector.get_submodule(name), "forward", network)
        else:
            attach(detector, network)


# Objects, not closures: `copy.deepcopy` copies them with the detector, so that a copy runs its own
# graph and weights. A function would be shared with the original.
@dataclass(slots=True)
class _ExtractFeat:
    """Replaces a detector's ``extract_feat``: images -> features, by the graph."""

    graph: Callable[[Tensor], Any]

    def __call__(self, img: Tensor) -> Any:
        return features_of(self.graph(img))


@dataclass(slots=True)
class _GraphOutputs:
    """Replaces a head's ``forward``: the graph's outputs if there are any, else the head's own."""

    name: str
    head: nn.Module

    def __call__(self, features: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(features, Features):
            if self.name not in features.outputs:
                return type(self.head).forward(self.head, features, *arguments, **options)
            return features.outputs[self.name]
        return features
