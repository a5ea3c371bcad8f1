"""The float model's weights in a graph whose channels are scaled, and back.

`dq.quant.ptq.channel_scales` divides the channels of a tensor and multiplies the weights that read
it. Checkpoints hold these weights as they are without scales, so that anyone can load them without
the graph. Dividing rounds, so the scaled weights are stored too: `restore_scaled_` returns to them
bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from dq.quant.graph.per_channel.channel_scales import (
    ChannelScale,
    layer_and_norm,
    layer_of,
    scale_key,
    scaled_names,
    scaled_place,
)
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.equalization import along_inputs
from dq.quant.quantizers.layers import spread_over_weight


def to_float(graph: QuantizedGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of the graph's model with the weights of the model before it was scaled.

    Args:
        graph: Its scales are read, not its weights.
        state: The model's state dict; it may have other entries, which stay as they are.
    """
    changed = {k: state[k] / f.to(state[k]) for k, f in _factors(graph).items() if k in state}
    return {**state, **changed}


def scaled_weights(graph: QuantizedGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the entries of a state dict that `to_float` changes."""
    return {key: state[key] for key in _factors(graph) if key in state}


def to_scaled(graph: QuantizedGraph, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a float model's state dict with the weights that this graph computes with."""
    changed = {k: state[k] * f.to(state[k]) for k, f in _factors(graph).items() if k in state}
    return {**state, **changed}


@torch.no_grad()
def restore_scaled_(graph: QuantizedGraph, scaled: Mapping[str, Tensor]) -> None:
    """Scale the weights of the model, which has those of the float model, in place.

    Args:
        graph: With its scales.
        scaled: The result of `scaled_weights` for the same weights. An entry of other weights,
            which were changed since, is not used.
    """
    unscaled = to_float(graph, scaled)
    factors = _factors(graph)
    for key, parameter in graph.root.named_parameters():
        if key not in factors:
            continue
        if key in scaled and torch.equal(unscaled[key].to(parameter), parameter):
            parameter.copy_(scaled[key])
        else:
            parameter.mul_(factors[key].to(parameter))


def _factors(graph: QuantizedGraph) -> dict[str, Tensor]:
    """Return what each weight was multiplied by, by its key, in a shape that can multiply it."""
    names = scaled_names(graph)
    if not names:
        return {}
    keys: dict[int, list[str]] = {}
    for key, parameter in graph.root.named_parameters(remove_duplicate=False):
        keys.setdefault(id(parameter), []).append(key)
    found: dict[str, Tensor] = {}

    def times(parameter: object, factor: Tensor) -> None:
        for key in keys.get(id(parameter), ()):
            found[key] = found[key] * factor if key in found else factor

    for name in names:
        place, scale = scaled_place(graph, name), graph.quantizers[scale_key(name)]
        assert isinstance(scale, ChannelScale)
        factor = scale.factor if place.layer is not None else 1 / scale.factor
        for reader in place.readers:
            layer = layer_of(graph.root, reader)
            times(layer.weight, along_inputs(layer, factor))
        if place.layer is not None:
            layer, norm = layer_and_norm(graph.root, place.layer)
            owner = layer if norm is None else norm
            spread = spread_over_weight(layer, factor) if norm is None else factor
            times(owner.weight, 1 / spread)
            times(owner.bias, 1 / factor)
    return found
