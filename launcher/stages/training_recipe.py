"""Turn a named training recipe into the settings and numbers of one quantized training."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from dq.detector.config.read import training_config
from dq.detector.data.loader_options import images_per_step
from dq.detector.hooks.weight_average import without_ema_hooks
from dq.detector.recipes.checks import doubts
from dq.detector.recipes.float_training import FloatTraining, float_training
from dq.detector.recipes.folded_norms import has_folded_norms
from dq.detector.recipes.numbers import Numbers, numbers_of
from dq.detector.recipes.rules import rule_of_width
from dq.detector.training.assignment import Resume
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from launcher.plan import Plan
from launcher.stage.conclusion import IMAGES_PER_STEP
from launcher.stage.stage import Parent

log = logging.getLogger(__name__)
# Entry of a checkpoint's `meta`, from which a resumed training takes them.
NUMBERS = "numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The settings of a quantized training, with all numbers.

    Attributes:
        config: Of the training.
        schedule: Of the phases.
        refinements: The optional methods.
        numbers: The numbers that the recipe gave; None without a recipe.
    """

    config: Any
    schedule: Schedule
    refinements: Refinements
    numbers: Numbers | None = None

    @property
    def most_update(self) -> float | None:
        """Limit of a layer's update in one step."""
        return None if self.numbers is None else self.numbers.most_update

    @property
    def meta(self) -> dict[str, Any]:
        """For the ``meta`` of each checkpoint."""
        return {} if self.numbers is None else {NUMBERS: asdict(self.numbers)}


def chosen(
    plan: Plan, detector: nn.Module, dataset: Any, parent: Parent, resume: Resume | None
) -> Chosen:
    """Return the settings of a quantized training, and log the numbers that its recipe gave.

    Settings of the user have priority over the recipe's numbers. A resumed training takes the
    numbers of its checkpoint, so it may continue on another number of ranks.

    Args:
        plan: All settings of the command.
        detector: With its float weights.
        dataset: The training images.
        parent: The checkpoint that the training started from.
        resume: The checkpoint to resume from.

    Raises:
        ValueError: The config has no rate or no length for the recipe to start from.
    """
    settings = plan.settings
    recipe = settings.training_recipe
    numbers = _numbers(plan, detector, dataset, parent, resume)
    if recipe is None or numbers is None:
        config = training_config(plan.config, settings.training)
        return Chosen(config=config, schedule=settings.schedule, refinements=settings.refinements)
    overrides = {**numbers.overrides(plan.config), **settings.training}
    schedule, refinements = settings.schedule, settings.refinements
    if numbers.folded_norms:
        schedule = replace(schedule, freeze_norm_after=0.0, norm_batches=0)
    if refinements.ema is not None and settings.averages_by_recipe:
        refinements = replace(refinements, ema=replace(refinements.ema, momentum=numbers.average))
    refinements = _with_features_that_exist(plan, detector, refinements)
    config = training_config(plan.config, overrides)
    averages = ""  # An EMA hook of the config is announced where it is replaced.
    if refinements.ema is not None:
        averages = f"; weights averaged with {refinements.ema.momentum:.3g} a step"
    elif "ema" not in recipe.rule.section:
        averages = "; weights are not averaged"
        _leave_out_ema_hooks_(config)
    log.info("%s%s", numbers, averages)
    return Chosen(
        config=config,
        schedule=schedule,
        refinements=refinements,
        numbers=numbers,
    )


def _leave_out_ema_hooks_(config: Any) -> None:
    config.custom_hooks, average = without_ema_hooks(config.get("custom_hooks"))
    if average is not None:
        log.info(
            "%s is left out: averages of 4-bit weights are worse than the weights"
            " (quant.ema=dict() averages nevertheless)",
            average.described,
        )


def _with_features_that_exist(
    plan: Plan, detector: nn.Module, refinements: Refinements
) -> Refinements:
    """Leave the recipe's features out for a detector without a neck; the user's own stay."""
    distill, own = refinements.distill, (plan.config.get("quant") or {}).get("distill") or {}
    if distill is None or "features" in own or getattr(detector, "neck", None) is not None:
        return refinements
    if distill.features:
        log.info("the detector has no neck: only its outputs are distilled")
    return replace(refinements, distill=replace(distill, features=()))


def _numbers(
    plan: Plan, detector: nn.Module, dataset: Any, parent: Parent, resume: Resume | None
) -> Numbers | None:
    recipe = plan.settings.training_recipe
    if recipe is None:
        return None
    if resume is not None:
        kept = resume.content.get("meta", {}).get(NUMBERS)
        if isinstance(kept, Mapping):
            return Numbers(**kept)
    config = training_config(plan.config, plan.settings.training)
    return numbers_of(
        recipe.name,
        recipe.rule,
        _float_training(plan, config, dataset, parent),
        folded_norms=has_folded_norms(detector),
        rate=recipe.rate,
        passes=recipe.passes,
    )


def say_doubts(plan: Plan, config: Any, dataset: Any, parent: Parent) -> None:
    """Log each reason to doubt a quantized training, with a recipe or without.

    Args:
        plan: All settings of the command.
        config: Of the training, with all overrides.
        dataset: The training images.
        parent: The checkpoint that the training started from.
    """
    settings = plan.settings
    recipe = settings.recipe
    if settings.training_recipe is not None:
        rule = settings.training_recipe.rule
    else:
        rule = rule_of_width(recipe.weight.bits, recipe.activation.bits)
    steps = _steps_per_epoch(config, dataset)
    factor = 1.0
    # A config without a rate says nothing about the float training: there is nothing to compare.
    with contextlib.suppress(ValueError):
        factor = _float_training(plan, config, dataset, parent).batch_factor
    for doubt in doubts(config, plan.config, rule, steps, plan.bits, batch_factor=factor):
        log.warning("%s", doubt)


def _float_training(plan: Plan, config: Any, dataset: Any, parent: Parent) -> FloatTraining:
    return float_training(
        plan.config,
        steps_per_epoch=_steps_per_epoch(config, dataset),
        images_per_step=images_per_step(config),
        former_images_per_step=parent.content.get("meta", {}).get(IMAGES_PER_STEP),
        num_images=len(dataset),
    )


def _steps_per_epoch(config: Any, dataset: Any) -> int:
    return -(-len(dataset) // images_per_step(config))
