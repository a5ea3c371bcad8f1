"""Recipes by name: common bit widths, and the targets with their formats."""

from __future__ import annotations

from dataclasses import replace

from dq.names import hint, is_one_of
from dq.quant.recipes.recipe import Recipe
from dq.quant.targets.registry import TARGETS
from dq.quant.targets.target import INT8_ACTIVATION, INT8_WEIGHT, Target

_INT8 = TARGETS["int8"]


def _bits(weight: int, activation: int) -> Recipe:
    """Return the recipe of these widths.

    At few bits ranges must be clipped; at 16 bits they can cover all observed values.
    """
    observer = {4: "mse", 16: "min_max"}.get(activation, _INT8.observer)
    return Recipe(
        weight=replace(INT8_WEIGHT, bits=weight),
        activation=replace(INT8_ACTIVATION, bits=activation),
        weight_range="mse" if weight < 8 else "min_max",
        observer=observer,
    )


def preset_for(target: Target) -> Recipe:
    """Return the recipe with a target's formats, observer and rules."""
    recipe = Recipe(weight=target.weight, activation=target.activation, observer=target.observer)
    return recipe.for_target(target.name)


PRESETS: dict[str, Recipe] = {
    # Weights -127 to 127 per channel, activations 0 to 255 with a zero point.
    "int8": _bits(8, 8),
    # TI's edgeai-torchvision: every scale a power of two, weights symmetric.
    "int8_power2": Recipe(
        weight=replace(INT8_WEIGHT, power_of_two=True),
        activation=replace(INT8_ACTIVATION, power_of_two=True),
        observer=_INT8.observer,
    ),
    "int16": _bits(16, 16),
    "w8a16": _bits(8, 16),
    "w4a8": _bits(4, 8),
    "w4a4": _bits(4, 4),
    **{name: preset_for(target) for name, target in TARGETS.items() if name != "int8"},
}


def preset(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        ValueError: There is none; the message names the closest one.
    """
    if not is_one_of(name, PRESETS):
        raise ValueError(f"quant.preset {name!r} does not exist; {hint(name, PRESETS)}")
    return PRESETS[name]
