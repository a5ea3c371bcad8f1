"""Lower rates for weights and learned scales that one step would move too far, by a trial step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import islice

import torch
from mmcv import Config
from torch import nn

from dq.detector.config.training_values.optimizer_values import clip_arguments
from dq.detector.loading.training_loader import TrainingLoader
from dq.detector.step.guards import OFF, Guards
from dq.detector.step.large_updates import KINDS, announce, say_lower
from dq.detector.step.update_ratios import update_ratios
from dq.detector.training.assignment import Resume
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap

LAYER_RATES = "layer_rates"
# Batches of each rank for the trial.
BATCHES = 2


def layer_rates_(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    limit: float | None,
    guards: Guards,
    resume: Resume | None,
) -> dict[str, float]:
    """Lower the rates of what the present rates would move too far; return the factors.

    It looks at weights of layers, and at scales, offsets and clipping values that quantizers learn.
    A recipe sets the limit. Without one, nothing is changed, and a line says what moves by more
    than ``guards.max_update``. Every rank must call it before the first step. A resumed training
    takes the factors of its checkpoint.

    Args:
        config: Of the training.
        model: Result of `dq.detector.training.network.on_all_ranks`.
        optimizer: New; gets a group for each of these parameters.
        loader: Of the training images; its first batches are used.
        limit: Of the recipe; None without one.
        guards: Say what to do without a recipe.
        resume: The checkpoint that the training continues from.

    Raises:
        RuntimeError: An update is too large, there is no recipe, and ``guards.runaway`` is
            ``stop``.
    """
    if resume is not None:
        factors: dict[str, float] = resume.content.get("meta", {}).get(LAYER_RATES, {})
        lower_rates_(optimizer, unwrap(model), factors)
        return factors
    if limit is None and guards.runaway == OFF:
        return {}
    clip = clip_arguments(config.optimizer_config or {})
    batches = islice(iter(loader), BATCHES)
    # A compiled network would be compiled once more, for this one step.
    with torch.compiler.set_stance("force_eager"):
        own = update_ratios(model, optimizer, batches, clip)
    # Gradients are averaged over ranks, but what a rank computes from them may differ in rounding.
    ratios: dict[str, float] = collectives.broadcast_object(own)
    if limit is None:
        announce(ratios, optimizer, guards)
        return {}
    # A gradient that overflows says nothing about the layer; the guards look at it in training.
    factors = {
        name: kind.most(limit) / ratio
        for kind in KINDS
        for name, ratio in kind.of(ratios).items()
        if kind.most(limit) < ratio < math.inf
    }
    lower_rates_(optimizer, unwrap(model), factors)
    say_lower(factors, ratios, limit)
    return factors


def lower_rates_(
    optimizer: torch.optim.Optimizer, detector: nn.Module, factors: Mapping[str, float]
) -> None:
    """Multiply the learning rates of some parameters, which get parameter groups of their own.

    The result depends only on the model and the factors, so an optimizer state can be loaded.

    Args:
        optimizer: Changed in place.
        detector: Unwrapped; it has the parameters.
        factors: By parameter name.
    """
    chosen = {id(detector.get_parameter(name)): factor for name, factor in factors.items()}
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in chosen]
        group["params"] = [p for p in group["params"] if id(p) not in chosen]
        settings = {k: v for k, v in group.items() if k not in ("params", "lr")}
        for parameter in mine:
            rate = group["lr"] * chosen[id(parameter)]
            optimizer.add_param_group({**settings, "params": [parameter], "lr": rate})
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
