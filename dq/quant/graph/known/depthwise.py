"""Which layers are depthwise: each of their groups reads a single channel."""

from __future__ import annotations

from torch import fx, nn

from dq.quant.graph.known.calls import owner_of
from dq.quant.graph.roles import module_of, weight_node
from dq.quant.quantizers.layers import QuantizedLayer


def is_depthwise(root: nn.Module, node: fx.Node) -> bool:
    """Say whether the node calls a convolution with one input channel in each group.

    Args:
        root: The model.
        node: A layer, quantized or not; all other nodes are not depthwise.
    """
    layer = _layer(root, node)
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == getattr(layer, "in_channels", None)


def _layer(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that has the groups and channels of the node's layer."""
    module = module_of(root, node)
    if isinstance(module, QuantizedLayer):
        own = node.args[1]
        assert isinstance(own, fx.Node)
        return root.get_submodule(str(own.target))
    if module is None and weight_node(node) is not None:
        # A layer called as a function by a module, such as one with weight standardisation.
        return root.get_submodule(owner_of(node).rpartition(".")[0])
    return module
