"""Subclasses of torch's layers that are treated like those layers.

They are declared once per process, by type. In the middle of a trace, torch.fx asks about a layer
and passes nothing else, and the layer's class belongs to the model's code. So neither an argument
nor an attribute could carry the declaration. A graph in a file takes the declarations with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

# Subclasses whose own forward computes the same; those that also pad their input by themselves.
_plain_layers: set[type[nn.Module]] = set()
_padding_layers: set[type[nn.Module]] = set()


def declare_plain_layers(*types: type[nn.Module]) -> None:
    """Treat these subclasses of a torch layer as that layer, even if they override ``forward``."""
    _plain_layers.update(types)


def declare_padding_layers(*types: type[nn.Module]) -> None:
    """Treat these subclasses as the layer; their own forward is called.

    They pad their input depending on its size, and otherwise are that layer.
    """
    _plain_layers.update(types)
    _padding_layers.update(types)


def declared_layers(modules: Iterable[nn.Module]) -> dict[str, tuple[type[nn.Module], ...]]:
    """Return what was declared about the types of these modules, for `declare_again`."""
    found = list(dict.fromkeys(type(module) for module in modules))
    return {
        "plain": tuple(kind for kind in found if kind in _plain_layers),
        "padding": tuple(kind for kind in found if kind in _padding_layers),
    }


def declare_again(declared: Mapping[str, tuple[type[nn.Module], ...]]) -> None:
    """Declare what another process had declared, see `declared_layers`."""
    declare_plain_layers(*declared["plain"])
    declare_padding_layers(*declared["padding"])


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
            same = type(module).forward is kind.forward or type(module) in _plain_layers
            return same and not has_weight_of_hook(module)
    return False


def has_weight_of_hook(module: nn.Module) -> bool:
    """Say whether a hook sets the weight before each call, as ``nn.utils.weight_norm`` does.

    The weight is no parameter then, and is out of date between a step and the next call.
    """
    return isinstance(vars(module).get("weight"), Tensor)
