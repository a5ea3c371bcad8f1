"""Running statistics of batch norms, estimated again with fake quantization on.

Statistics averaged while weights, scales and phases still changed fit no single model. As in
precise batch norm (Wu and Johnson 2021, arXiv 2105.07576, section 3) they are replaced by those of
a fixed model over many batches. The old ones stay in place until the last batch, because the
fake-quantized weights have them folded in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.batch_norm_fold import SMALLEST_FACTOR, fold_factor, is_foldable
from dq.quant.quantizers.fake_quantize import WeightQuantizer
from dq.quant.quantizers.restore import restored_state, watching_inputs


class _Moments:
    """Count, mean and sum of squared deviations of all inputs of a norm, in float64."""

    def __init__(self, norm: _BatchNorm) -> None:
        assert norm.running_mean is not None
        zeros = torch.zeros(norm.num_features, dtype=torch.float64, device=norm.running_mean.device)
        self.count, self.mean, self.deviations = 0, zeros, zeros.clone()

    def add(self, x: Tensor) -> None:
        """Merge a batch ``(N, C, ...)``, as in Chan et al. 1983."""
        flat = x.detach().to(self.mean.dtype).transpose(0, 1).flatten(1)
        count = flat.shape[1]
        if count == 0:
            return
        mean = flat.mean(1)
        total = self.count + count
        shift = mean - self.mean
        self.deviations += (flat - mean[:, None]).square().sum(1)
        self.deviations += shift.square() * (self.count * count / total)
        self.mean = self.mean + shift * (count / total)
        self.count = total


def _unmerged(root: nn.Module) -> None:
    """Do nothing: one process has nothing to merge."""


@torch.no_grad()
def reestimate_norms_(
    graph: QuantizedGraph,
    batches: Iterable[Tensor],
    *,
    merge_: Callable[[nn.Module], None] = _unmerged,
) -> int:
    """Replace the running statistics of all batch norms by those over ``batches``.

    The phase stays. Learned weight scales are multiplied by the change of the fold factor, so each
    weight keeps its integers. Other modules are in evaluation mode meanwhile; all modes are
    restored.

    Args:
        graph: The prepared model.
        batches: Images ``(N, 3, H, W)`` on the model's device.
        merge_: Called with the model after its statistics were replaced, to average over ranks.

    Returns:
        The number of batches; with none, nothing changed.
    """
    root = graph.root
    norms = [m for m in root.modules() if isinstance(m, _BatchNorm) and is_foldable(m)]
    factors = _factors(graph)
    number = 0
    with _watched(norms) as moments, restored_state(root):
        root.eval()
        for norm in norms:
            # Normalise by the batch without changing the running statistics.
            norm.train()
            norm.momentum = 0.0
        for batch in batches:
            graph(batch)
            number += 1
    for norm in norms:
        found = moments[norm]
        if found.count > 1:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            norm.running_mean.copy_(found.mean)
            norm.running_var.copy_(found.deviations / (found.count - 1))
    if number:
        merge_(root)
        for quantizer, norm, before in factors:
            dead = before.abs() < SMALLEST_FACTOR
            ratio = fold_factor(norm) / torch.where(dead, torch.ones_like(before), before)
            quantizer.rescale_(torch.where(dead, torch.ones_like(ratio), ratio))
    return number


@contextmanager
def _watched(norms: Sequence[_BatchNorm]) -> Iterator[Mapping[_BatchNorm, _Moments]]:
    """Collect the moments of each norm's inputs; restore momentum and counter after the body."""
    moments = {norm: _Moments(norm) for norm in norms}
    momenta = {norm: norm.momentum for norm in norms}
    counters = {
        n: n.num_batches_tracked.clone() for n in norms if n.num_batches_tracked is not None
    }

    def watch(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        moments[norm].add(inputs[0])

    try:
        with watching_inputs(dict.fromkeys(norms, watch)):
            yield moments
    finally:
        for norm in norms:
            norm.momentum = momenta[norm]
            if norm in counters and norm.num_batches_tracked is not None:
                norm.num_batches_tracked.copy_(counters[norm])


def _factors(graph: QuantizedGraph) -> list[tuple[WeightQuantizer, _BatchNorm, Tensor]]:
    """Return weight quantizers with a stored scale, their norms and the present fold factors."""
    found = []
    for _, quantized, _, norm in graph.layers():
        quantizer = quantized.weight
        scale = quantizer.stored_scale
        if scale is not None and isinstance(norm, _BatchNorm):
            factor = fold_factor(norm)
            # One scale for all channels cannot follow the factor of each channel.
            if scale.shape == factor.shape:
                found.append((quantizer, norm, factor))
    return found
