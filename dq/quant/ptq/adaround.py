"""AdaRound: round every weight up or down, whichever gives the least error of the layer's output.

After Nagel et al. 2020 (arXiv 2004.10568). Layer by layer, the target is the float model's output
and the input is already fake-quantized. A relaxed choice in [0, 1] for each weight is driven to 0
or 1 by a regulariser that gets sharper over time. The layer is linear and the loss quadratic, so
the second moments of the input contain all the images' information. They are summed once, over all
positions of all images; then each step is exact and needs no image. The mean error is left to the
bias, which is corrected for the same layer.

The result is written into the float weight, as values that quantization does not change. The
extreme weights of a channel are left alone, so that its range, and with it the scale, stays.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.counted import counted
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.affine import along_channels, range_over
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.bias_correction import bias_of, channels_last, correct_layer_
from dq.quant.ptq.layer_walk import CapturedLayer, walk
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.batch_norm_fold import fold_factor, unfold
from dq.quant.quantizers.layers import spread_over_weight

log = logging.getLogger(__name__)

# The relaxed choice is a sigmoid stretched beyond [0, 1] and clipped there (equation 23).
STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1
WARM_UP = 0.2
SHARPNESS = (20.0, 2.0)
# The largest number of inputs per output value; the moments are a square matrix of that size.
MAX_PATCH = 8192
# Positions of the input whose second moments are computed at once.
POSITIONS = 2048


def adaround_(
    graph: QuantizedGraph,
    batches: Sequence[Given],
    *,
    plain_batches: Sequence[Given] | None = None,
    steps: int = 200,
    learning_rate: float = 0.01,
    strength: float = 1.0,
) -> list[str]:
    """Write the best rounding of every convolution and linear layer into its weight.

    Layers with several norms (shared by pyramid levels), transposed convolutions and others whose
    input cannot be unfolded keep rounding to nearest; their bias is corrected too.

    Args:
        graph: Prepared, with ranges, in evaluation mode.
        batches: Images on the model's device, or the inputs of a part.
        plain_batches: The inputs of the float model, None for the same.
        steps: Adam steps for each layer.
        learning_rate: Adam's learning rate.
        strength: Weight of the regulariser: what a layer of undecided weights costs, relative to
            the cost of rounding to nearest.

    Returns:
        Names of the modules that AdaRound changed.
    """
    owners = [site.module for site in graph.sites if site.kind == "weight"]
    rounded = []

    def visit(captured: CapturedLayer) -> None:
        if owners.count(captured.site.module) == 1 and can_unfold(captured.layer, captured.inputs):
            before, after = round_layer_(
                captured, steps=steps, learning_rate=learning_rate, strength=strength
            )
            rounded.append(captured.site.module)
            log.debug(
                "%s: error %.4g of nearest rounding -> %.4g", captured.site.module, before, after
            )
        correct_layer_(captured, captured.targets)

    walk(graph, batches, visit, "AdaRound", plain_batches)
    log.info("AdaRound of %d of %s", len(rounded), counted(len(owners), "layer[s]"))
    return rounded


def can_unfold(layer: nn.Module, inputs: Sequence[Tensor]) -> bool:
    """Say whether the layer's input can be unfolded to one row per output value."""
    if isinstance(layer, nn.Linear):
        return layer.in_features <= MAX_PATCH
    if not isinstance(layer, nn.Conv2d) or layer.padding_mode != "zeros":
        return False
    size = layer.weight[0].numel()
    return not isinstance(layer.padding, str) and size <= MAX_PATCH and inputs[0].dim() == 4


def rows(x: Tensor, layer: nn.Module) -> Tensor:
    """Return the layer's input as ``(groups, positions, patch)``, one row per output value."""
    if isinstance(layer, nn.Linear):
        return x.flatten(0, -2).unsqueeze(0)
    assert isinstance(layer, nn.Conv2d)
    kernel, dilation = _two(layer.kernel_size), _two(layer.dilation)
    patches = F.unfold(x, kernel, dilation, _two(layer.padding), _two(layer.stride))
    grouped = patches.reshape(len(x), layer.groups, -1, patches.shape[-1])
    return grouped.permute(1, 0, 3, 2).flatten(1, 2)


def _two(value: Any) -> tuple[int, int]:
    height, width = value
    return int(height), int(width)


@torch.no_grad()
def moments(captured: CapturedLayer) -> tuple[Tensor, Tensor]:
    """Return the second moments of the input with itself and with the target output.

    If a bias can absorb the mean error, both are central moments.

    Returns:
        ``(groups, patch, patch)`` and ``(groups, patch, channels of a group)``, float64.
    """
    groups = captured.layer.groups if isinstance(captured.layer, nn.Conv2d) else 1
    count, sums = 0, [torch.zeros(())] * 4
    for x, target in zip(captured.inputs, captured.targets, strict=True):
        # Small images, such as boxes, are taken together.
        few = max(1, POSITIONS * len(x) // len(channels_last(target, captured.layer)))
        for image, wanted in zip(torch.split(x, few), torch.split(target, few), strict=True):
            patches = rows(image, captured.layer).double()
            y = channels_last(wanted, captured.layer).double()
            y = y.reshape(len(y), groups, -1).transpose(0, 1)
            new = [
                patches.transpose(1, 2) @ patches,
                patches.transpose(1, 2) @ y,
                patches.sum(1, keepdim=True),
                y.sum(1, keepdim=True),
            ]
            sums = new if not count else [a + b for a, b in zip(sums, new, strict=True)]
            count += patches.shape[1]
    gram, cross, x_mean, y_mean = [total / count for total in sums]
    if bias_of(captured) is not None:
        gram = gram - x_mean.transpose(1, 2) @ x_mean
        cross = cross - x_mean.transpose(1, 2) @ y_mean
    return gram, cross


def round_layer_(
    captured: CapturedLayer, *, steps: int, learning_rate: float, strength: float
) -> tuple[float, float]:
    """Optimise the rounding of one layer and write it into the float weight.

    Returns:
        The layer's squared error before and after, except for a term that rounding does not change.
    """
    gram, cross = moments(captured)
    folded, scale, zero_point = captured.quantized.quantized_weight(captured.layer, captured.norm)
    spec = captured.quantized.weight.spec
    spread = along_channels(folded, scale, spec.channel_axis).double()
    shift = along_channels(folded, zero_point, spec.channel_axis).double()
    position = folded.double() / spread + shift
    floor = position.floor()
    nearest = position.round().clamp(spec.quant_min, spec.quant_max)
    free = _free(folded, position, floor, spec)
    fraction = (position - floor).clamp(1e-4, 1 - 1e-4)
    groups = len(gram)

    def loss_of(integers: Tensor) -> Tensor:
        weight = ((integers - shift) * spread).to(gram.dtype).reshape(groups, -1, gram.shape[1])
        quadratic = ((weight @ gram) * weight).sum()
        return quadratic - 2 * (weight * cross.transpose(1, 2)).sum()

    # The unit of the loss: how much rounding to nearest adds to the loss of the unquantized weight.
    best = float(loss_of(position))
    before = float(loss_of(nearest))
    unit = max(before - best, 1e-12 * abs(before), 1e-30)
    share = (fraction - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
    logit = torch.logit(share).requires_grad_()
    optimizer = torch.optim.Adam([logit], lr=learning_rate)
    num_free = max(int(free.sum()), 1)
    with torch.enable_grad():
        for step in range(steps):
            choice = _choice(logit)
            loss = loss_of(torch.where(free, floor + choice, nearest)) / unit
            progress = (step / steps - WARM_UP) / (1 - WARM_UP)
            if progress > 0:
                sharp = SHARPNESS[1] + (SHARPNESS[0] - SHARPNESS[1]) * (1 - progress)
                undecided = 1 - (2 * choice - 1).abs().pow(sharp)
                loss = loss + strength / num_free * torch.where(free, undecided, 0.0).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        chosen = torch.where(free, floor + (_choice(logit) >= 0.5), nearest)
        chosen = polish(chosen, free, (floor, floor + 1), spread, shift, gram, cross)
        after = float(loss_of(chosen))
        integers = chosen if after < before else nearest
        kept = torch.zeros_like(free) if spec.symmetric else _extremes(folded, spec)
        _write_(captured, torch.where(kept, folded.double(), (integers - shift) * spread))
    return before, min(before, after)


def polish(
    integers: Tensor,
    free: Tensor,
    bounds: tuple[Tensor, Tensor],
    scale: Tensor,
    zero_point: Tensor,
    gram: Tensor,
    cross: Tensor,
    *,
    sweeps: int = 20,
) -> Tensor:
    """Return the integers after changing one weight at a time as long as that reduces the loss.

    Exact coordinate descent: the gradient gives a weight's best integer directly.

    Args:
        integers: Initial integers, float64, of the weight's shape.
        free: Which of them may change.
        bounds: Their smallest and largest values.
        scale: Broadcasts against ``integers``.
        zero_point: Broadcasts against ``integers``.
        gram: From `moments`.
        cross: From `moments`.
        sweeps: Largest number of passes over all weights.
    """
    shape = (len(gram), -1, gram.shape[1])
    low, high = [torch.where(free, b, integers).reshape(shape) for b in bounds]
    step = scale.expand_as(integers).reshape(shape)
    z = integers.reshape(shape).clone()
    weight = (z - zero_point.expand_as(integers).reshape(shape)) * step
    gradient = weight @ gram - cross.transpose(1, 2)
    diagonal = gram.diagonal(dim1=1, dim2=2).clamp(min=1e-30)
    for _ in range(sweeps):
        before = z.clone()
        for i in range(gram.shape[1]):
            wanted = z[..., i] - gradient[..., i] / (diagonal[:, None, i] * step[..., i])
            new = torch.minimum(torch.maximum(wanted.round(), low[..., i]), high[..., i])
            change = (new - z[..., i]) * step[..., i]
            gradient += change.unsqueeze(-1) * gram[:, None, i]
            z[..., i] = new
        if torch.equal(z, before):
            break
    return z.reshape(integers.shape)


def _free(folded: Tensor, position: Tensor, floor: Tensor, spec: QuantSpec) -> Tensor:
    """Return which weights may round either way without changing the range of their channel."""
    low, high = range_over(position, spec.channel_axis)
    low, high = (
        along_channels(folded, low, spec.channel_axis),
        along_channels(folded, high, spec.channel_axis),
    )
    inside = (floor >= torch.ceil(low - 1e-3)) & (floor + 1 <= torch.floor(high + 1e-3))
    return inside & ~_extremes(folded, spec)


def _extremes(folded: Tensor, spec: QuantSpec) -> Tensor:
    """Return which weights are the smallest or largest of their channel."""
    low, high = range_over(folded, spec.channel_axis)
    return (folded == along_channels(folded, low, spec.channel_axis)) | (
        folded == along_channels(folded, high, spec.channel_axis)
    )


def _choice(logit: Tensor) -> Tensor:
    return (torch.sigmoid(logit) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)


@torch.no_grad()
def _write_(captured: CapturedLayer, folded: Tensor) -> None:
    """Change the layer's parameters so that its folded weight is ``folded``."""
    weight = captured.layer.weight
    assert isinstance(weight, Tensor)
    if captured.norm is not None:
        assert isinstance(captured.norm, _BatchNorm)
        spread = spread_over_weight(captured.layer, fold_factor(captured.norm)).to(folded.dtype)
        folded = unfold(folded, weight.to(folded.dtype), spread)
    weight.copy_(folded.to(weight.dtype))


REPAIR = RepairStep(
    apply=lambda graph, samples, settings: adaround_(
        graph, samples.rounded, plain_batches=samples.plain, steps=settings.rounding_steps
    ),
    in_parts=True,
    includes=frozenset({"bias"}),
)
