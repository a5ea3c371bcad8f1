"""Recipes of quantization-aware training: formats, methods, shares of the float training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from dq.names import hint, is_one_of

# Sections of `quant` in which a user's keys replace a recipe's one by one.
MERGED = ("schedule", "ema", "distill", "oscillation")
# Quantized training begins at the best calibration there is without learning anything.
_REPAIRS = ["channel_scales", "bias"]
_ENDS_AT_8 = [{"position": "first", "bits": 8}, {"position": "last", "bits": 8}]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A recipe whose numbers follow from the float training.

    Attributes:
        section: Settings of the ``quant`` section; a user's settings have priority.
        rate: Learning rate, relative to the highest of the float training.
        passes: Length, relative to the float training.
        least_steps: Fewer steps than this are too few to recover from the rounding.
        most_update: Largest update of a layer's weights in one step, relative to their norm.
            Layers with larger updates get lower rates; learned scales have a limit that follows
            from it (`dq.detector.step.large_updates.KINDS`).
    """

    section: Mapping[str, Any]
    rate: float
    passes: float
    least_steps: int
    most_update: float


def _rule(rate: float, passes: float, least_steps: int, update: float, **section: Any) -> Rule:
    return Rule(
        section=MappingProxyType({"repairs": _REPAIRS, **section}),
        rate=rate,
        passes=passes,
        least_steps=least_steps,
        most_update=update,
    )


# Norms first learn the statistics of the rounded network. Then they are fixed: with the statistics
# of each batch the network differs by chance from the one that is evaluated, and from the teacher.
_FIXED_NORMS = 0.2
_EIGHT_BITS: dict[str, Any] = {"schedule": {"freeze_norm_after": _FIXED_NORMS}, "ema": {}}
# With 4 bits the average of the weights is worse than the weights (docs/qat.md): errors of rounding
# that compensate each other in a layer do not do so after averaging.
_FEW_BITS: dict[str, Any] = {
    "learned": "lsq+",
    "schedule": {"freeze_norm_after": _FIXED_NORMS, "freeze_ranges_after": 1.0},
    "distill": {"features": ["neck.*"]},
}
RULES: dict[str, Rule] = {
    "qat-int8": _rule(0.1, 1 / 8, 100, 3e-3, preset="int8", **_EIGHT_BITS),
    "qat-int8-power2": _rule(0.1, 1 / 8, 100, 3e-3, preset="int8_power2", **_EIGHT_BITS),
    "qat-w4a8": _rule(0.2, 1 / 4, 400, 5e-3, preset="w4a8", rules=_ENDS_AT_8, **_FEW_BITS),
    # Outputs without an activation function are signed and far from uniform; sums are too. As in
    # LSQ (arXiv 1902.08153) last layers have 8 bits in their inputs and in their weights. So have
    # depthwise layers: their outputs are sums of so few products that errors do not cancel.
    "qat-w4a4": _rule(
        0.2,
        3 / 8,
        600,
        5e-3,
        preset="w4a4",
        rules=[
            {"type": "Conv2d", "activation": {"bits": 8}},
            {"type": "add", "bits": 8},
            {"position": "last_input", "activation": {"bits": 8}},
            {"position": "depthwise_input", "activation": {"bits": 8}},
            {"position": "depthwise", "bits": 8},
            *_ENDS_AT_8,
        ],
        **_FEW_BITS,
    ),
}


def rule_named(name: Any) -> Rule:
    """Return the recipe of this name.

    Raises:
        ValueError: There is none; the message names the closest one.
    """
    if not is_one_of(name, RULES):
        raise ValueError(f"quant.recipe {name!r} does not exist; {hint(str(name), RULES)}")
    return RULES[name]


def rule_of_width(weight_bits: int, activation_bits: int) -> Rule:
    """Return the recipe whose limits apply to a training without one."""
    if weight_bits > 4:
        return RULES["qat-int8"]
    return RULES["qat-w4a8" if activation_bits > 4 else "qat-w4a4"]


def merged(rule: Rule, section: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's ``quant`` section with a user's settings, which have priority.

    Args:
        rule: The recipe.
        section: The user's section. None in place of a method such as ``ema`` leaves it out.
    """
    found: dict[str, Any] = copy.deepcopy(dict(rule.section))
    for name, value in section.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = {**found[name], **value} if both and name in MERGED else value
    return found
