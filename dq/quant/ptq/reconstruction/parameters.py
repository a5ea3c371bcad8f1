"""What block reconstruction learns in a block, each parameter in units of its own.

A weight's unit is its scale, a bias's the root mean square of the layer's biases, and a scale's the
scale itself. So one learning rate for each of the three fits every layer and every bit width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.quant.graph.nodes import module_of
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.numerics.affine import along_channels
from dq.quant.ptq.reconstruction.blocks import Block
from dq.quant.quantizers.batch_norm_fold import fold_factor
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, LearnedActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer, spread_over_weight
from dq.quant.quantizers.learned_step import LsqActivationQuantizer
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase

# Learning rates of Adam, in these units.
WEIGHT_RATE, BIAS_RATE, SCALE_RATE = 0.03, 0.01, 0.01


def layers_in(
    graph: QuantizedGraph, block: Block
) -> Iterator[tuple[QuantizedLayer, nn.Module, nn.Module | None]]:
    """Yield quantized layer, float layer and norm of each layer of a block.

    A layer with several norms, shared by pyramid levels, is left out.
    """
    targets = {str(node.target) for node in block.nodes}
    owners = [site.module for site in graph.sites if site.kind == "weight"]
    for site, quantized, layer, norm in graph.layers():
        if f"{CONTAINER}.{site.name}" in targets and owners.count(site.module) == 1:
            yield quantized, layer, norm


@dataclass(frozen=True, slots=True)
class _Learned:
    """A parameter that is learned: ``parameter = start + moved * unit``, element by element."""

    parameter: nn.Parameter
    unit: Tensor
    start: Tensor
    moved: Tensor
    rate: float


class Parameters:
    """The parameters of a block, each learned in units of its own."""

    def __init__(self) -> None:
        self.learned: list[_Learned] = []

    def add(self, parameter: nn.Parameter, unit: Tensor, rate: float) -> None:
        """Learn this parameter; ``unit`` broadcasts against it."""
        start = parameter.detach().clone()
        moved = torch.zeros_like(start).requires_grad_()
        self.learned.append(
            _Learned(
                parameter=parameter,
                unit=unit.detach().expand_as(start).clone(),
                start=start,
                moved=moved,
                rate=rate,
            )
        )

    def groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's groups."""
        return [{"params": [one.moved], "lr": one.rate} for one in self.learned]

    @torch.no_grad()
    def take_gradients_(self) -> None:
        """Take the gradients from the parameters, converted to the units in which they move."""
        for one in self.learned:
            gradient = one.parameter.grad
            one.moved.grad = None if gradient is None else gradient * one.unit
            one.parameter.grad = None

    @torch.no_grad()
    def write_(self) -> None:
        """Write the present values into the parameters."""
        for one in self.learned:
            one.parameter.copy_(one.start + one.moved * one.unit)

    @torch.no_grad()
    def restore_(self) -> None:
        """Write the first values into the parameters."""
        for one in self.learned:
            one.parameter.copy_(one.start)


@contextmanager
def learning(graph: QuantizedGraph, block: Block) -> Iterator[Parameters]:
    """Make the quantizers of a block learnable in the body; yield what is learned.

    Afterwards the quantizers are those from before, with the learned scales.
    """
    parameters = Parameters()
    replaced: dict[str, ActivationQuantizer] = {}
    frozen = [(p, p.requires_grad) for p in graph.root.parameters()]
    with in_phase(graph.quantizers, Phase.FROZEN):
        try:
            for parameter, _ in frozen:
                parameter.requires_grad_(False)
            for node in block.nodes:
                quantizer = module_of(graph.root, node)
                if isinstance(quantizer, ActivationQuantizer) and quantizer.observer.watches:
                    name = str(node.target).partition(".")[2]
                    if not isinstance(quantizer, LearnedActivationQuantizer):
                        learnable = _learnable(quantizer)
                        replaced[name], quantizer = quantizer, learnable
                        graph.quantizers[name] = learnable
                    quantizer.phase = Phase.TRAIN
                    for own in quantizer.parameters():
                        # The unit of an offset is the scale, too.
                        parameters.add(own, quantizer.scale, SCALE_RATE)
            for quantized, layer, norm in layers_in(graph, block):
                quantized.weight.phase = Phase.TRAIN
                _add_layer(parameters, quantized, layer, norm)
            for one in parameters.learned:
                one.parameter.requires_grad_(True)
            yield parameters
        finally:
            for parameter, flag in frozen:
                parameter.requires_grad_(flag)
                parameter.grad = None
            for name, quantizer in replaced.items():
                learned = graph.quantizers[name]
                assert isinstance(learned, ActivationQuantizer)
                graph.quantizers[name] = quantizer
                _take_scale_(quantizer, learned)


def _add_layer(
    parameters: Parameters, quantized: QuantizedLayer, layer: nn.Module, norm: nn.Module | None
) -> None:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    folded, scale, _ = quantized.quantized_weight(layer, norm)
    step = along_channels(folded, scale, quantized.weight.spec.channel_axis)
    if norm is not None:
        assert isinstance(norm, _BatchNorm)
        factor = spread_over_weight(layer, fold_factor(norm)).detach().abs()
        step = step / factor.clamp(min=1e-12)
    parameters.add(weight, step, WEIGHT_RATE)
    owner = layer if norm is None else norm
    if isinstance(owner.bias, nn.Parameter):
        unit = owner.bias.detach().square().mean().sqrt().clamp(min=1e-6)
        parameters.add(owner.bias, unit, BIAS_RATE)
    for own in quantized.weight.parameters():
        parameters.add(own, own.detach(), SCALE_RATE)


def _learnable(quantizer: ActivationQuantizer) -> LsqActivationQuantizer:
    learned = LsqActivationQuantizer(
        quantizer.spec, quantizer.observer, learn_offset=not quantizer.spec.symmetric
    ).to(quantizer.scale.device)
    with torch.no_grad():
        learned.learned_scale.copy_(quantizer.scale)
        if learned.learned_offset is not None:
            learned.learned_offset.copy_(-quantizer.zero_point * quantizer.scale)
    return learned


@torch.no_grad()
def _take_scale_(quantizer: ActivationQuantizer, learned: ActivationQuantizer) -> None:
    """Give a quantizer the range, and so the scale, that was learned."""
    spec, scale, shift = learned.spec, learned.scale, learned.zero_point
    lowest = -spec.quant_max if spec.symmetric and spec.signed else spec.quant_min
    quantizer.observer.range_min.copy_((lowest - shift) * scale)
    quantizer.observer.range_max.copy_((spec.quant_max - shift) * scale)
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(shift)
