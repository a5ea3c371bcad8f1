"""Change the width of calibrated quantizers of any kind, or widen their ranges.

The spec alone is not enough: the scale, learned or not, was chosen for the old width.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dq.quant.graph.quantized_graph import QuantizedGraph, quantizer_of
from dq.quant.numerics.affine import scale_and_zero_point
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import (
    ActivationQuantizer,
    LearnedActivationQuantizer,
)
from dq.quant.recipes.recipe import RAISED_BITS

# From this many bits on, clipping is the only loss, and 1.5 times the range costs half a bit.
WIDE_BITS, HEADROOM = 12, 1.5


def set_bits_(graph: QuantizedGraph, names: Iterable[str], bits: int = RAISED_BITS) -> None:
    """Set the width of these quantizers and change nothing else.

    For a rank that gets its state from one that ran `raise_bits_`.

    Args:
        graph: Prepared.
        names: Names of the quantizers.
        bits: 2 to 16.
    """
    for name in names:
        quantizer = quantizer_of(graph, name)
        quantizer.spec = replace(quantizer.spec, bits=bits)
        if isinstance(quantizer, ActivationQuantizer):
            observer = quantizer.observer
            if isinstance(observer, HistogramObserver):
                observer.spec = quantizer.spec


def raise_bits_(graph: QuantizedGraph, names: Sequence[str]) -> None:
    """Set these quantizers to `RAISED_BITS`; activations then cover all observed values.

    Every scale is initialised again, learned ones too. An activation's comes from its range, or
    from the learned range if training has widened it; a weight's comes from the weight.

    Args:
        graph: Prepared.
        names: Names of the quantizers.
    """
    for name in names:
        quantizer = quantizer_of(graph, name)
        if isinstance(quantizer, ActivationQuantizer):
            _cover_all_seen_(quantizer)
        set_bits_(graph, [name])
        if isinstance(quantizer, ActivationQuantizer):
            quantizer.initialise_from_range_()
    chosen = set(names)
    initialise_weights_(entry for entry in graph.all_layers() if entry[0].name in chosen)


@torch.no_grad()
def _cover_all_seen_(quantizer: ActivationQuantizer) -> None:
    """Widen the observer's range to all counted values, or to the range of a learned scale."""
    observer = quantizer.observer
    if isinstance(observer, HistogramObserver) and observer.collects:
        observer.range_min.copy_(torch.minimum(observer.range_min, observer.lowest))
        observer.range_max.copy_(torch.maximum(observer.range_max, observer.highest))
    if not isinstance(quantizer, LearnedActivationQuantizer):
        return
    spec, scale, zero_point = quantizer.spec, quantizer.scale, quantizer.zero_point
    begun = scale_and_zero_point(observer.range_min, observer.range_max, spec)
    moved = (scale != begun[0]) | (zero_point != begun[1])
    reach = [(end - zero_point) * scale for end in (spec.quant_min, spec.quant_max)]
    _widen_(observer.range_min, torch.minimum(observer.range_min, reach[0]), moved)
    _widen_(observer.range_max, torch.maximum(observer.range_max, reach[1]), moved)


def _widen_(end: Tensor, wider: Tensor, where: Tensor) -> None:
    end.copy_(torch.where(where, wider, end))


@torch.no_grad()
def add_headroom_(graph: QuantizedGraph) -> None:
    """Widen the ranges of activations with many bits, as unseen images exceed observed ranges.

    Learned scales are initialised again from the wider range.

    Args:
        graph: Calibrated.
    """
    for quantizer in graph.activations().values():
        if quantizer.spec.bits >= WIDE_BITS:
            quantizer.observer.range_min.mul_(HEADROOM)
            quantizer.observer.range_max.mul_(HEADROOM)
            quantizer.initialise_from_range_()
