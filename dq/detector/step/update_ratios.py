"""How far one step would move each layer's weights and learned scales, measured before training."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.step.rank_state import (
    changed_attributes,
    generators,
    plain_attributes,
    set_attributes,
    set_generators,
)
from dq.dist.exchange.data_parallel import unwrap
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.quantizers.learner import Learner
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase

# Below this, weights or a range are zero, and a ratio to them has no meaning.
SMALLEST = 1e-8
# Scales of less than this share of the layer's median count as this share of it.
DEAD_CHANNEL = 1e-3


def update_ratios(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Mapping[str, Any]],
    grad_clip: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Try one step at the optimizer's present rates, and return the size of each update.

    For weights the ratio is the norm of the update over the norm of the weights. For a learned
    scale it is the update over the scale, of the channel that moves most; for an offset or a
    clipping value over the width of the range. With momentum it is that of a steady gradient,
    ``1 / (1 - momentum)`` times that of the first step. Everything is put back afterwards: weights,
    optimizer, random generators, norms and ranges. Quantizers round, and neither they nor norms
    collect statistics. Every rank must call it; gradients are averaged.

    Args:
        model: The detector in the wrapper that training uses.
        optimizer: New, without state.
        batches: A few training batches of this rank, equally many on each.
        grad_clip: As in ``optimizer_config``, with ``max_norm``.

    Returns:
        Ratio by parameter name of the unwrapped detector: weights of at least two dimensions, and
        what quantizers learn (`is_learned`). Infinite if the gradient is not finite.
    """
    detector = unwrap(model)
    with _as_before(detector, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = {id(p): p.detach().clone() for p in parameters}
        sizes = learned_sizes(detector)
        with in_phase(detector, Phase.FROZEN), _training(detector):
            for module in detector.modules():
                # In other phases optimizers skip what it learns.
                if isinstance(module, Learner):
                    module.phase = Phase.TRAIN
            _backward(model, optimizer, list(batches))
            if grad_clip is not None:
                torch.nn.utils.clip_grad_norm_(parameters, **grad_clip)
            optimizer.step()
        steady = {
            id(p): 1.0 / (1.0 - group.get("momentum", 0.0))
            for group in optimizer.param_groups
            for p in group["params"]
        }
        own = {n: p for n, p in detector.named_parameters() if id(p) in before}
        names = [n for n in (*layer_weights(detector), *sizes) if n in own]
        moved = {n: own[n].detach() - before[id(own[n])] for n in names}
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(before[id(parameter)])
    ratios = {
        n: relative(moved[n], sizes[n]).max() if n in sizes else _of_norm(moved[n], own[n])
        for n in names
    }
    if not ratios:
        return {}
    # One copy from the device for all of them.
    values = torch.stack(list(ratios.values())).nan_to_num(nan=torch.inf).tolist()
    return {n: value * steady[id(own[n])] for n, value in zip(ratios, values, strict=True)}


def is_learned(name: str) -> bool:
    """Return whether a parameter of this name is a quantizer's."""
    return name.startswith(f"{CONTAINER}.")


def _of_norm(moved: Tensor, weight: Tensor) -> Tensor:
    norm = weight.detach().norm().float()
    ratio = moved.norm().float() / norm.clamp_min(SMALLEST)
    return torch.where(norm < SMALLEST, 0.0, ratio)


def relative(moved: Tensor, size: Tensor) -> Tensor:
    """Return how far learned scales have moved, relative to their sizes, of the same shape.

    A channel without weights has a meaningless scale, almost zero or 1. So it must neither count
    as one that moves far, nor as the measure of the others.

    Args:
        moved: The changes.
        size: What each is compared with, of `learned_sizes`.
    """
    least = (DEAD_CHANNEL * size.median()).clamp_min(SMALLEST)
    return moved.abs().float() / size.float().clamp_min(least)


def _backward(
    model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Mapping[str, Any]]
) -> None:
    """Leave the mean gradient of the batches in the parameters."""
    optimizer.zero_grad()
    for batch in batches:
        outputs = model.train_step(batch, optimizer)  # type: ignore[operator]
        (outputs["loss"] / len(batches)).backward()


def layer_weights(detector: nn.Module) -> dict[str, Tensor]:
    """Return the trained weights of layers by name; biases and norms often start at zero."""
    return {
        name: weight
        for name, weight in detector.named_parameters()
        if weight.requires_grad and weight.dim() > 1 and not is_learned(name)
    }


def learned_sizes(detector: nn.Module) -> dict[str, Tensor]:
    """Return what updates of scales, offsets and clipping values are compared with, by name."""
    return {
        f"{prefix}.{name}" if prefix else name: size
        for prefix, module in detector.named_modules()
        if isinstance(module, Learner)
        for name, size in module.sizes().items()
    }


@contextmanager
def _training(detector: nn.Module) -> Iterator[None]:
    """Put the detector into training mode, but its norms into evaluation mode."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, _BatchNorm):
            module.eval()
    yield


@contextmanager
def _as_before(detector: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Restore the generators, plain attributes and the optimizer's state after the body."""
    random, attributes = generators(), plain_attributes(detector)
    try:
        yield
    finally:
        optimizer.zero_grad()
        optimizer.state.clear()
        changed = {
            module: {name: attributes[module][name] for name in plain if name in attributes[module]}
            for module, plain in changed_attributes(attributes, detector).items()
            if module in attributes
        }
        set_attributes(detector, changed)
        set_generators(random)
