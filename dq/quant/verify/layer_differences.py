"""Compare each layer of an exported network with the fake-quantized one, on the same input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils import _pytree

from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.quantizers.restore import watching_outputs

if TYPE_CHECKING:
    import onnx

    from dq.quant.verify.engine import Engine

# Levels of 8 bits: differences of outputs without a quantizer are in 255ths of their range.
NUM_LEVELS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """One quantized tensor, or output, computed in both networks from the same input.

    Attributes:
        site: Name of its quantizer, or of the output.
        layers: Names of the quantized weights that compute it.
        num: Number of its values.
        share: Share of values that differ by half a scale or more, 0 to 1.
        largest: Largest difference, in scales; for outputs in 255ths of their range.
        excess: Largest distance from the fake-quantized network's value before rounding, minus the
            half scale that rounding explains, in scales. If values differ only at rounding ties,
            it is zero, or as small as the error of float32 sums.
    """

    site: str
    layers: tuple[str, ...]
    num: int
    share: float
    largest: float
    excess: float


def layer_differences(
    graph: QuantizedGraph,
    model: onnx.ModelProto,
    images: Sequence[Tensor],
    *,
    engine: Engine | None = None,
    integers: bool = True,
) -> list[LayerDifference]:
    """Return the difference of every quantized tensor and every output, in the order of execution.

    Every layer of the model gets the fake-quantized network's own input, so no difference reaches
    the next layer.

    Args:
        graph: The fake-quantized network, its quantizers FROZEN.
        model: Exported from it, as written by `dq.quant.export.qdq`.
        images: Batches of the network's input.
        engine: Computes the model; ONNX Runtime by default.
        integers: False computes the model literally, in float between its QDQ nodes; ``engine`` is
            then not used.

    Raises:
        ValueError: The engine cannot compute the model.
    """
    from dq.quant.verify.cut_model import CutNetwork
    from dq.quant.verify.onnxruntime_session import ENGINE, LITERALLY

    quantizers = {name: graph.quantizers[name] for name in called_once(graph)}
    network = CutNetwork(model, quantizers, ((engine or ENGINE) if integers else LITERALLY).open)
    totals: dict[str, _Total] = {}
    for batch in images:
        before, after, outputs = _observed(graph, batch, network.values)
        others = network.run(batch, after)
        for site, value in network.values.items():
            total = totals.setdefault(site, _Total(network.layers[value]))
            total.add_rounded(quantizers[site], before[site], after[site], others[value])
        rounded = set(network.values.values())
        for name, output in zip(network.outputs, outputs, strict=True):
            if name not in rounded:
                total = totals.setdefault(name, _Total(network.layers[name]))
                total.add_output(output, others[name])
    return [total.difference(name) for name, total in totals.items()]


def called_once(graph: QuantizedGraph) -> list[str]:
    """Return the names of the activation quantizers that the graph calls only once."""
    counts = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    return [name for name in graph.activations() if counts[f"{CONTAINER}.{name}"] == 1]


@torch.no_grad()
def _observed(
    graph: QuantizedGraph, images: Tensor, sites: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Tensor]]:
    """Return every quantizer's input and result by its name, and the outputs."""
    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}

    def record(name: str, inputs: tuple[Any, ...], output: Tensor) -> None:
        # Copies, because later nodes may write in place.
        before[name], after[name] = inputs[0].clone(), output.clone()

    with watching_outputs({name: graph.quantizers[name] for name in sites}, record):
        outputs = _pytree.tree_leaves(graph(images))
    return before, after, outputs


class _Total:
    """Sums over batches of one tensor's differences."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self.layers = layers
        self.num = self.differing = 0
        self.largest = self.excess = 0.0

    def add_rounded(self, quantizer: Any, before: Tensor, after: Tensor, other: Any) -> None:
        """Add a tensor with a quantizer."""
        scale, shift = quantizer.scale.double().item(), int(quantizer.zero_point)
        spec = quantizer.spec
        got = torch.from_numpy(other).double() / scale
        bounds = spec.quant_min - shift, spec.quant_max - shift
        unrounded = (before.double() / scale).clamp(*bounds)
        self._add((after.double() / scale - got).abs(), (unrounded - got).abs() - 0.5)

    def add_output(self, output: Tensor, other: Any) -> None:
        """Add a tensor without a quantizer."""
        if not output.numel():  # For example no boxes: there is nothing to differ, and no range.
            return
        unit = float(output.max() - output.min()) / NUM_LEVELS or 1.0
        steps = (output.double() - torch.from_numpy(other).double()).abs() / unit
        self._add(steps, steps)

    def _add(self, steps: Tensor, excess: Tensor) -> None:
        if not steps.numel():
            return
        self.num += steps.numel()
        self.differing += int((~(steps < 0.5)).sum())
        # A NaN counts as an infinite difference.
        self.largest = max(self.largest, float(steps.nan_to_num(nan=torch.inf).max()))
        self.excess = max(self.excess, float(excess.nan_to_num(nan=torch.inf).max()))

    def difference(self, name: str) -> LayerDifference:
        """Return the difference of all tensors that were added."""
        return LayerDifference(
            site=name,
            layers=self.layers,
            num=self.num,
            share=self.differing / max(1, self.num),
            largest=self.largest,
            excess=self.excess,
        )


def worst(differences: Sequence[LayerDifference], most: int = 3) -> list[LayerDifference]:
    """Return the differences with the largest excess over rounding, the worst first."""
    return sorted(differences, key=lambda d: (-d.excess, -d.share))[:most]
