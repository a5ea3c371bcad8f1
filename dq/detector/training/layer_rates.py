"""Lower learning rates for layers that one step would move too far, as a trial step shows."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from itertools import islice

import torch
from mmcv import Config
from torch import nn

from dq.counted import counted
from dq.detector.config.training_values.optimizer_values import clip_arguments
from dq.detector.loading.training_loader import TrainingLoader
from dq.detector.step.guards import OFF, Guards
from dq.detector.step.update_ratios import update_ratios
from dq.detector.training.assignment import Resume
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap

log = logging.getLogger("dq.train")
LAYER_RATES = "layer_rates"
# Batches of each rank for the trial.
BATCHES = 2
SHOWN = 3


def layer_rates_(
    config: Config,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: TrainingLoader,
    limit: float | None,
    guards: Guards,
    resume: Resume | None,
) -> dict[str, float]:
    """Lower the rates of layers that the present rates would move too far; return the factors.

    A recipe sets the limit. Without one, nothing is changed, and a line says which layers move by
    more than ``guards.max_update``. Every rank must call it before the first step. A resumed
    training takes the factors of its checkpoint.

    Args:
        config: Of the training.
        model: Result of `dq.detector.training.network.on_all_ranks`.
        optimizer: New; gets a group for each of these layers.
        loader: Of the training images; its first batches are used.
        limit: Of the recipe; None without one.
        guards: Say what to do without a recipe.
        resume: The checkpoint that the training continues from.

    Raises:
        RuntimeError: A layer moves too far, there is no recipe, and ``guards.runaway`` is ``stop``.
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
        _announce(ratios, optimizer, guards)
        return {}
    # A gradient that overflows says nothing about the layer; the guards look at it in training.
    factors = {n: limit / ratio for n, ratio in ratios.items() if limit < ratio < math.inf}
    lower_rates_(optimizer, unwrap(model), factors)
    if factors:
        shown = sorted(factors.items(), key=lambda item: item[1])[:SHOWN]
        texts = [f"{name.removesuffix('.weight')} {factor:.2g} times" for name, factor in shown]
        log.info(
            "a lower learning rate for %d of %s, because a step would move them by more than %g of"
            " their norm: %s",
            len(factors),
            counted(len(ratios), "layer[s]"),
            limit,
            ", ".join(texts),
        )
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


def _announce(
    ratios: Mapping[str, float], optimizer: torch.optim.Optimizer, guards: Guards
) -> None:
    above = {name: ratio for name, ratio in ratios.items() if ratio > guards.max_update}
    if not above:
        return
    name, most = max(above.items(), key=lambda item: item[1])
    rate = max(group["lr"] for group in optimizer.param_groups)
    text = (
        f"one step at a learning rate of {rate:g} moves the weights of"
        f" {name.removesuffix('.weight')} by {most:.3g} times their norm"
        f" (guards.max_update is {guards.max_update:g}), and {len(above)} of"
        f" {counted(len(ratios), 'layer[s]')} would go too far; lower optimizer.lr"
        f" (quant.training={{'optimizer.lr': {rate * guards.max_update / most:.1g}}}), or name a"
        " quant.recipe, which limits the rates of such layers"
    )
    if guards.runaway == "stop":
        raise RuntimeError(text)
    log.warning("%s", text)
