"""How far a network in another engine is from the fake-quantized one, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dq.quant.quantized_graph import QuantizedGraph

Values = Mapping[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerDifference:
    """One rounded tensor in both networks.

    Attributes:
        site: Name of its quantizer.
        share: Share of its values that differ by half a scale or more, 0 to 1.
        mean: Mean difference, in scales.
        largest: Largest difference, in scales.
    """

    site: str
    share: float
    mean: float
    largest: float


@torch.no_grad()
def layer_differences(
    graph: QuantizedGraph, run: Callable[[Tensor], Values], images: Sequence[Tensor]
) -> list[LayerDifference]:
    """Return the difference of every rounded tensor, in the order of execution.

    Args:
        graph: The fake-quantized network, its quantizers FROZEN.
        run: The other network: images -> tensors by the quantizers' names.
        images: Batches ``(N, C, H, W)``.
    """
    seen: dict[str, Tensor] = {}
    handles = []
    quantizers = graph.activations()
    for name, quantizer in quantizers.items():

        def record(_: nn.Module, inputs: object, output: Tensor, name: str = name) -> None:
            seen[name] = output

        handles.append(quantizer.register_forward_hook(record))
    sums: dict[str, list[float]] = {}
    try:
        for batch in images:
            seen.clear()
            graph(batch)
            others = run(batch)
            for name, value in seen.items():
                if name in others:
                    other = torch.from_numpy(others[name]).to(value.device)
                    steps = (value - other).abs() / quantizers[name].scale
                    total = sums.setdefault(name, [0.0, 0.0, 0.0, 0.0])
                    total[0] += steps.numel()
                    total[1] += float((steps >= 0.5).sum())
                    total[2] += float(steps.sum(dtype=torch.float64))
                    total[3] = max(total[3], float(steps.max()))
    finally:
        for handle in handles:
            handle.remove()
    return [
        LayerDifference(site=name, share=differing / num, mean=steps / num, largest=largest)
        for name, (num, differing, steps, largest) in sums.items()
    ]


def worst(differences: Sequence[LayerDifference], most: int = 3) -> list[LayerDifference]:
    """Return those with the largest mean difference, the worst first."""
    return sorted(differences, key=lambda difference: -difference.mean)[:most]
