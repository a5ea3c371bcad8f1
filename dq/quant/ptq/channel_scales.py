"""Give the channels of the few worst activations a scale each.

The graph multiplies the channels, see `dq.quant.graph.per_channel.channel_scales`. Which tensors
gain is predicted from some float images: the noise that a channel adds is its squared scale times
the squared derivative of the outputs (`channel_effects`). With a scale per channel every channel
uses the whole range of the integers, as far as one zero point allows: a channel of SiLU reaches
down to -0.28 whatever its upper end.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from dq.quant.graph.functions import find_functions
from dq.quant.graph.nodes import Given, as_tuple
from dq.quant.graph.per_channel.channel_scales import (
    ChannelScale,
    Scaled,
    layer_and_norm,
    layer_of,
    scale_channels_of_,
    scale_key,
    scaled_at,
)
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.numerics.activation_functions import FUNCTIONS
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.channel_effects import AT_ONCE, channel_effects
from dq.quant.ptq.equalization import (
    LARGEST_FACTOR,
    alone,
    along_inputs,
    divide_outputs_,
    scales_outputs,
)
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase, watching_outputs

log = logging.getLogger(__name__)

# Images to measure channels on.
IMAGES = 8
# A tensor is scaled if that removes at least this share of the remaining noise of all activations.
LEAST_SHARE = 0.1
# Before these functions the layer itself can divide its channels, which equalization does.
_COMMUTE = {"clip", *(function.name for function in FUNCTIONS if function.scales)}
# Tried shares of the range below zero.
_SHARES = torch.linspace(0.01, 0.95, 95)
_SILU_IS_ZERO = -8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gain:
    """What scaling the channels of one tensor is expected to gain.

    Attributes:
        name: Name of the quantizer.
        before: Noise of the outputs with one scale for all channels.
        after: The same with one scale for each channel.
        factors: What each channel is divided by, ``(channels,)``, at most 1.
    """

    name: str
    before: float
    after: float
    factors: Tensor


def scale_channels_(graph: QuantizedGraph, batches: Sequence[Given], *, most: int) -> list[str]:
    """Scale the channels of the activations that gain most, in place; ranges are found afterwards.

    The function of the graph without rounding does not change, up to float rounding.

    Args:
        graph: Prepared, in evaluation mode.
        batches: A few images on the model's device; without any nothing is done.
        most: Largest number of tensors.

    Returns:
        Names of their quantizers, the best first.
    """
    places = _places(graph)
    if not (places and batches and most):
        return []
    images = torch.cat([as_tuple(batch)[0] for batch in batches])[:IMAGES]
    noise, gains = _gains(graph, images, places)
    gains.sort(key=lambda gain: gain.after - gain.before)
    chosen = []
    for gain in gains[:most]:
        saved = gain.before - gain.after
        if saved < LEAST_SHARE * noise:
            break
        scale_channels_of_(graph, [gain.name])
        _apply_(graph, places[gain.name], gain)
        chosen.append(gain.name)
        log.info(
            "a scale for each channel of %s: noise of all activations %.3g -> %.3g",
            gain.name,
            noise,
            noise - saved,
        )
        noise -= saved
    return chosen


def _places(graph: QuantizedGraph) -> dict[str, Scaled]:
    """Return the tensors whose channels can be scaled without another reader noticing it."""
    found = {}
    is_alone = alone(graph)
    functions = {f.value for f in find_functions(graph.root, graph.graph) if f.kind not in _COMMUTE}
    for node in graph.graph.nodes:
        container, _, name = str(node.target).partition(".")
        if node.op != "call_module" or container != CONTAINER or name not in graph.activations():
            continue
        if scale_key(name) in graph.quantizers:
            continue
        place = scaled_at(graph.root, node)
        if place is None or not all(is_alone(reader) for reader in place.readers):
            continue
        if place.layer is None:
            fits = place.value in functions
        else:
            fits = is_alone(place.layer) and scales_outputs(
                *layer_and_norm(graph.root, place.layer)
            )
        if fits:
            found[name] = place
    return found


def _gains(
    graph: QuantizedGraph, images: Tensor, places: Mapping[str, Scaled]
) -> tuple[float, list[Gain]]:
    """Return the noise of all activations together, and the gains of those that can be scaled."""
    activations = {n: q for n, q in graph.activations().items() if q.observer.watches}
    effects = channel_effects(graph, torch.split(images, AT_ONCE), activations)
    ends = _channel_ends(graph, images, effects)
    measured = {
        name: _Channels(low=low, high=high, effect=effects[name], spec=activations[name].spec)
        for name, (low, high) in ends.items()
    }
    arguments = {n: _quantizer_name(p.value) for n, p in places.items() if p.layer is not None}
    for name in set(arguments.values()) & set(measured):
        # Below this SiLU is zero, so its argument may be clipped there.
        low = measured[name].low.clamp(min=_SILU_IS_ZERO)
        measured[name] = replace(measured[name], low=low)
    found = []
    for name in places:
        tensors = [name, arguments[name]] if name in arguments else [name]
        if all(tensor in measured for tensor in tensors):
            found.append(_gain(name, [measured[tensor] for tensor in tensors]))
    return sum(float(_noise(one, torch.ones_like(one.low))) for one in measured.values()), found


def _quantizer_name(node: fx.Node) -> str:
    return str(node.target).partition(".")[2]


def _gain(name: str, tensors: list[_Channels]) -> Gain:
    """Return the expected gain of one place.

    Args:
        name: Name of the quantizer.
        tensors: The quantizer's tensor and, if a layer divides its channels, the quantized result
            of that layer.
    """
    candidates = torch.cat([_full_ranges(one) for one in tensors])
    noises = torch.stack([_noise(one, candidates) for one in tensors]).sum(0)
    best = int(noises.argmin())
    before = sum(float(_noise(one, torch.ones_like(one.low))) for one in tensors)
    return Gain(name=name, before=before, after=float(noises[best]), factors=candidates[best])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Channels:
    """The channels of one tensor.

    Attributes:
        low: Smallest values, ``(channels,)``, at most 0.
        high: Largest values, at least 0.
        effect: Squared derivatives of the outputs.
        spec: The integer format.
    """

    low: Tensor
    high: Tensor
    effect: Tensor
    spec: QuantSpec


def _noise(tensor: _Channels, factors: Tensor) -> Tensor:
    """Return the noise of the outputs if the channels are divided by factors ``(..., channels)``.

    The variance of a rounding error is a twelfth of the squared scale; the twelfth is left out.
    """
    low, high, spec = (tensor.low / factors).amin(-1), (tensor.high / factors).amax(-1), tensor.spec
    if spec.symmetric:
        step = (torch.maximum(-low, high) if spec.signed else high) / spec.quant_max
    else:
        step = (high - low) / (spec.quant_max - spec.quant_min)
    return (tensor.effect * factors.square()).sum(-1) * step.square()


def _full_ranges(tensor: _Channels) -> Tensor:
    """Return factors ``(candidates, channels)``, at most 1, with which channels use all integers.

    With a share ``p`` of the range below zero, channel c needs the width
    ``max(high_c / (1 - p), -low_c / p)``.
    """
    low, high = tensor.low, tensor.high
    if tensor.spec.symmetric:
        widths = (torch.maximum(-low, high) if tensor.spec.signed else high)[None]
    else:
        shares = _SHARES.to(low)[:, None]
        below = torch.where(low < 0, -low / shares, torch.zeros_like(low))
        widths = torch.maximum(high / (1 - shares), below)
    widths = widths.clamp(min=1e-30)
    return (widths / widths.amax(1, keepdim=True)).clamp(min=1 / LARGEST_FACTOR)


def _channel_ends(
    graph: QuantizedGraph, images: Tensor, names: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the smallest and largest value of each channel, float64; zero is always between."""
    found: dict[str, tuple[Tensor, Tensor]] = {}

    def widen(name: str, inputs: object, output: Tensor) -> None:
        axes = [axis for axis in range(output.dim()) if axis != 1]
        low, high = _ends(output, axes)
        if name in found:
            low = torch.minimum(low, found[name][0])
            high = torch.maximum(high, found[name][1])
        found[name] = (low, high)

    quantizers = {name: q for name, q in graph.activations().items() if name in names}
    watching = watching_outputs(quantizers, widen)
    with torch.no_grad(), in_phase(graph.quantizers, Phase.OFF), watching:
        for few in torch.split(images, AT_ONCE):
            graph(few)
    return found


def _ends(x: Tensor, axes: list[int]) -> tuple[Tensor, Tensor]:
    return x.amin(axes).double().clamp(max=0), x.amax(axes).double().clamp(min=0)


@torch.no_grad()
def _apply_(graph: QuantizedGraph, place: Scaled, gain: Gain) -> None:
    """Divide the channels, and multiply the weights that read them."""
    scale = graph.quantizers[scale_key(gain.name)]
    assert isinstance(scale, ChannelScale)
    factors = gain.factors.to(scale.factor)
    if place.layer is None:
        scale.factor.copy_(1 / factors)
    else:
        scale.factor.copy_(factors)
        divide_outputs_(*layer_and_norm(graph.root, place.layer), factors)
    for reader in place.readers:
        layer = layer_of(graph.root, reader)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        weight.mul_(along_inputs(layer, factors))


REPAIR = RepairStep(
    apply=lambda graph, samples, settings: scale_channels_(
        graph, samples.rounded, most=settings.most_scaled
    ),
    changes_ranges=True,
)
