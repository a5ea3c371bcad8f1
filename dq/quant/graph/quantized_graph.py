"""The graph of a prepared model, with the list of its quantizers and their places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from dq.quant.graph.fused.activations import MergedGraph
from dq.quant.graph.trace import Traced
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.layers import QuantizedLayer

# The model's child that holds all quantizer state.
CONTAINER = "quantizers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The place of a quantizer.

    Attributes:
        name: Its name below ``model.quantizers``.
        kind: ``weight``; ``parameter`` for a weight that the graph computes, as in weight
            standardisation; ``activation``.
        module: Qualified name of the module that owns the weight or produces the tensor, or the
            graph's own name.
        call: Number of earlier calls of that module (pyramid levels of a shared head: 0, 1, ...).
        norm: Qualified name of the folded batch norm, for weights.
    """

    name: str
    kind: str
    module: str
    call: int = 0
    norm: str | None = None


class QuantizedGraph(MergedGraph):
    """The graph of a prepared model and the list of its quantizers.

    Args:
        root: The model; its child ``quantizers`` holds all quantizer state.
        graph: The rewritten graph.
        sites: One per quantizer, in the order of execution.

    Attributes:
        parts: Graphs of parts that run separately (RoI heads), by qualified name.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph | Traced, sites: tuple[Site, ...]) -> None:
        self.sites = sites
        self.parts: dict[str, QuantizedGraph] = {}
        super().__init__(root, graph)

    @property
    def networks(self) -> dict[str, QuantizedGraph]:
        """This graph as ``""``, and its parts by name, in the order of execution."""
        return {"": self, **self.parts}

    @property
    def quantizers(self) -> nn.ModuleDict:
        """The model's quantizers by name."""
        found = getattr(self.root, CONTAINER)
        assert isinstance(found, nn.ModuleDict)
        return found

    def activations(self) -> dict[str, ActivationQuantizer]:
        """Return the activation quantizers of the model, parts included, by name."""
        return {n: q for n, q in self.quantizers.items() if isinstance(q, ActivationQuantizer)}

    def layers(self) -> Iterable[tuple[Site, QuantizedLayer, nn.Module, nn.Module | None]]:
        """Yield site, quantized layer, float layer and folded norm of every weight."""
        for site in self.sites:
            if site.kind == "weight":
                norm = None if site.norm is None else self.root.get_submodule(site.norm)
                quantized = self.quantizers[site.name]
                assert isinstance(quantized, QuantizedLayer)
                yield site, quantized, self.root.get_submodule(site.module), norm

    def all_layers(self) -> Iterable[tuple[Site, QuantizedLayer, nn.Module, nn.Module | None]]:
        """Yield what `layers` yields, for this graph and for all its parts."""
        for network in self.networks.values():
            yield from network.layers()


def quantizer_of(graph: QuantizedGraph, name: str) -> ActivationQuantizer | WeightQuantizer:
    """Return the quantizer at the site of this name."""
    found: Any = graph.quantizers[name]
    if isinstance(found, ActivationQuantizer | WeightQuantizer):
        return found
    weight = found.weight
    assert isinstance(weight, WeightQuantizer)
    return weight
