"""One scale per channel in front of a quantizer, for tensors whose channels differ much in size.

A quantizer has one scale for all channels, so one large channel coarsens all others. Layers with
ReLU between them can exchange a factor per channel (`dq.quant.ptq.equalization`); SiLU and the like
do not commute with it. So the graph multiplies the channels itself, in float, after the function
and before the quantizer, where the engine has real numbers anyway. The layers that read the tensor
undo it with their weights.

An engine that rounds the results of the layer, the sigmoid and the product one by one
(`Target.splits`) has no such place. There the layer before them divides its channels, and only the
sigmoid's argument is multiplied: ``x / s * sigmoid(s * (x / s))``.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.nodes import called_name, module_of
from dq.quant.graph.placement import readers_of
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer


class ChannelScale(nn.Module):
    """Multiply every channel by its factor.

    Args:
        num_channels: Length of dimension 1.

    Buffer ``factor``, float32 ``(num_channels,)``, 1 at first.
    """

    factor: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("factor", torch.ones(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the products; same shape ``(N, C, ...)`` and dtype."""
        return x * self.factor.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """How the channels of a quantizer's input can be scaled.

    Attributes:
        value: The node whose value is multiplied.
        reader: The only node that reads the product.
        layer: The layer before ``value``, which divides its channels, so that the product keeps the
            original values. None if the product goes to the quantizer.
        readers: The layers that read the quantizer.
        num_channels: Number of channels.
    """

    value: fx.Node
    reader: fx.Node
    layer: fx.Node | None
    readers: tuple[fx.Node, ...]
    num_channels: int


def scaled_at(root: nn.Module, quantizer: fx.Node) -> Scaled | None:
    """Return how the channels of this quantizer's input can be scaled; None if they cannot.

    Args:
        root: The model.
        quantizer: Calls an activation quantizer.
    """
    readers = tuple(readers_of(quantizer))
    channels = {_channels_read(root, reader) for reader in readers}
    if len(channels) != 1 or None in channels:
        return None
    (num_channels,) = channels
    assert num_channels is not None
    source = quantizer.args[0]
    assert isinstance(source, fx.Node)
    if readers_of(source) != [quantizer]:
        return None
    value, reader, layer = source, quantizer, None
    if called_name(source) == "mul" and (gated := _gated(root, source)) is not None:
        value, reader, layer = gated
    return Scaled(
        value=value, reader=reader, layer=layer, readers=readers, num_channels=num_channels
    )


def _channels_read(root: nn.Module, node: fx.Node) -> int | None:
    """Return the number of input channels of a convolution's node; None for other nodes."""
    if not isinstance(module_of(root, node), QuantizedLayer):
        return None
    layer = layer_of(root, node)
    return layer.in_channels if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) else None


def layer_of(root: nn.Module, node: fx.Node) -> nn.Module:
    """Return the float layer that a `QuantizedLayer`'s node computes."""
    given = node.args[1]
    assert isinstance(given, fx.Node)
    return root.get_submodule(str(given.target))


def layer_and_norm(root: nn.Module, node: fx.Node) -> tuple[nn.Module, nn.Module | None]:
    """Return the float layer of a `QuantizedLayer`'s node, and the norm that is folded into it."""
    norm = node.args[2] if len(node.args) > 2 else None
    found = root.get_submodule(str(norm.target)) if isinstance(norm, fx.Node) else None
    return layer_of(root, node), found


def _gated(root: nn.Module, product: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
    """Return value, reader and layer of `Scaled` for ``x * quantizer(sigmoid(x))``, else None.

    Here ``x`` is the fake-quantized result of the layer.
    """
    if len(product.all_input_nodes) != 2:
        return None
    rounded, gate = product.all_input_nodes
    if not all(isinstance(module_of(root, n), ActivationQuantizer) for n in (rounded, gate)):
        return None
    sigmoid, layer = gate.args[0], rounded.args[0]
    assert isinstance(sigmoid, fx.Node)
    assert isinstance(layer, fx.Node)
    if called_name(sigmoid) != "sigmoid" or readers_of(sigmoid) != [gate]:
        return None
    if readers_of(gate) != [product] or set(readers_of(rounded)) != {sigmoid, product}:
        return None
    if not isinstance(module_of(root, layer), QuantizedLayer) or readers_of(layer) != [rounded]:
        return None
    return rounded, sigmoid, layer


def insert_channel_scales_(root: nn.Module, graph: fx.Graph, names: Collection[str]) -> None:
    """Scale the channels of some quantizers' inputs, in the graph; new factors are 1.

    Args:
        root: The model. Its child ``quantizers`` gets the scales, named after their quantizers; one
            that is there already serves this graph too.
        graph: With quantizers; changed in place.
        names: Of quantizers.
    """
    quantizers = root.get_submodule(CONTAINER)
    assert isinstance(quantizers, nn.ModuleDict)
    for node in list(graph.nodes):
        _, _, name = str(node.target).partition(".")
        if name not in names or not isinstance(module_of(root, node), ActivationQuantizer):
            continue
        found = scaled_at(root, node)
        if found is None:
            continue  # Another graph of the model may have the place.
        key = scale_key(name)
        if key not in quantizers:
            device = next(quantizers[name].buffers()).device
            quantizers[key] = ChannelScale(found.num_channels).to(device)
        with graph.inserting_after(found.value):
            new = graph.call_module(f"{CONTAINER}.{key}", (found.value,))
        found.reader.replace_input_with(found.value, new)


def scale_channels_of_(graph: QuantizedGraph, names: Collection[str]) -> None:
    """Scale the channels of some quantizers' inputs in a prepared graph; new factors are 1.

    Args:
        graph: Changed in place, in both modes.
        names: Of quantizers; those whose channels are scaled already stay as they are.
    """
    new = [name for name in names if scale_key(name) not in graph.quantizers]
    if not new:
        return
    for own in (graph.graph, graph.training_graph):
        if own is not None:
            insert_channel_scales_(graph.root, own, new)
    # In the order of the graph, whichever came first: ranks exchange their state in its order.
    for name in scaled_names(graph):
        graph.quantizers[scale_key(name)] = graph.quantizers.pop(scale_key(name))
    graph.recompile()


def scaled_place(graph: QuantizedGraph, name: str) -> Scaled:
    """Return where the channels of this quantizer's input are scaled; see `scaled_names`."""
    calls = {str(node.target): node for node in graph.graph.nodes if node.op == "call_module"}
    quantizer, scale = (calls[f"{CONTAINER}.{key}"] for key in (name, scale_key(name)))
    (value,), (reader,) = scale.args, readers_of(scale)
    assert isinstance(value, fx.Node)
    layer = None if reader is quantizer else value.args[0]
    assert layer is None or isinstance(layer, fx.Node)
    own = graph.quantizers[scale_key(name)]
    assert isinstance(own, ChannelScale)
    return Scaled(
        value=value,
        reader=reader,
        layer=layer,
        readers=tuple(readers_of(quantizer)),
        num_channels=len(own.factor),
    )


def scaled_names(graph: QuantizedGraph) -> tuple[str, ...]:
    """Return the names of the quantizers whose inputs' channels are scaled."""
    return tuple(name for name in graph.activations() if scale_key(name) in graph.quantizers)


def scale_key(name: str) -> str:
    """Return the name of the `ChannelScale` of the quantizer of this name."""
    return f"{name}/scale"
