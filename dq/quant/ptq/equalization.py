"""Cross-layer equalization: balance the channels of two layers without changing the model.

ReLU commutes with a positive factor. So one layer's channel may be divided by s if the next layer's
is multiplied by s. After Nagel et al. 2019 (arXiv 1906.04721, section 4.1): s gives the channel's
weights the same range in both layers, and this is repeated over all pairs until nothing changes.
The factors go into the float parameters (of the batch norm, if one is folded) and into the limits
of ReLU6, which must be free for that (`Recipe.free_clips`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dq.counted import counted
from dq.quant.graph.per_channel.relu6_limits import ChannelClip
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.roles import module_of
from dq.quant.numerics.activation_functions import FUNCTIONS
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer, spread_over_weight

log = logging.getLogger(__name__)

# What commutes with a positive factor per channel: these activation functions, and what follows.
_SCALING = [function for function in FUNCTIONS if function.scales]
_LINEAR: tuple[type[nn.Module], ...] = tuple(kind for each in _SCALING for kind in each.modules)
_LINEAR += (nn.Identity, nn.Dropout, nn.Dropout2d, nn.ZeroPad2d)
_LINEAR += (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_LINEAR += (ChannelClip, ActivationQuantizer)
_LINEAR_FUNCTIONS = {call for each in _SCALING for call in each.calls}
_LINEAR_FUNCTIONS |= {F.max_pool2d, F.avg_pool2d, F.dropout}
_LINEAR_METHODS = {name for each in _SCALING for name in each.methods} | {"contiguous", "clone"}
# Limit of a channel's factor; a larger one would amplify the rounding noise of dead channels.
LARGEST_FACTOR = 2.0**12
_FLOATS = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two layers with only nodes between them that commute with a factor per channel."""

    first: nn.Module
    norm: nn.Module | None
    clips: tuple[ChannelClip, ...]
    second: nn.Module
    second_norm: nn.Module | None


def pairs(graph: QuantizedGraph) -> list[Pair]:
    """Return the pairs that can be equalized, in the order of execution.

    Layers that are called more than once, and norms without affine parameters, are left out.
    """
    layers = {f"{CONTAINER}.{entry[0].name}": entry for entry in graph.layers()}
    is_alone = alone(graph)
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_module" or not is_alone(node):
            continue
        next_layer, clips = _next_layer(graph, node)
        if next_layer is None or not is_alone(next_layer):
            continue
        _, _, first, norm = layers[str(node.target)]
        _, _, second, second_norm = layers[str(next_layer.target)]
        if not scales_outputs(first, norm):
            continue
        if isinstance(first, nn.Linear) != isinstance(second, nn.Linear):
            continue  # The channels are different dimensions.
        found.append(
            Pair(
                first=first,
                norm=norm,
                clips=tuple(clips),
                second=second,
                second_norm=second_norm,
            )
        )
    return found


def alone(graph: QuantizedGraph) -> Callable[[fx.Node], bool]:
    """Return a rule that says whether a node is the only call of a layer with one norm."""
    layers = {f"{CONTAINER}.{entry[0].name}": entry[0].module for entry in graph.layers()}
    calls = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    owners = Counter(site.module for site in graph.sites if site.kind == "weight")

    def is_alone(node: fx.Node) -> bool:
        target = str(node.target)
        return target in layers and calls[target] == 1 and owners[layers[target]] == 1

    return is_alone


def scales_outputs(layer: nn.Module, norm: nn.Module | None) -> bool:
    """Return whether `divide_outputs_` can divide the layer's result."""
    return norm is None or (norm.weight is not None and norm.bias is not None)


def _next_layer(graph: QuantizedGraph, node: fx.Node) -> tuple[fx.Node | None, list[ChannelClip]]:
    """Return the only layer after ``node`` that gets its channels, and the clips in between."""
    clips: list[ChannelClip] = []
    while len(node.users) == 1:
        node = next(iter(node.users))
        module = module_of(graph.root, node)
        if isinstance(module, QuantizedLayer):
            return node, clips
        if isinstance(module, ChannelClip):
            clips.append(module)
        linear = (
            isinstance(module, _LINEAR)
            if module is not None
            else node.target in (_LINEAR_METHODS if node.op == "call_method" else _LINEAR_FUNCTIONS)
        )
        if not linear:
            break
    return None, []


@torch.no_grad()
def equalize_(graph: QuantizedGraph, *, rounds: int = 40, tolerance: float = 1e-3) -> int:
    """Equalize all pairs, in place; ranges observed before are no longer valid.

    Args:
        graph: Prepared; its float function does not change, up to float rounding.
        rounds: Largest number of passes over all pairs.
        tolerance: Stop when no factor differs from 1 by more.

    Returns:
        The number of pairs.
    """
    found = pairs(graph)
    for _ in range(rounds):
        worst = max((float((_equalize_pair_(p) - 1).abs().max()) for p in found), default=0.0)
        if worst < tolerance:
            break
    log.info("equalized %s of layers", counted(len(found), "pair[s]"))
    return len(found)


def _equalize_pair_(pair: Pair) -> Tensor:
    """Equalize one pair and return the factors, ``(channels,)``."""
    folded, _ = QuantizedLayer.folded(pair.first, pair.norm)
    given = output_extent(pair.first, folded)
    second, _ = QuantizedLayer.folded(pair.second, pair.second_norm)
    taken = input_extent(pair.second, second)
    factor = torch.sqrt(given / taken).clamp(1 / LARGEST_FACTOR, LARGEST_FACTOR)
    dead = (given < _FLOATS) | (taken < _FLOATS)
    factor = torch.where(dead, torch.ones_like(factor), factor)
    divide_outputs_(pair.first, pair.norm, factor)
    for clip in pair.clips:
        clip.limit.copy_(clip.limit / factor)
    weight = pair.second.weight
    assert isinstance(weight, Tensor)
    weight.copy_(weight * along_inputs(pair.second, factor))
    return factor


@torch.no_grad()
def divide_outputs_(layer: nn.Module, norm: nn.Module | None, factor: Tensor) -> None:
    """Divide each channel of the result of a layer, and of its norm if it has one.

    Args:
        layer: Convolution, transposed convolution or linear; changed in place if there is no norm.
        norm: Changed in place.
        factor: ``(channels,)``.
    """
    owner = layer if norm is None else norm
    weight, bias = owner.weight, owner.bias
    assert isinstance(weight, Tensor)
    weight.copy_(weight / (spread_over_weight(layer, factor) if norm is None else factor))
    if isinstance(bias, Tensor):
        bias.copy_(bias / factor)


def output_extent(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return each output channel's largest absolute weight, ``(channels,)``."""
    if isinstance(layer, _ConvTransposeNd):
        grouped = weight.reshape(layer.groups, -1, *weight.shape[1:]).abs()
        return grouped.amax([d for d in range(grouped.dim()) if d not in (0, 2)]).flatten()
    return weight.abs().flatten(1).amax(1)


def input_extent(layer: nn.Module, weight: Tensor) -> Tensor:
    """Return each input channel's largest absolute weight, ``(channels,)``."""
    if isinstance(layer, _ConvTransposeNd):
        return weight.abs().flatten(1).amax(1)
    groups = getattr(layer, "groups", 1)
    grouped = weight.abs().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    return grouped.amax((1, 3)).flatten()


def along_inputs(layer: nn.Module, factor: Tensor) -> Tensor:
    """Return the factors in a shape that multiplies ``layer.weight`` by input channel."""
    assert isinstance(layer, _ConvNd | nn.Linear)
    if isinstance(layer, _ConvTransposeNd):
        return factor.reshape(-1, *[1] * (layer.weight.dim() - 1))
    groups = getattr(layer, "groups", 1)
    per_group = factor.reshape(groups, -1)
    spread = per_group.repeat_interleave(layer.weight.shape[0] // groups, dim=0)
    return spread.reshape(*spread.shape, *[1] * (layer.weight.dim() - 2))


REPAIR = RepairStep(
    apply=lambda graph, samples, settings: equalize_(graph),
    changes_ranges=True,
    in_parts=True,
    frees_clips=True,
)
