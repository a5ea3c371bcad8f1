"""What each node of a graph means for quantization.

A *layer* has a weight. A *mixer* computes new values from whole tensors that an integer engine
holds as integers (add, multiply, average). A *carrier* only moves or selects values, so its output
has the integers of its input. A *join* (concatenation) moves the values of several tensors. All the
rest is *other*: it runs in float, or is fused behind a layer (activation functions).
"""

from __future__ import annotations

import operator
from enum import Enum

import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from dq.quant.layers import QuantizedLayer
from dq.quant.trace import is_plain_layer


class Role(Enum):
    """What a node does to the integers of its inputs."""

    INPUT = "input"
    LAYER = "layer"
    MIXER = "mixer"
    CARRIER = "carrier"
    JOIN = "join"
    OTHER = "other"


MIXER_FUNCTIONS = {
    operator.add,
    operator.iadd,
    operator.sub,
    operator.mul,
    operator.imul,
    operator.matmul,
    torch.add,
    torch.sub,
    torch.mul,
    torch.matmul,
    torch.bmm,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    torch.mean,
}
MIXER_METHODS = {"add", "add_", "sub", "mul", "mul_", "matmul", "mean"}
MIXER_MODULES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
CARRIER_FUNCTIONS = {
    F.max_pool2d,
    torch.nn.functional.max_pool2d_with_indices,
    F.adaptive_max_pool2d,
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
    "float",
    "type_as",
    "to",
}
CARRIER_MODULES = (
    nn.MaxPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Identity,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.PixelShuffle,
    nn.PixelUnshuffle,
    nn.ZeroPad2d,
)


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, None for other nodes."""
    if node.op != "call_module":
        return None
    assert isinstance(node.target, str)
    return root.get_submodule(node.target)


def is_layer(root: nn.Module, node: fx.Node) -> bool:
    """Say whether the node has a weight that can be quantized, or has been already."""
    module = module_of(root, node)
    return module is not None and (isinstance(module, QuantizedLayer) or is_plain_layer(module))


def is_constant(node: fx.Node) -> bool:
    """Say whether the node's value does not depend on the graph's inputs (a parameter, say)."""
    if node.op == "placeholder":
        return False
    return node.op == "get_attr" or all(is_constant(n) for n in node.all_input_nodes)


def is_shape(node: fx.Node) -> bool:
    """Say whether the node yields a size, a dtype or a device instead of a tensor."""
    if node.op == "call_method" and node.target in {"size", "dim", "numel", "new_tensor"}:
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in {"shape", "dtype", "device", "ndim"}
    if node.op != "call_function":
        return False
    arguments = node.all_input_nodes
    return bool(arguments) and all(is_shape(n) for n in arguments)


def tensor_inputs(node: fx.Node) -> list[fx.Node]:
    """Return the inputs that are tensors depending on the graph's inputs, in order."""
    return [n for n in node.all_input_nodes if not is_constant(n) and not is_shape(n)]


def role_of(root: nn.Module, node: fx.Node) -> Role:
    """Return the node's role; modules are looked up on ``root``."""
    if node.op == "placeholder":
        return Role.INPUT
    if is_shape(node) or node.op in {"get_attr", "output"}:
        return Role.OTHER
    if is_layer(root, node):
        return Role.LAYER
    module = module_of(root, node)
    if module is not None:
        if isinstance(module, MIXER_MODULES):
            return Role.MIXER
        if isinstance(module, nn.Upsample):
            return Role.CARRIER if module.mode == "nearest" else Role.MIXER
        return Role.CARRIER if isinstance(module, CARRIER_MODULES) else Role.OTHER
    return _role_of_call(node)


def _role_of_call(node: fx.Node) -> Role:
    target = node.target
    function = node.op == "call_function"
    if function and target in {torch.cat, torch.stack}:
        return Role.JOIN
    if function and target is F.interpolate:
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else "nearest")
        return Role.CARRIER if mode in {"nearest", "nearest-exact"} else Role.MIXER
    if target in (MIXER_FUNCTIONS if function else MIXER_METHODS):
        # A product with a parameter or a number only rescales: it belongs to what produced it.
        needed = 1 if _averages(node) else 2
        return Role.MIXER if len(tensor_inputs(node)) >= needed or _squares(node) else Role.OTHER
    if target in (CARRIER_FUNCTIONS if function else CARRIER_METHODS):
        return Role.CARRIER if len(tensor_inputs(node)) == 1 else Role.OTHER
    return Role.OTHER


def _averages(node: fx.Node) -> bool:
    return node.target in {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}


def _squares(node: fx.Node) -> bool:
    """``x * x`` or ``x + x``: one input node, two operands."""
    operands = [a for a in node.args if isinstance(a, fx.Node)]
    return len(operands) == 2 and operands[0] is operands[1]
