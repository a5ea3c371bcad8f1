"""How much each quantizer alone disturbs the outputs, to choose a few for 16 bits.

The measure is the signal to quantization noise ratio (SQNR) at the graph's outputs, in decibel: the
noise relative to the signal of each output tensor, averaged over the outputs. The noises of small
independent errors add up. So the smallest set that reaches a target SQNR consists of the quantizers
with the most noise.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from dq.progress import Progress
from dq.quant.analysis.partial_runs import PartialRuns
from dq.quant.graph.nodes import Given, as_tuple
from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import restored_state

# Values that one thread adds.
ROW = 4096
# Inputs of the calls of each part, by its name.
Calls = Mapping[str, Sequence[Given]]


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


def sensitivities(
    graph: QuantizedGraph, batches: Sequence[Tensor], parts: Calls | None = None
) -> list[Sensitivity]:
    """Measure every quantizer alone and return the results, the most sensitive first.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN, or in its former phases if an
            image raises an error.
        batches: A few images on the model's device.
        parts: The float inputs of each part. A part's quantizers are measured at its own outputs;
            without inputs they are left out.
    """
    names = names_measured(graph, parts)
    return ranked(graph, noises_of_all(graph, batches, parts, names))


def names_measured(graph: QuantizedGraph, parts: Calls | None) -> list[str]:
    """Return the names of the quantizers that `sensitivities` measures."""
    return [
        site.name
        for part, network in graph.networks.items()
        for site in network.sites
        if not part or (parts or {}).get(part)
    ]


def noises_of_all(
    graph: QuantizedGraph, batches: Sequence[Tensor], parts: Calls | None, names: Collection[str]
) -> dict[str, float]:
    """Return the noise of each of these quantizers at the outputs of its own network.

    Args:
        graph: As for `sensitivities`.
        batches: As for `sensitivities`.
        parts: As for `sensitivities`.
        names: Some of `names_measured`.
    """
    found: dict[str, float] = {}
    for part, network in graph.networks.items():
        own = [site.name for site in network.sites if site.name in names]
        if own:
            calls = (parts or {})[part] if part else batches
            found |= noises_alone(network, calls, own)
    set_phase(graph.quantizers, Phase.FROZEN)
    return found


@torch.no_grad()
def noises_alone(
    graph: QuantizedGraph, batches: Sequence[Given], names: Sequence[str]
) -> dict[str, float]:
    """Return the noise that each of these quantizers alone adds to the outputs; see `noise`.

    The float values of one batch at a time are kept, and a quantizer's run computes only what
    depends on it.

    Args:
        graph: As for `sensitivities`, or a part.
        batches: As for `sensitivities`; inputs of the part.
        names: Names of quantizers of this network.
    """
    shown = Progress("sensitivity", len(batches) * len(names), "run[s]")
    with restored_state(graph.quantizers, even_when_done=False), shown:
        set_phase(graph.quantizers, Phase.OFF)
        runs = PartialRuns(graph, names)
        signal: Tensor | float = 0.0
        errors: dict[str, Tensor | float] = dict.fromkeys(names, 0.0)
        for batch in batches:
            plain = runs.in_float(batch)
            targets = floating_tensors(plain.outputs)
            signal = signal + _powers(targets)
            for name in names:
                quantizer = quantizer_of(graph, name)
                quantizer.phase = Phase.FROZEN
                outputs = floating_tensors(runs.with_quantizer(name, plain))
                quantizer.phase = Phase.OFF
                errors[name] = errors[name] + _powers_of_difference(outputs, targets)
                shown.advance()
        set_phase(graph.quantizers, Phase.FROZEN)
    return {name: _ratio(error, signal) for name, error in errors.items()}


def ranked(graph: QuantizedGraph, noises: Mapping[str, float]) -> list[Sensitivity]:
    """Return the sensitivities, the most sensitive first.

    Args:
        graph: Prepared.
        noises: The noise of each quantizer that was measured, as `noises_of_all` returns it.
    """
    found = [
        Sensitivity(
            name=site.name,
            kind=site.kind,
            bits=quantizer_of(graph, site.name).spec.bits,
            sqnr=decibel(noises[site.name]),
        )
        for network in graph.networks.values()
        for site in network.sites
        if site.name in noises
    ]
    return sorted(found, key=lambda s: s.sqnr)


@torch.no_grad()
def output_sqnr(graph: QuantizedGraph, batches: Sequence[Given]) -> float:
    """Return the SQNR with all quantizers on, in decibel; leaves them FROZEN."""
    with restored_state(graph.quantizers, even_when_done=False):
        wanted = float_outputs(graph, batches)
        return decibel(noise(graph, batches, wanted))


@torch.no_grad()
def float_outputs(graph: QuantizedGraph, batches: Sequence[Given]) -> list[list[Tensor]]:
    """Return the outputs of each batch without quantization; leaves the quantizers FROZEN."""
    with restored_state(graph.quantizers, even_when_done=False):
        set_phase(graph.quantizers, Phase.OFF)
        found = [floating_tensors(graph(*as_tuple(batch))) for batch in batches]
        set_phase(graph.quantizers, Phase.FROZEN)
    return found


@torch.no_grad()
def noise(
    graph: QuantizedGraph, batches: Sequence[Given], wanted: Sequence[Sequence[Tensor]]
) -> float:
    """Return the noise of the outputs relative to their signal, averaged over the outputs.

    Args:
        graph: In the phases to measure.
        batches: Images, or the inputs of a part.
        wanted: The float outputs of each batch, as `floating_tensors` returns them.
    """
    signal: Tensor | float = 0.0
    error: Tensor | float = 0.0
    for batch, targets in zip(batches, wanted, strict=True):
        signal = signal + _powers(targets)
        error = error + _powers_of_difference(floating_tensors(graph(*as_tuple(batch))), targets)
    return _ratio(error, signal)


def _ratio(error: Tensor | float, signal: Tensor | float) -> float:
    assert isinstance(error, Tensor), "there are no images"
    assert isinstance(signal, Tensor)
    return float((error / signal.clamp(min=1e-30)).mean())


def _powers(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of squares of each tensor, float64 ``(tensors,)``."""
    return torch.stack([ordered_sum(x.double().square()) for x in tensors])


def _powers_of_difference(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    # Outputs that a partial run did not change are the same objects.
    pairs = zip(outputs, targets, strict=True)
    return _powers([y.new_zeros(1) if y is x else y.double() - x.double() for y, x in pairs])


def ordered_sum(x: Tensor) -> Tensor:
    """Return the sum of all values, ``()``, added in an order that no number of threads changes.

    Rows of equal length are added, each by one thread, and then the rows.

    Args:
        x: Any shape.
    """
    x = x.reshape(-1)
    while len(x) > ROW:
        x = F.pad(x, (0, -len(x) % ROW)).reshape(-1, ROW).sum(1)
    return x.sum()


def decibel(ratio: float) -> float:
    """Return a noise-to-signal ratio as SQNR in decibel; a NaN counts as infinite noise."""
    if math.isnan(ratio):
        return -math.inf
    return -10 * math.log10(ratio) if ratio > 0 else math.inf
