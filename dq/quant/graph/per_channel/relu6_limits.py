"""ReLU6 with one limit per channel, which cross-layer equalization may change.

Dividing a channel by s before ReLU6 and multiplying it by s afterwards changes the clipping, unless
the limit is divided by s too. Nagel et al. 2019 (arXiv 1906.04721, section 5.1.1) replace ReLU6 by
ReLU, which changes the model. A limit per channel does not, and integer engines support it as the
clamp after every convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.activation_nodes import clip_of
from dq.quant.graph.roles import module_of
from dq.quant.quantizers.layers import QuantizedLayer

LIMIT = 6.0


class ChannelClip(nn.Module):
    """Clamp every channel to between 0 and its limit.

    Args:
        num_channels: Length of dimension 1.

    Buffer ``limit``, float32 ``(num_channels,)``, 6 at first.
    """

    limit: Tensor

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.register_buffer("limit", torch.full((num_channels,), LIMIT))

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` clamped; same shape ``(N, C, ...)`` and dtype."""
        limit = self.limit.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
        return torch.minimum(x.clamp(min=0), limit)


def is_relu6(root: nn.Module, node: fx.Node) -> bool:
    """Say whether the node computes ReLU6."""
    return clip_of(root, node) == (0.0, LIMIT)


def free_clips_(
    root: nn.Module, graph: fx.Graph, quantizers: nn.ModuleDict, *, create: bool = True
) -> None:
    """Replace each ReLU6 that is the only reader of a convolution by a `ChannelClip`, in the graph.

    Args:
        root: The model; its own modules do not change.
        graph: Changed in place; its layers are quantized layers already.
        quantizers: Gets the clips, named after their layers and numbered.
        create: Make clips. False uses those of the model's other graph. Equalization changes limits
            only after a layer that this graph calls once, so further calls share the last clip.
    """
    made: dict[str, list[str]] = {}
    if not create:
        for name, module in quantizers.named_children():
            if isinstance(module, ChannelClip):
                made.setdefault(name.rpartition("#")[0], []).append(name)
    replaced = 0
    for node in list(graph.nodes):
        if not is_relu6(root, node) or not node.all_input_nodes:
            continue
        source = node.all_input_nodes[0]
        if not isinstance(module_of(root, source), QuantizedLayer) or len(source.users) != 1:
            continue
        layer_node = source.args[1]
        assert isinstance(layer_node, fx.Node)
        layer = root.get_submodule(str(layer_node.target))
        if not isinstance(layer, nn.Conv2d):
            continue
        container, _, layer_name = str(source.target).partition(".")
        if create:
            name = f"{layer_name}#{replaced}/clip"
            if name not in quantizers:
                quantizers[name] = ChannelClip(layer.out_channels)
        else:
            others = made.get(layer_name)
            if not others:
                continue
            name = others.pop(0) if len(others) > 1 else others[0]
        with graph.inserting_after(node):
            new = graph.call_module(f"{container}.{name}", (source,))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        replaced += 1
