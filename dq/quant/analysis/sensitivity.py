"""How much each quantizer alone disturbs the outputs, to choose a few for 16 bits.

The measure is the signal to quantization noise ratio (SQNR) at the graph's outputs, in decibel: the
noise relative to the signal of each output tensor, averaged over the outputs. The noises of small
independent errors add up. So the smallest set that reaches a target SQNR consists of the quantizers
with the most noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import restored_state


@dataclass(frozen=True, slots=True, kw_only=True)
class Sensitivity:
    """The effect of one quantizer on the outputs.

    Attributes:
        name: The quantizer's.
        kind: ``weight`` or ``activation``.
        bits: Its width.
        sqnr: With only this quantizer on, in decibel; infinite if nothing changes.
    """

    name: str
    kind: str
    bits: int
    sqnr: float


@torch.no_grad()
def sensitivities(graph: QuantizedGraph, batches: Sequence[Tensor]) -> list[Sensitivity]:
    """Measure every quantizer alone and return the results, the most sensitive first.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN, or in its former phases if an
            image raises an error.
        batches: A few images on the model's device.
    """
    found = []
    with restored_state(graph.quantizers, even_when_done=False):
        wanted = float_outputs(graph, batches)
        set_phase(graph.quantizers, Phase.OFF)
        for site in graph.sites:
            quantizer = quantizer_of(graph, site.name)
            quantizer.phase = Phase.FROZEN
            ratio = noise(graph, batches, wanted)
            quantizer.phase = Phase.OFF
            found.append(
                Sensitivity(
                    name=site.name, kind=site.kind, bits=quantizer.spec.bits, sqnr=decibel(ratio)
                )
            )
        set_phase(graph.quantizers, Phase.FROZEN)
    return sorted(found, key=lambda s: s.sqnr)


@torch.no_grad()
def output_sqnr(graph: QuantizedGraph, batches: Sequence[Tensor]) -> float:
    """Return the SQNR with all quantizers on, in decibel; leaves them FROZEN."""
    with restored_state(graph.quantizers, even_when_done=False):
        wanted = float_outputs(graph, batches)
        return decibel(noise(graph, batches, wanted))


@torch.no_grad()
def float_outputs(graph: QuantizedGraph, batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """Return the outputs of each batch without quantization; leaves the quantizers FROZEN."""
    with restored_state(graph.quantizers, even_when_done=False):
        set_phase(graph.quantizers, Phase.OFF)
        found = [floating_tensors(graph(batch)) for batch in batches]
        set_phase(graph.quantizers, Phase.FROZEN)
    return found


@torch.no_grad()
def noise(
    graph: QuantizedGraph, batches: Sequence[Tensor], wanted: Sequence[Sequence[Tensor]]
) -> float:
    """Return the noise of the outputs relative to their signal, averaged over the outputs.

    Args:
        graph: In the phases to measure.
        batches: Images.
        wanted: The float outputs of each batch, as `flat` returns them.
    """
    num_outputs = len(wanted[0])
    signal = torch.zeros(num_outputs, dtype=torch.float64, device=batches[0].device)
    error = torch.zeros_like(signal)
    for batch, targets in zip(batches, wanted, strict=True):
        for number, (y, target) in enumerate(
            zip(floating_tensors(graph(batch)), targets, strict=True)
        ):
            signal[number] += target.double().square().sum()
            error[number] += (y.double() - target.double()).square().sum()
    return float((error / signal.clamp(min=1e-30)).mean())


def decibel(ratio: float) -> float:
    """Return a noise-to-signal ratio as SQNR in decibel."""
    return -10 * math.log10(ratio) if ratio > 0 else math.inf
