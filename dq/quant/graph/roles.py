"""What each node of a graph means for quantization.

A *layer* has a weight. A *mixer* computes new values from whole tensors that an integer engine
holds as integers: sums, products of two tensors, averages, bilinear interpolation. Its result lies
between the integers of its inputs, so it is quantized again. A *carrier* only moves or selects
values, so its output has the integers of its input. A *join* (concatenation) moves the values of
several tensors, so they share its range. Everything else is *other*: it runs in float, or is fused
with the layer before it (activation functions, group norm, products with a parameter).
"""

from __future__ import annotations

import operator
from enum import Enum

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from dq.quant.graph.nodes import PART_OF_RESULT, remembered
from dq.quant.graph.nodes import is_shape as is_shape
from dq.quant.graph.nodes import module_of as module_of
from dq.quant.quantizers.layer_types import is_plain_layer
from dq.quant.quantizers.layers import QuantizedLayer


class Role(Enum):
    """What a node does to the integers of its inputs."""

    INPUT = "input"
    LAYER = "layer"
    MIXER = "mixer"
    CARRIER = "carrier"
    JOIN = "join"
    OTHER = "other"


# Layers called as functions: their weight is computed in the graph (weight standardisation).
LAYER_FUNCTIONS = {
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
    F.linear,
}
# Averages of one tensor.
AVERAGE_FUNCTIONS = {
    F.avg_pool1d,
    F.avg_pool2d,
    F.avg_pool3d,
    F.adaptive_avg_pool1d,
    F.adaptive_avg_pool2d,
    F.adaptive_avg_pool3d,
    torch.mean,
}
AVERAGE_METHODS = {"mean"}
# Sums and products; a mixer if two tensors meet.
MIXER_FUNCTIONS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.isub,
    operator.mul,
    operator.imul,
    operator.matmul,
    torch.add,
    torch.sub,
    torch.mul,
    torch.matmul,
    torch.bmm,
    torch.einsum,
    F.scaled_dot_product_attention,
}
MIXER_METHODS = {"add", "add_", "sub", "sub_", "mul", "mul_", "matmul", "bmm"}
AVERAGE_MODULES = (
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)
CARRIER_FUNCTIONS = {
    F.max_pool1d,
    F.max_pool2d,
    F.max_pool3d,
    F.adaptive_max_pool1d,
    F.adaptive_max_pool2d,
    F.adaptive_max_pool3d,
    F.dropout,
    F.pixel_shuffle,
    F.pixel_unshuffle,
    F.pad,
    F.channel_shuffle,
    operator.getitem,
    torch.reshape,
    torch.flatten,
    torch.squeeze,
    torch.unsqueeze,
    torch.transpose,
    torch.permute,
    torch.chunk,
    torch.split,
    torch.max,
    torch.amax,
    torch.flip,
    torch.roll,
    torch.narrow,
    torch.unbind,
    torch.swapaxes,
    F.unfold,
}
CARRIER_METHODS = {
    "view",
    "reshape",
    "flatten",
    "squeeze",
    "unsqueeze",
    "transpose",
    "permute",
    "contiguous",
    "chunk",
    "split",
    "expand",
    "expand_as",
    "repeat",
    "clone",
    "detach",
    "max",
    "amax",
    "flip",
    "roll",
    "narrow",
    "unbind",
    "select",
    "swapaxes",
    "float",
    "half",
    "type_as",
    "to",
}
CARRIER_MODULES = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Unflatten,
    nn.Unfold,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ChannelShuffle,
    nn.ZeroPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)


COMPARISONS = {
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    torch.eq,
    torch.ne,
    torch.lt,
    torch.le,
    torch.gt,
    torch.ge,
}
COMPARISON_METHODS = {"eq", "ne", "lt", "le", "gt", "ge", "bool"}


def is_layer(root: nn.Module, node: fx.Node) -> bool:
    """Say whether the node has a weight that can be quantized, or is already."""
    module = module_of(root, node)
    if module is None:
        return weight_node(node) is not None
    return isinstance(module, QuantizedLayer) or is_plain_layer(module)


def weight_node(node: fx.Node) -> fx.Node | None:
    """Return the weight's node of a layer called as a function; None for all other nodes."""
    if node.op != "call_function" or node.target not in LAYER_FUNCTIONS:
        return None
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    return weight if isinstance(weight, fx.Node) and is_constant(weight) else None


@remembered
def is_constant(node: fx.Node) -> bool:
    """Say whether the node's value does not depend on the graph's inputs (such as a parameter)."""
    if node.op in {"placeholder", "get_attr"}:
        return node.op == "get_attr"
    return all(is_constant(n) for n in node.all_input_nodes)


def is_mask(node: fx.Node) -> bool:
    """Say whether the node's values are booleans, or 1 and 0 made from booleans."""
    if node.op == "call_function" and node.target in COMPARISONS:
        return True
    if node.op == "call_method" and node.target in COMPARISON_METHODS:
        return True
    if node.op == "call_method" and node.target in CARRIER_METHODS:
        return is_mask(node.all_input_nodes[0])
    return False


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that are real tensors and depend on the graph's inputs, in order."""
    inputs = node.all_input_nodes
    return [n for n in inputs if not (is_constant(n) or is_shape(n) or is_mask(n))]


def role_of(root: nn.Module, node: fx.Node) -> Role:
    """Return the node's role; modules are looked up on ``root``."""
    if node.op == "placeholder":
        return Role.INPUT
    if is_shape(node) or node.op in {"get_attr", "output"} or PART_OF_RESULT in node.meta:
        return Role.OTHER
    if is_layer(root, node):
        return Role.LAYER
    module = module_of(root, node)
    if module is not None:
        if isinstance(module, AVERAGE_MODULES):
            return Role.MIXER
        if isinstance(module, nn.Upsample):
            return Role.CARRIER if module.mode == "nearest" else Role.MIXER
        return Role.CARRIER if isinstance(module, CARRIER_MODULES) else Role.OTHER
    return _role_of_call(node)


def _role_of_call(node: fx.Node) -> Role:
    target = node.target
    function = node.op == "call_function"
    if function and target in {torch.cat, torch.concat, torch.stack}:
        return Role.JOIN
    if function and target is F.interpolate:
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        return Role.CARRIER if mode in {"nearest", "nearest-exact"} else Role.MIXER
    if target in (AVERAGE_FUNCTIONS if function else AVERAGE_METHODS):
        return Role.MIXER if tensor_inputs(node) else Role.OTHER
    if target in (MIXER_FUNCTIONS if function else MIXER_METHODS):
        # A product with a parameter or a number only rescales: it belongs to the layer before it.
        return Role.MIXER if len(tensor_inputs(node)) >= 2 or _squares(node) else Role.OTHER
    if target in (CARRIER_FUNCTIONS if function else CARRIER_METHODS):
        return Role.CARRIER if len(tensor_inputs(node)) == 1 else Role.OTHER
    return Role.OTHER


def _squares(node: fx.Node) -> bool:
    """``x * x`` or ``x + x``: one input node used twice, and not a constant."""
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    return len(operands) == 2 and operands[0] is operands[1] and bool(tensor_inputs(node))
