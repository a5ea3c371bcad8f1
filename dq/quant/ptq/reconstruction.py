"""Block reconstruction: learn roundings, ranges and biases so that each block gives float's result.

After BRECQ (Li et al. 2021, arXiv 2102.05426) and QDrop (Wei et al. 2022, arXiv 2203.05740). Block
by block, a few hundred steps of Adam on calibration images change the weights of its layers within
some rounding steps, their biases, and scale and zero point of its activations. Gradients pass the
rounding straight through, as in quantization-aware training, but neither annotations nor whole
passes are needed. The target is the float network's result. The input is that of the quantized
network, in which half of the values, chosen anew in each step, are float's, so that a block does
not fit one pattern of errors; activations inside are rounded with the same chance.

An error counts as much as it changes the outputs of the detector: its square is weighed by the
squared derivative of the outputs by that channel.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from dq.quant.graph.nodes import computed, is_shape, module_of
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.numerics.affine import along_channels
from dq.quant.ptq.blocks import Block, blocks_of, constants
from dq.quant.ptq.channel_effects import signed_sum
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.batch_norm_fold import fold_factor
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, LearnedActivationQuantizer
from dq.quant.quantizers.layers import QuantizedLayer, spread_over_weight
from dq.quant.quantizers.learned_step import LsqActivationQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import in_phase

log = logging.getLogger(__name__)

# Images of one step.
AT_ONCE = 4
# Images on which the derivatives of the outputs are measured.
EFFECT_IMAGES = 8
KEPT_ROUNDED = 0.5
# Learning rates of Adam, in rounding steps of the weight, in shares of a bias and of a scale.
WEIGHT_RATE, BIAS_RATE, SCALE_RATE = 0.03, 0.01, 0.01

Values = dict[fx.Node, list[Any]]


def reconstruct_(graph: QuantizedGraph, batches: Sequence[Tensor], *, steps: int) -> int:
    """Reconstruct all blocks in place.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN.
        batches: Images on the model's device.
        steps: Steps of Adam for each block.

    Returns:
        The number of blocks that became better; others stay as they were.
    """
    images = [few for batch in batches for few in torch.split(batch, AT_ONCE)]
    blocks = blocks_of(graph)
    run = _Run(graph, images, blocks)
    generator = torch.Generator().manual_seed(0)
    better, began = 0, time.monotonic()
    for number, block in enumerate(blocks, start=1):
        before, after = run.reconstruct(block, steps, generator)
        better += after < before
        elapsed = time.monotonic() - began
        log.info(
            "block %d of %d: relative error %.4g -> %.4g, %.0f s to go",
            number,
            len(blocks),
            before,
            after,
            elapsed / number * (len(blocks) - number),
        )
    set_phase(graph.quantizers, Phase.FROZEN)
    return better


class _Run:
    """One pass over the blocks with the values of all images, in float and fake-quantized."""

    def __init__(
        self, graph: QuantizedGraph, images: Sequence[Tensor], blocks: Sequence[Block]
    ) -> None:
        self.graph, self.images, self.blocks = graph, images, blocks
        self.twin = _float_copy(graph.root)
        self.fixed = constants(graph.graph)
        self.plain: Values = {}
        self.rounded: Values = {}
        self.effects = _effects(graph, self.twin, torch.cat(list(images))[:EFFECT_IMAGES], blocks)
        self.last = {node: n for n, block in enumerate(blocks) for node in block.inputs}

    def reconstruct(
        self, block: Block, steps: int, generator: torch.Generator
    ) -> tuple[float, float]:
        """Learn one block, compute its outputs, and forget values that no later block reads.

        Returns:
            The relative error of the block's outputs before and after.
        """
        targets = self._outputs(block, self.twin, self.plain)
        error = _Error(block, targets, self.effects)
        before = self._error(block, error)
        after = before
        if steps and any(True for _ in _layers(self.graph, block)):
            with _learning(self.graph, block) as parameters:
                self._learn(block, error, parameters, steps, generator)
                after = self._error(block, error)
                if not after < before:
                    parameters.restore_()
                    after = before
        self._keep(block, targets, self._outputs(block, self.graph.root, self.rounded))
        return before, after

    def _learn(
        self,
        block: Block,
        error: _Error,
        parameters: _Parameters,
        steps: int,
        generator: torch.Generator,
    ) -> None:
        optimizer = torch.optim.Adam(parameters.groups())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        order: list[int] = []
        with _partly_rounded(self.graph, block, generator), torch.enable_grad():
            for _ in range(steps):
                order = order or torch.randperm(len(self.images), generator=generator).tolist()
                index = order.pop()
                given = {
                    node: _mixed(self.rounded[node][index], self.plain[node][index], generator)
                    for node in block.inputs
                }
                outputs = self._computed(block, self.graph.root, given, self.images[index])
                optimizer.zero_grad()
                error(outputs, index).backward()  # type: ignore[no-untyped-call]
                parameters.take_gradients_()
                optimizer.step()
                schedule.step()
                parameters.write_()

    @torch.no_grad()
    def _error(self, block: Block, error: _Error) -> float:
        total = 0.0
        for index, images in enumerate(self.images):
            given = {node: self.rounded[node][index] for node in block.inputs}
            outputs = self._computed(block, self.graph.root, given, images)
            total += float(error(outputs, index)) * len(images)
        return total / sum(len(images) for images in self.images)

    @torch.no_grad()
    def _outputs(self, block: Block, root: nn.Module, values: Values) -> Values:
        found: Values = {node: [] for node in block.outputs}
        for index, images in enumerate(self.images):
            given = {node: values[node][index] for node in block.inputs}
            for node, value in self._computed(block, root, given, images).items():
                found[node].append(value)
        return found

    def _keep(self, block: Block, plain: Values, rounded: Values) -> None:
        self.plain |= plain
        self.rounded |= rounded
        here = self.blocks.index(block)
        for values in (self.plain, self.rounded):
            for node in [n for n in values if self.last.get(n, -1) <= here]:
                del values[node]

    def _computed(
        self, block: Block, root: nn.Module, given: Mapping[fx.Node, Any], images: Tensor
    ) -> dict[fx.Node, Any]:
        """Return the block's outputs for one batch of images."""
        values: dict[fx.Node, Any] = dict(given)

        def value(node: fx.Node) -> Any:
            if node not in values:
                assert node in self.fixed, node
                values[node] = computed(root, node, value, images)
            return values[node]

        for node in block.nodes:
            values[node] = computed(root, node, value, images)
        return {node: values[node] for node in block.outputs}


class _Error:
    """The error of a block's outputs, by its effect on the detector's outputs, relative to float's.

    Args:
        block: The block.
        targets: The float outputs, for each batch of images.
        effects: Squared derivative of the detector's outputs by each channel.
    """

    def __init__(self, block: Block, targets: Values, effects: Mapping[fx.Node, Tensor]) -> None:
        self.targets = targets
        self.weights: dict[fx.Node, Tensor] = {}
        power = 0.0
        for node in block.outputs:
            values = [leaf for value in targets[node] for leaf in _floats(value)]
            if is_shape(node) or not values:
                continue
            weight = effects.get(node, torch.ones((), device=values[0].device))
            self.weights[node] = weight
            power += sum(float(_weighed(value, weight)) for value in values) / len(values)
        self.power = max(power, 1e-30)

    def __call__(self, outputs: Mapping[fx.Node, Any], index: int) -> Tensor:
        """Return the error of one batch's outputs, ``()``."""
        parts = [
            _weighed(own - wanted, weight)
            for node, weight in self.weights.items()
            for own, wanted in zip(
                _floats(outputs[node]), _floats(self.targets[node][index]), strict=True
            )
        ]
        return torch.stack(parts).sum() / self.power


def _weighed(x: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of squares, channels weighed, for one image on average."""
    squared = x.square()
    if weight.dim():
        squared = squared * weight.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
    return squared.sum() / len(x)


def _floats(value: Any) -> list[Tensor]:
    return [v for v in tree_leaves(value) if isinstance(v, Tensor) and v.is_floating_point()]


def _mixed(rounded: Any, plain: Any, generator: torch.Generator) -> Any:
    """Return values of which a random half is rounded."""

    def mix(own: Any, other: Any) -> Any:
        if not isinstance(own, Tensor) or not own.is_floating_point():
            return own
        chance = torch.rand(own.shape, generator=generator).to(own.device)
        return torch.where(chance < KEPT_ROUNDED, own, other)

    return tree_map(mix, rounded, plain)


def _float_copy(root: nn.Module) -> nn.Module:
    twin = copy.deepcopy(root)
    twin.eval()
    set_phase(twin, Phase.OFF)
    return twin


def _effects(
    graph: QuantizedGraph, twin: nn.Module, images: Tensor, blocks: Sequence[Block]
) -> dict[fx.Node, Tensor]:
    """Return the squared derivative of the outputs by each channel of each block's outputs."""
    wanted = {node for block in blocks for node in block.outputs}
    generator = torch.Generator().manual_seed(0)
    found: dict[fx.Node, Tensor] = {}
    for few in torch.split(images, 2):
        kept: dict[fx.Node, Tensor] = {}
        values: dict[fx.Node, Any] = {}
        given = few.detach().clone().requires_grad_()
        with torch.enable_grad():
            for node in graph.graph.nodes:
                values[node] = computed(twin, node, values.__getitem__, given)
                value = values[node]
                if node in wanted and isinstance(value, Tensor) and value.requires_grad:
                    kept[node] = value
            outputs = [y for y in _floats(values[node]) if y.requires_grad]
            total = sum(signed_sum(y, generator) for y in outputs)
        if not kept or not isinstance(total, Tensor):
            continue
        gradients = torch.autograd.grad(total, list(kept.values()), allow_unused=True)
        for node, gradient in zip(kept, gradients, strict=True):
            if gradient is not None and gradient.dim() >= 2:
                axes = [axis for axis in range(gradient.dim()) if axis != 1]
                squared = gradient.double().square().sum(axes) / gradient[0, 0].numel()
                found[node] = found[node] + squared if node in found else squared
    return found


# -- what is learned


def _layers(
    graph: QuantizedGraph, block: Block
) -> Iterator[tuple[QuantizedLayer, nn.Module, nn.Module | None]]:
    targets = {str(node.target) for node in block.nodes}
    owners = [site.module for site in graph.sites if site.kind == "weight"]
    for site, quantized, layer, norm in graph.layers():
        if f"{CONTAINER}.{site.name}" in targets and owners.count(site.module) == 1:
            yield quantized, layer, norm


@dataclass(frozen=True, slots=True)
class _Learned:
    """A parameter and the unit of each of its elements, in which it is learned."""

    parameter: nn.Parameter
    unit: Tensor
    start: Tensor
    moved: Tensor
    rate: float


class _Parameters:
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
        """Give the units' variables the gradients of the parameters."""
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
def _learning(graph: QuantizedGraph, block: Block) -> Iterator[_Parameters]:
    """Make the quantizers of a block learnable in the body; yield what is learned.

    Afterwards the quantizers are those from before, with the learned scales.
    """
    parameters = _Parameters()
    replaced: dict[str, ActivationQuantizer] = {}
    frozen = [(p, p.requires_grad) for p in graph.root.parameters()]
    for parameter, _ in frozen:
        parameter.requires_grad_(False)
    with in_phase(graph.quantizers, Phase.FROZEN):
        for node in block.nodes:
            quantizer = module_of(graph.root, node)
            if isinstance(quantizer, ActivationQuantizer) and quantizer.observer.watches:
                name = str(node.target).partition(".")[2]
                if not isinstance(quantizer, LearnedActivationQuantizer):
                    replaced[name] = quantizer
                    quantizer = _learnable(quantizer)
                    graph.quantizers[name] = quantizer
                quantizer.phase = Phase.TRAIN
                for own in quantizer.parameters():
                    # An offset moves in steps of its scale, too.
                    parameters.add(own, quantizer.scale, SCALE_RATE)
        for quantized, layer, norm in _layers(graph, block):
            quantized.weight.phase = Phase.TRAIN
            _add_layer(parameters, quantized, layer, norm)
        for one in parameters.learned:
            one.parameter.requires_grad_(True)
        try:
            yield parameters
        finally:
            for name, quantizer in replaced.items():
                learned = graph.quantizers[name]
                assert isinstance(learned, ActivationQuantizer)
                graph.quantizers[name] = quantizer
                _take_scale_(quantizer, learned)
            for parameter, flag in frozen:
                parameter.requires_grad_(flag)
                parameter.grad = None


def _add_layer(
    parameters: _Parameters, quantized: QuantizedLayer, layer: nn.Module, norm: nn.Module | None
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


@contextmanager
def _partly_rounded(
    graph: QuantizedGraph, block: Block, generator: torch.Generator
) -> Iterator[None]:
    """Let each activation of a block be rounded with a chance of one half, value by value."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        chance = torch.rand(output.shape, generator=generator).to(output.device)
        return torch.where(chance < KEPT_ROUNDED, output, inputs[0].to(output.dtype))

    found: list[Callable[[], None]] = []
    for node in block.nodes:
        module = module_of(graph.root, node)
        # The block's own outputs are what is compared.
        if isinstance(module, ActivationQuantizer) and node not in block.outputs:
            found.append(module.register_forward_hook(hook).remove)
    try:
        yield
    finally:
        for remove in found:
            remove()


REPAIR = RepairStep(
    apply=lambda graph, images, settings: reconstruct_(
        graph, images, steps=settings.reconstruction_steps
    ),
)
