"""Statistics of each quantizer: range, scale, clipped share, noise, oscillating weights.

Two passes over a few images, one in float and one fake-quantized. The model does not change:
phases, training flags and statistics are restored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dq.quant.analysis.sensitivity import decibel
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.affine import dequantize, fake_quantize, quantize
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import restored_state, watching_inputs
from dq.quant.training.oscillation import OscillationTracker

# Larger tensors are sampled with even spacing: so many values, or up to twice as many.
MAX_VALUES = 1 << 16
NUM_BINS = 32
Integers = dict[str, Tensor]


@dataclass(slots=True)
class _Sums:
    """Sums of one activation quantizer over all its calls."""

    signal: float = 0.0
    network_signal: float = 0.0
    own_noise: float = 0.0
    network_noise: float = 0.0
    clipped: int = 0
    count: int = 0
    lowest: float = float("inf")
    highest: float = float("-inf")
    histogram: Tensor | None = None
    kept: list[Tensor] = field(default_factory=list)
    calls: int = 0


@torch.no_grad()
def quantizer_figures(
    graph: QuantizedGraph,
    batches: Sequence[Tensor],
    run: Callable[[Tensor], Any],
    *,
    oscillation: OscillationTracker | None = None,
    before: Integers | None = None,
) -> tuple[list[dict[str, Any]], Integers]:
    """Return a dict of plain numbers for each quantizer, in the order of execution.

    Args:
        graph: Prepared, with ranges.
        batches: A few images on the model's device.
        run: Runs the whole network on a batch.
        oscillation: If weights are tracked.
        before: The integers that the last call returned.

    Returns:
        Dicts with ``name``, ``module``, ``kind``, ``bits``, ``low`` and ``high`` (the smallest and
        largest representable value), ``scale`` (largest of a layer's channels), ``seen_low``,
        ``seen_high``, ``clipped`` (share of values beyond the range, 0 to 1), ``sqnr`` (of this
        quantizer alone, dB), ``network_sqnr`` (of its tensor with all quantizers before it on, dB,
        over the calls that have the same shape in both passes; None for weights), ``oscillating``
        (share of weights, None if not tracked), ``moved`` (share of weights with another integer
        than ``before``), ``histogram`` (of values, in `NUM_BINS` bins from ``seen_low`` to
        ``seen_high``); and the integers of all weights.
    """
    activations = graph.activations()
    sums = {name: _Sums() for name in activations}
    with restored_state(graph.root):
        graph.root.eval()
        for batch in batches:
            set_phase(graph.quantizers, Phase.OFF)
            with _watching(activations, lambda n, x: sums[n].kept.append(x)):
                run(batch)
            set_phase(graph.quantizers, Phase.FROZEN)
            with _watching(activations, lambda n, x: _compare(sums[n], activations[n], x)):
                run(batch)
            for entry in sums.values():
                entry.kept.clear()
                entry.calls = 0
        weights, integers = _weights(graph, oscillation, before or {})
    found = []
    for site in graph.sites:
        place = {"name": site.name, "module": site.module, "kind": site.kind}
        if site.name in sums:
            found.append({**place, **_activation(activations[site.name], sums[site.name])})
        elif site.name in weights:
            found.append({**place, **weights[site.name]})
    return found, integers


def model_bytes(model: nn.Module, graph: QuantizedGraph | None) -> int:
    """Return the model's size: weights at their bit width, other tensors at that of their dtype.

    In a quantized model the scales of weights, the scales and zero points of activations, and the
    biases that folded norms add have 32 bits each. The size is in bytes.

    Args:
        model: Its parameters and running statistics count; folded norms do not.
        graph: None for a float model.
    """
    if graph is None:
        tensors = {id(t): t for t in [*model.parameters(), *model.buffers()]}.values()
        return sum(t.numel() * t.element_size() for t in tensors)
    bits: dict[int, int] = {}
    dropped: set[int] = set()
    biases = scales = 0
    for _, quantized, layer, norm in graph.all_layers():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if id(weight) not in bits:
            spec = quantized.weight.spec
            scales += 1 if spec.channel_axis is None else int(weight.shape[spec.channel_axis])
        bits[id(weight)] = quantized.weight.spec.bits
        if norm is not None:
            tensors_of_norm = [*norm.parameters(), *norm.buffers()]
            if not dropped >= {id(t) for t in tensors_of_norm} and layer.bias is None:
                channels = next(iter(tensors_of_norm)).numel() if tensors_of_norm else 0
                biases += channels
            dropped |= {id(t) for t in tensors_of_norm}
    own = {id(t) for t in [*graph.quantizers.parameters(), *graph.quantizers.buffers()]}
    total = 4 * (biases + scales + 2 * len(graph.activations()))
    seen: set[int] = set()
    for tensor in [*model.parameters(), *model.buffers()]:
        key = id(tensor)
        if key in seen or key in dropped or (key in own and key not in bits):
            continue
        seen.add(key)
        width = bits.get(key, 8 * tensor.element_size())
        total += -(-tensor.numel() * width // 8)
    return total


@contextmanager
def _watching(
    quantizers: Mapping[str, ActivationQuantizer], take: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Pass a sample of each quantizer's input to a callback, in the body."""

    def hook_of(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            flat = inputs[0].detach().reshape(-1).float()
            take(name, flat[:: max(1, flat.numel() // MAX_VALUES)].clone())

        return hook

    with watching_inputs({quantizer: hook_of(name) for name, quantizer in quantizers.items()}):
        yield


def _compare(entry: _Sums, quantizer: ActivationQuantizer, rounded_before: Tensor) -> None:
    """Add up the error of one call, relative to the same call of the float pass."""
    if entry.calls >= len(entry.kept):
        return
    x = entry.kept[entry.calls]
    entry.calls += 1
    low, high, scale = reach(quantizer)
    own = fake_quantize(x, quantizer.scale, quantizer.zero_point, quantizer.spec)
    after = fake_quantize(rounded_before, quantizer.scale, quantizer.zero_point, quantizer.spec)
    signal = float(x.double().square().sum())
    entry.signal += signal
    entry.own_noise += float((own - x).double().square().sum())
    # Rounded boxes may be another number of boxes. Such a call counts in neither of the two sums.
    if after.shape == x.shape:
        entry.network_signal += signal
        entry.network_noise += float((after - x).double().square().sum())
    entry.clipped += int(((x < low - scale / 2) | (x > high + scale / 2)).sum())
    entry.count += x.numel()
    if x.numel():
        entry.lowest = min(entry.lowest, float(x.min()))
        entry.highest = max(entry.highest, float(x.max()))
        if entry.histogram is None:
            entry.histogram = _histogram(x)


def reach(quantizer: ActivationQuantizer) -> tuple[float, float, float]:
    """Return the smallest and largest representable value of a quantizer, and its scale."""
    scale, zero = float(quantizer.scale), float(quantizer.zero_point)
    spec = quantizer.spec
    return (spec.quant_min - zero) * scale, (spec.quant_max - zero) * scale, scale


def _activation(quantizer: ActivationQuantizer, entry: _Sums) -> dict[str, Any]:
    low, high, scale = reach(quantizer)
    count = max(1, entry.count)
    return {
        "bits": quantizer.spec.bits,
        "low": low,
        "high": high,
        "scale": scale,
        "seen_low": entry.lowest,
        "seen_high": entry.highest,
        "clipped": entry.clipped / count,
        "sqnr": _sqnr(entry.own_noise, entry.signal),
        "network_sqnr": _sqnr(entry.network_noise, entry.network_signal),
        "oscillating": None,
        "moved": None,
        "histogram": [] if entry.histogram is None else entry.histogram.tolist(),
    }


def _weights(
    graph: QuantizedGraph, oscillation: OscillationTracker | None, before: Integers
) -> tuple[dict[str, dict[str, Any]], Integers]:
    found: dict[str, dict[str, Any]] = {}
    kept: Integers = {}
    for site, quantized, layer, norm in graph.layers():
        weight, scale, zero_point = quantized.quantized_weight(layer, norm)
        spec = quantized.weight.spec
        integers = quantize(weight, scale, zero_point, spec)
        rounded = dequantize(integers, scale, zero_point, spec).to(weight.dtype)
        ends = [
            dequantize(torch.full_like(integers, end), scale, zero_point, spec)
            for end in (spec.quant_min, spec.quant_max)
        ]
        half = (ends[1] - ends[0]) / (2 * (spec.quant_max - spec.quant_min))
        clipped = (weight < ends[0] - half) | (weight > ends[1] + half)
        noise = float((rounded - weight).double().square().sum())
        dtype = torch.int8 if spec.bits <= 7 or (spec.signed and spec.bits <= 8) else torch.int32
        kept[site.name] = integers.to(dtype)
        old = before.get(site.name)
        watched = None if oscillation is None else oscillation.share_of(site.name)
        found[site.name] = {
            "bits": spec.bits,
            "low": float(ends[0].min()),
            "high": float(ends[1].max()),
            "scale": float(scale.max()),
            "seen_low": float(weight.min()),
            "seen_high": float(weight.max()),
            "clipped": float(clipped.float().mean()),
            "sqnr": _sqnr(noise, float(weight.double().square().sum())),
            "network_sqnr": None,
            "oscillating": watched,
            "moved": None if old is None else float((old != kept[site.name]).float().mean()),
            "histogram": _histogram(weight.reshape(-1).float()).tolist(),
        }
    return found, kept


def _histogram(x: Tensor) -> Tensor:
    finite = x[torch.isfinite(x)].cpu()
    if not finite.numel() or float(finite.min()) == float(finite.max()):
        return torch.zeros(NUM_BINS, dtype=torch.int64)
    return torch.histc(finite, NUM_BINS).long()


def _sqnr(noise: float, signal: float) -> float | None:
    """Return decibel; None if noise or signal is zero."""
    return decibel(noise / signal) if noise > 0 and signal > 0 else None
