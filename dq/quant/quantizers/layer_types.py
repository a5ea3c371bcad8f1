"""Subclasses of torch's layers that are treated like those layers."""

from __future__ import annotations

from torch import nn

# Subclasses of torch's layers whose own forward computes the same.
_plain_layers: set[type[nn.Module]] = set()


def declare_plain_layers(*types: type[nn.Module]) -> None:
    """Treat these subclasses of a torch layer as that layer, whatever their forward is."""
    _plain_layers.update(types)


# Subclasses that pad their input depending on its size, and otherwise are that layer.
_padding_layers: set[type[nn.Module]] = set()


def declare_padding_layers(*types: type[nn.Module]) -> None:
    """Treat these subclasses as the layer; their own forward is called."""
    _plain_layers.update(types)
    _padding_layers.update(types)


def pads_by_itself(layer: nn.Module) -> bool:
    """Say whether the layer was declared to pad its input itself."""
    return type(layer) in _padding_layers


def is_plain_layer(module: nn.Module) -> bool:
    """Say whether ``module`` computes exactly what torch's layer of its kind computes."""
    for kind in (
        nn.Conv1d,
        nn.Conv2d,
        nn.Conv3d,
        nn.ConvTranspose1d,
        nn.ConvTranspose2d,
        nn.ConvTranspose3d,
        nn.Linear,
    ):
        if isinstance(module, kind):
            return type(module).forward is kind.forward or type(module) in _plain_layers
    return False
