"""Block reconstruction: learn roundings, ranges and biases so that each block gives float's result.

After BRECQ (Li et al. 2021, arXiv 2102.05426) and QDrop (Wei et al. 2022, arXiv 2203.05740). Each
block is learned in a few hundred steps of Adam on calibration images. They change the weights of
its layers (by a few times their scale), the biases, and the scales and zero points of its
activations. Gradients come from the straight-through estimator, as in quantization-aware training,
but neither annotations nor passes through the whole network are needed.

The target is the float network's result. The input is that of the quantized network, but in each
step a random half of its values is replaced by those of the float network, so that a block does not
fit one pattern of errors. Activations inside the block are quantized with the same chance.

An error counts as much as it changes the outputs of the detector: its square is weighed by the
squared derivative of the outputs by that channel.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from dq.progress import progress
from dq.quant.graph.nodes import Given, as_tuple, computed, is_shape, module_of
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.channel_effects import signed_sum
from dq.quant.ptq.parts import rows_of
from dq.quant.ptq.reconstruction.blocks import Block, blocks_of, constants
from dq.quant.ptq.reconstruction.memory import affordable, size_of
from dq.quant.ptq.reconstruction.parameters import Parameters, layers_in, learning
from dq.quant.ptq.settings import RepairStep
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.quantizers.restore import watching_outputs

log = logging.getLogger(__name__)

# Images of one step.
AT_ONCE = 4
# Boxes of one step in a RoI head.
BOXES_AT_ONCE = 100
# Images on which the derivatives of the outputs are measured.
EFFECT_IMAGES = 8
# Images of one backward pass, and calls of a RoI head on which derivatives are measured.
EFFECTS_AT_ONCE, EFFECT_CALLS = 2, 8
HOST = torch.device("cpu")
# Chance of a value to be quantized in a step.
KEPT_ROUNDED = 0.5

Values = dict[fx.Node, list[Any]]


def reconstruct_(
    graph: QuantizedGraph,
    batches: Sequence[Given],
    reference: nn.Module,
    *,
    steps: int,
    plain_batches: Sequence[Given] | None = None,
) -> int:
    """Reconstruct all blocks in place.

    Args:
        graph: Prepared, with ranges, in evaluation mode; left FROZEN.
        batches: Images on the model's device, or the inputs of a part.
        reference: The model in float, from before its weights were clipped or repaired, see
            `dq.quant.ptq.layer_walk.float_copy`.
        steps: Steps of Adam for each block.
        plain_batches: The inputs of the float model, for a part; None for the same images.

    Returns:
        The number of blocks that became better; others stay as they were.
    """
    at_once = AT_ONCE if plain_batches is None else BOXES_AT_ONCE
    images = rows_of(batches, at_once)
    blocks = blocks_of(graph)
    if plain_batches is None:
        images = affordable(graph, reference, blocks, images)
    plain_images = images if plain_batches is None else rows_of(plain_batches, at_once)
    run = _Run(graph, images, plain_images, blocks, reference)
    generator = torch.Generator().manual_seed(0)
    better = 0
    for number, block in enumerate(progress(blocks, "reconstruction", "block[s]"), start=1):
        before, after = run.reconstruct(block, steps, generator)
        run.forget(number)
        better += after < before
        log.info("block %d: relative error %.4g -> %.4g", number, before, after)
    set_phase(graph.quantizers, Phase.FROZEN)
    return better


class _Run:
    """One pass over the blocks with the values of all images, in float and fake-quantized.

    The values are in the machine's own memory: those of all images may be too many for a GPU's.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        images: Sequence[Given],
        plain_images: Sequence[Given],
        blocks: Sequence[Block],
        reference: nn.Module,
    ) -> None:
        self.graph, self.images, self.reference = graph, images, reference
        self.plain_images = plain_images
        self.device = next(graph.root.parameters()).device
        self.fixed = constants(graph.graph)
        self.plain: Values = {}
        self.rounded: Values = {}
        self.effects = _effects(graph, self.reference, _few(plain_images), blocks)
        self.last_reader = {node: n for n, block in enumerate(blocks) for node in block.inputs}

    def reconstruct(
        self, block: Block, steps: int, generator: torch.Generator
    ) -> tuple[float, float]:
        """Learn one block, and compute its outputs for the blocks after it.

        Returns:
            The relative error of the block's outputs before and after.
        """
        targets = self._outputs(block, self.reference, self.plain, self.plain_images)
        error = _Error(block, targets, self.effects, self.device)
        before = self._error(block, error)
        after = before
        if steps and any(True for _ in layers_in(self.graph, block)):
            with learning(self.graph, block) as parameters:
                self._learn(block, error, parameters, steps, generator)
                after = self._error(block, error)
                if not after < before:
                    parameters.restore_()
                    after = before
        self.plain |= targets
        self.rounded |= self._outputs(block, self.graph.root, self.rounded, self.images)
        return before, after

    def forget(self, number: int) -> None:
        """Free the values that no block from this number on reads."""
        for values in (self.plain, self.rounded):
            for node in [n for n in values if self.last_reader.get(n, -1) < number]:
                del values[node]

    def _learn(
        self,
        block: Block,
        error: _Error,
        parameters: Parameters,
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
                    node: _mixed(
                        _on(self.device, self.rounded[node][index]),
                        _on(self.device, self.plain[node][index]),
                        generator,
                    )
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
            given = self._inputs(block, self.rounded, index)
            outputs = self._computed(block, self.graph.root, given, images)
            total += float(error(outputs, index)) * size_of(images)
        return total / sum(size_of(images) for images in self.images)

    @torch.no_grad()
    def _outputs(
        self, block: Block, root: nn.Module, values: Values, inputs: Sequence[Given]
    ) -> Values:
        found: Values = {node: [] for node in block.outputs}
        for index, images in enumerate(inputs):
            given = self._inputs(block, values, index)
            for node, value in self._computed(block, root, given, images).items():
                found[node].append(_on(HOST, value))
        return found

    def _inputs(self, block: Block, values: Values, index: int) -> dict[fx.Node, Any]:
        """Return copies of a block's inputs for one batch of images, on the device."""
        return {node: _copied(_on(self.device, values[node][index])) for node in block.inputs}

    def _computed(
        self, block: Block, root: nn.Module, given: Mapping[fx.Node, Any], images: Given
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
    """The error of a block's outputs, relative to the float outputs.

    Each channel is weighed by its effect on the detector's outputs.

    Args:
        block: The block.
        targets: The float outputs, for each batch of images.
        effects: Squared derivative of the detector's outputs by each channel.
        device: Where the block is computed.
    """

    def __init__(
        self,
        block: Block,
        targets: Values,
        effects: Mapping[fx.Node, Tensor],
        device: torch.device,
    ) -> None:
        self.targets, self.device = targets, device
        self.weights: dict[fx.Node, Tensor] = {}
        power = 0.0
        for node in block.outputs:
            values = [leaf for value in targets[node] for leaf in _floats(value)]
            if is_shape(node) or not values:
                continue
            weight = effects.get(node, torch.ones((), device=device))
            self.weights[node] = weight
            total = sum(float(_weighed(_on(device, value), weight)) for value in values)
            power += total / len(values)
        self.power = max(power, 1e-30)

    def __call__(self, outputs: Mapping[fx.Node, Any], index: int) -> Tensor:
        """Return the error of one batch's outputs, ``()``."""
        parts = [
            _weighed(own - wanted, weight)
            for node, weight in self.weights.items()
            for own, wanted in zip(
                _floats(outputs[node]),
                _floats(_on(self.device, self.targets[node][index])),
                strict=True,
            )
        ]
        return torch.stack(parts).sum() / self.power


def _few(inputs: Sequence[Given]) -> list[Given]:
    """Return the first images, a few in each call, or the first calls of a RoI head."""
    if not all(isinstance(given, Tensor) for given in inputs):
        return list(inputs[:EFFECT_CALLS])
    images = torch.cat([as_tuple(given)[0] for given in inputs])[:EFFECT_IMAGES]
    return list(torch.split(images, EFFECTS_AT_ONCE))


def _weighed(x: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of squares with weighed channels, as the mean over images."""
    squared = x.square()
    if weight.dim():
        squared = squared * weight.to(x.dtype).reshape(1, -1, *[1] * (x.dim() - 2))
    return squared.sum() / len(x)


def _copied(value: Any) -> Any:
    """Return a copy, which operations in place may overwrite."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _on(device: torch.device, value: Any) -> Any:
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, value)


def _floats(value: Any) -> list[Tensor]:
    return [v for v in tree_leaves(value) if isinstance(v, Tensor) and v.is_floating_point()]


def _mixed(rounded: Any, plain: Any, generator: torch.Generator) -> Any:
    """Return the quantized values with a random half of them replaced by the float ones."""

    def mix(own: Any, other: Any) -> Any:
        if not isinstance(own, Tensor) or not own.is_floating_point():
            return own
        chance = torch.rand(own.shape, generator=generator).to(own.device)
        return torch.where(chance < KEPT_ROUNDED, own, other)

    return tree_map(mix, rounded, plain)


def _effects(
    graph: QuantizedGraph, reference: nn.Module, calls: Sequence[Given], blocks: Sequence[Block]
) -> dict[fx.Node, Tensor]:
    """Return the squared derivative of the outputs by each channel of each block's outputs."""
    wanted = {node for block in blocks for node in block.outputs}
    generator = torch.Generator().manual_seed(0)
    found: dict[fx.Node, Tensor] = {}
    for call in calls:
        kept: dict[fx.Node, Tensor] = {}
        values: dict[fx.Node, Any] = {}
        given = tuple(x.detach().clone().requires_grad_() for x in as_tuple(call))
        with torch.enable_grad():
            for node in graph.graph.nodes:
                values[node] = computed(reference, node, values.__getitem__, given)
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


@contextmanager
def _partly_rounded(
    graph: QuantizedGraph, block: Block, generator: torch.Generator
) -> Iterator[None]:
    """Quantize each activation of a block with a chance of one half, value by value."""

    def rounded_by_chance(name: str, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        chance = torch.rand(output.shape, generator=generator).to(output.device)
        return torch.where(chance < KEPT_ROUNDED, output, inputs[0].to(output.dtype))

    # The block's own outputs are what is compared.
    inside = {n.name: module_of(graph.root, n) for n in block.nodes if n not in block.outputs}
    quantizers = {n: m for n, m in inside.items() if isinstance(m, ActivationQuantizer)}
    with watching_outputs(quantizers, rounded_by_chance):
        yield


REPAIR = RepairStep(
    compare=lambda graph, samples, settings, reference: reconstruct_(
        graph,
        samples.rounded,
        reference,
        steps=settings.reconstruction_steps,
        plain_batches=None if samples.plain is samples.rounded else samples.plain,
    ),
    in_parts=True,
)
