"""Recipes by name: common bit widths, and the formats of the integer engines."""

from __future__ import annotations

from dataclasses import replace

from dq.names import hint
from dq.quant.recipes.recipe import INT8_ACTIVATION, INT8_WEIGHT, Recipe

_SIGNED = replace(INT8_ACTIVATION, signed=True, symmetric=True)


def _bits(weight: int, activation: int) -> Recipe:
    """At few bits ranges must be clipped; at 16 bits they can cover all observed values."""
    observer = {4: "mse", 16: "min_max"}.get(activation, "moving_average")
    return Recipe(
        weight=replace(INT8_WEIGHT, bits=weight),
        activation=replace(INT8_ACTIVATION, bits=activation),
        weight_range="mse" if weight < 8 else "min_max",
        observer=observer,
    )


PRESETS: dict[str, Recipe] = {
    # Weights -127 to 127 per channel, activations 0 to 255 with a zero point.
    "int8": _bits(8, 8),
    # TI's edgeai-torchvision: every scale a power of two, weights symmetric.
    "int8_power2": Recipe(
        weight=replace(INT8_WEIGHT, power_of_two=True),
        activation=replace(INT8_ACTIVATION, power_of_two=True),
    ),
    "int16": _bits(16, 16),
    "w8a16": _bits(8, 16),
    "w4a8": _bits(4, 8),
    "w4a4": _bits(4, 4),
    # TensorRT supports no zero points: activations -128 to 127.
    "tensorrt": Recipe(activation=_SIGNED),
    # ONNX Runtime's QLinearConv: unsigned activations with zero points, signed symmetric weights.
    "onnxruntime": Recipe(),
    # TIDL's default: one power-of-two scale per tensor, for weights too, and no zero points.
    "tidl": Recipe(
        weight=replace(INT8_WEIGHT, channel_axis=None, power_of_two=True),
        activation=replace(_SIGNED, power_of_two=True),
    ),
}


def preset(name: str) -> Recipe:
    """Return the recipe of this name.

    Raises:
        ValueError: There is none; the message names the closest one.
    """
    if name not in PRESETS:
        raise ValueError(f"quant.preset {name!r} does not exist; {hint(name, PRESETS)}")
    return PRESETS[name]
