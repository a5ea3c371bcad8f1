"""A config's ``quantize`` and ``quant`` as frozen dataclasses; unknown keys are refused."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from dq.quant.distill import Distill
from dq.quant.ema import Ema
from dq.quant.oscillation import Oscillation
from dq.quant.recipe import INT8_ACTIVATION, INT8_WEIGHT, Recipe, Rule
from dq.quant.refinements import Refinements
from dq.quant.schedule import Schedule
from dq.quant.spec import QuantSpec

MODES = {False: "train", None: "train", True: "qat", "training": "qat", "calibration": "calibrate"}


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSettings:
    """What the config's ``quant`` section says.

    Attributes:
        recipe: Which module gets which integers.
        schedule: Calibration and phases.
        refinements: Extras of a quantized training: keys ``learned_lr``, ``oscillation``, ``ema``,
            ``distill``.
        training: Dotted overrides of the config that hold in quantization-aware training, such
            as ``{'optimizer.lr': 0.001, 'runner.max_epochs': 5}``.
    """

    recipe: Recipe = field(default_factory=Recipe)
    schedule: Schedule = field(default_factory=Schedule)
    refinements: Refinements = field(default_factory=Refinements)
    training: Mapping[str, Any] = field(default_factory=dict)


def command_for(quantize: object) -> str:
    """Return the command that a config's ``quantize`` flag asks for.

    Raises:
        ValueError: The flag has another value than False, True, 'training', 'calibration'.
    """
    if not isinstance(quantize, bool | str | None) or quantize not in MODES:
        raise ValueError(
            f"quantize is {quantize!r}; use False, True (or 'training') or 'calibration'"
        )
    return MODES[quantize]


def quant_settings(section: Mapping[str, Any] | None) -> QuantSettings:
    """Read the config's ``quant`` section.

    Raises:
        ValueError: A key is unknown (the nearest valid one is named) or a value out of bounds.
    """
    section = dict(section or {})
    recipe_keys = [f.name for f in fields(Recipe)]
    extras = [f.name for f in fields(Refinements)]
    check_keys(section, [*recipe_keys, *extras, "schedule", "training"], "quant")
    refinements = _refinements({k: section.pop(k) for k in extras if k in section})
    schedule = dict(section.pop("schedule", None) or {})
    check_keys(schedule, [f.name for f in fields(Schedule)], "quant.schedule")
    training = section.pop("training", None) or {}
    if not isinstance(training, Mapping):
        raise ValueError("quant.training must be a dict of dotted config keys and their values")
    rules = section.pop("rules", None) or ()
    recipe = Recipe(
        weight=_spec(section.pop("weight", None), INT8_WEIGHT, "quant.weight"),
        activation=_spec(section.pop("activation", None), INT8_ACTIVATION, "quant.activation"),
        rules=tuple(_rule(rule, number) for number, rule in enumerate(rules)),
        **section,
    )
    return QuantSettings(
        recipe=recipe,
        schedule=Schedule(**schedule),
        refinements=refinements,
        training=dict(training),
    )


def _refinements(given: Mapping[str, Any]) -> Refinements:
    values = dict(given)
    for key, kind in (("oscillation", Oscillation), ("ema", Ema), ("distill", Distill)):
        if values.get(key) is not None:
            if not isinstance(values[key], Mapping):
                raise ValueError(f"quant.{key} must be a dict or None, not {values[key]!r}")
            check_keys(values[key], [f.name for f in fields(kind)], f"quant.{key}")
            values[key] = kind(**values[key])
    return Refinements(**values)


def _spec(given: Any, default: QuantSpec, where: str) -> QuantSpec:
    if given is None:
        return default
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} must be a dict such as dict(bits=8), not {given!r}")
    check_keys(given, [f.name for f in fields(QuantSpec)], where)
    return replace(default, **given)


def _rule(given: Any, number: int) -> Rule:
    where = f"quant.rules[{number}]"
    if not isinstance(given, Mapping) or "module" not in given:
        raise ValueError(f"{where} needs module='PATTERN', such as dict(module='bbox_head.*', ...)")
    check_keys(given, [f.name for f in fields(Rule)], where)
    values = dict(given)
    for key, default in (("weight", INT8_WEIGHT), ("activation", INT8_ACTIVATION)):
        if values.get(key) is not None:
            values[key] = _spec(values[key], default, f"{where}.{key}")
    return Rule(**values)


def check_keys(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Raise ValueError for a key that is not known, naming the nearest that is."""
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise ValueError(f"{where}.{key} is not a setting; {hint}")
