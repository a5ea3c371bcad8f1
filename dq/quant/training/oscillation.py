"""Weights that oscillate between two integers: how many, and two remedies.

After Nagel et al. 2022 (arXiv 2203.11086). Near a rounding threshold the straight-through estimator
pushes a weight back and forth without end. At 4 bits and below this spoils batch norm statistics
and the result. The frequency of reversals is measured (section 3, equation 6). The remedies freeze
weights that oscillate often (algorithm 1), or add a loss that pulls weights to the middle of their
rounding interval (equation 5).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.affine import dequantize, fake_quantize, quantize
from dq.quant.quantizers.batch_norm_fold import fold_factor, unfold
from dq.quant.quantizers.layers import QuantizedLayer, spread_over_weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Oscillation:
    """What to do about oscillating weights.

    Attributes:
        momentum: Weight of a new step in the averages of reversals and integers.
        counts_above: A weight with more frequent reversals counts as oscillating.
        freeze_above: A weight with more frequent reversals keeps its integer for the rest of the
            training; None for never.
        dampening: Final weight of the dampening loss. It rises from zero in half a cosine; 0 for no
            such loss.
    """

    momentum: float = 0.01
    counts_above: float = 0.005
    freeze_above: float | None = None
    dampening: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 < self.momentum <= 1.0:
            raise ValueError(f"quant.oscillation.momentum is {self.momentum}; use 0 to 1")
        if self.freeze_above is not None and not 0.0 < self.freeze_above < 1.0:
            raise ValueError(f"quant.oscillation.freeze_above is {self.freeze_above}; use 0 to 1")
        if self.dampening < 0.0:
            raise ValueError(f"quant.oscillation.dampening is {self.dampening}; use 0 or more")

    def dampening_at(self, share: float) -> float:
        """Return the weight of the dampening loss when ``share`` of the steps are done."""
        return self.dampening * 0.5 * (1.0 - math.cos(math.pi * min(1.0, max(0.0, share))))


@dataclass(slots=True)
class _Record:
    """The state of one weight; all tensors have its shape."""

    integers: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor
    frozen_to: Tensor


class OscillationTracker:
    """Track the integers of all weights over the steps, and freeze those that oscillate.

    Its state belongs to the training, not to the model; checkpoints store it separately.

    Args:
        graph: The prepared model.
        settings: What to do.
    """

    def __init__(self, graph: QuantizedGraph, settings: Oscillation) -> None:
        self.graph, self.settings = graph, settings
        self.records: dict[str, _Record] = {}

    @torch.no_grad()
    def update_(self) -> None:
        """Compare the integers with those of the last step; reset frozen weights.

        Call it after each optimizer step in which weights are fake-quantized.
        """
        momentum = self.settings.momentum
        for site, quantized, layer, norm in self.graph.layers():
            weight, scale, zero_point = quantized.quantized_weight(layer, norm)
            integers = quantize(weight, scale, zero_point, quantized.weight.spec)
            record = self.records.get(site.name)
            if record is None:
                self.records[site.name] = _first(integers)
                continue
            change = torch.sign(integers - record.integers).to(torch.int8)
            reversed_ = (change != 0) & (change == -record.direction)
            record.frequency.lerp_(reversed_.to(record.frequency.dtype), momentum)
            record.average.lerp_(integers.to(record.average.dtype), momentum)
            record.direction.copy_(torch.where(change != 0, change, record.direction))
            if self.settings.freeze_above is not None:
                self._freeze_(record, layer, norm, quantized, scale, zero_point)
                integers = torch.where(record.frozen, record.frozen_to, integers)
            record.integers.copy_(integers)

    def _freeze_(
        self,
        record: _Record,
        layer: nn.Module,
        norm: nn.Module | None,
        quantized: QuantizedLayer,
        scale: Tensor,
        zero_point: Tensor,
    ) -> None:
        assert self.settings.freeze_above is not None
        fresh = (record.frequency > self.settings.freeze_above) & ~record.frozen
        record.frozen_to.copy_(torch.where(fresh, torch.round(record.average), record.frozen_to))
        record.frozen.logical_or_(fresh)
        assert isinstance(layer.weight, Tensor)
        held = dequantize(record.frozen_to, scale, zero_point, quantized.weight.spec)
        if isinstance(norm, _BatchNorm):
            held = unfold(held, layer.weight, spread_over_weight(layer, fold_factor(norm)))
        layer.weight.copy_(torch.where(record.frozen, held.to(layer.weight.dtype), layer.weight))

    def share_oscillating(self) -> float:
        """Return the share of all weights that oscillate, 0 to 1; waits for the device."""
        return self._share(lambda record: record.frequency > self.settings.counts_above)

    def share_of(self, name: str) -> float | None:
        """Return the share of one layer's weights that oscillate; None if it was never tracked."""
        record = self.records.get(name)
        if record is None:
            return None
        return float((record.frequency > self.settings.counts_above).float().mean())

    def share_frozen(self) -> float:
        """Return the share of all weights that are frozen, 0 to 1; waits for the device."""
        return self._share(lambda record: record.frozen)

    def _share(self, which: Any) -> float:
        total = sum(record.integers.numel() for record in self.records.values())
        if not total:
            return 0.0
        return float(sum(which(record).sum() for record in self.records.values())) / total

    def state_dict(self) -> dict[str, Any]:
        """Return the records as tensors by name, for a checkpoint of the training."""
        return {
            name: {key: getattr(record, key) for key in _Record.__slots__}
            for name, record in self.records.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        device = next(self.graph.root.parameters()).device
        self.records = {
            name: _Record(**{key: value.to(device) for key, value in record.items()})
            for name, record in state.items()
        }


def _first(integers: Tensor) -> _Record:
    return _Record(
        integers=integers,
        direction=torch.zeros_like(integers, dtype=torch.int8),
        frequency=torch.zeros_like(integers, dtype=torch.float32),
        average=integers.to(torch.float32),
        frozen=torch.zeros_like(integers, dtype=torch.bool),
        frozen_to=integers.clone(),
    )


def dampening_loss(graph: QuantizedGraph) -> Tensor:
    """Return the summed squared quantization error of all weights, shape ().

    It is measured on folded weights. The gradient goes only to the layers' weights, and not to
    those beyond the ends of their range.

    Args:
        graph: The prepared model.
    """
    terms = []
    for _, quantized, layer, norm in graph.layers():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if isinstance(norm, _BatchNorm):
            weight = weight * spread_over_weight(layer, fold_factor(norm).detach())
        with torch.no_grad():
            spec = quantized.weight.spec
            scale, zero_point = quantized.weight.scale_and_zero_point(weight)
            low = dequantize(torch.full_like(weight, spec.quant_min), scale, zero_point, spec)
            high = dequantize(torch.full_like(weight, spec.quant_max), scale, zero_point, spec)
            target = fake_quantize(weight, scale, zero_point, spec)
        clipped = torch.minimum(torch.maximum(weight, low), high)
        terms.append((clipped - target).square().sum())
    return torch.stack(terms).sum()
