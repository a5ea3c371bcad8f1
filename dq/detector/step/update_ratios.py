"""How far one step of the optimizer would move each layer's weights, measured before training."""

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
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase

# Below this norm a layer's weights are zero, and a ratio to them has no meaning.
SMALLEST_NORM = 1e-8


def update_ratios(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Mapping[str, Any]],
    grad_clip: Mapping[str, Any] | None = None,
) -> dict[str, float]:
    """Try one step at the optimizer's present rates, and return the size of each layer's update.

    The ratio is the norm of the update over the norm of the weights. With momentum it is that of a
    steady gradient, ``1 / (1 - momentum)`` times that of the first step. Everything is put back
    afterwards: weights, optimizer, random generators, norms and ranges. Quantizers round, and
    neither they nor norms collect statistics. Every rank must call it; gradients are averaged.

    Args:
        model: The detector in the wrapper that training uses.
        optimizer: New, without state.
        batches: A few training batches of this rank, equally many on each.
        grad_clip: As in ``optimizer_config``, with ``max_norm``.

    Returns:
        Ratio by parameter name of the unwrapped detector: weights of at least two dimensions.
        Infinite if the gradient is not finite.
    """
    detector = unwrap(model)
    with _as_before(detector, optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        before = {id(p): p.detach().clone() for p in parameters}
        with in_phase(detector, Phase.FROZEN), _training(detector):
            _backward(model, optimizer, list(batches))
        if grad_clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, **grad_clip)
        optimizer.step()
        steady = {
            id(p): 1.0 / (1.0 - group.get("momentum", 0.0))
            for group in optimizer.param_groups
            for p in group["params"]
        }
        names, ratios = [], []
        for name, weight in layer_weights(detector).items():
            if id(weight) in before:
                old = before[id(weight)]
                norm, moved = old.norm().float(), (weight.detach() - old).norm().float()
                zero = norm < SMALLEST_NORM
                ratios.append(torch.where(zero, 0.0, moved / norm.clamp_min(SMALLEST_NORM)))
                names.append((name, steady[id(weight)]))
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(before[id(parameter)])
    if not ratios:
        return {}
    # One copy from the device for all layers.
    values = torch.stack(ratios).nan_to_num(nan=torch.inf).tolist()
    return {name: value * factor for (name, factor), value in zip(names, values, strict=True)}


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
        if weight.requires_grad and weight.dim() > 1 and not name.startswith(f"{CONTAINER}.")
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
