"""Read a config's ``quantize``, ``quant``, ``guards`` and ``tracking`` into frozen dataclasses.

Unknown keys and values of a wrong type are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from dq.detector.recipes.rules import RULES, merged, rule_named
from dq.detector.step.guards import Guards
from dq.names import hint, is_one_of
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.repairs import chosen_steps
from dq.quant.ptq.settings import Mixed, Repair
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import POSITIONS, Recipe, Rule
from dq.quant.targets.registry import TARGETS
from dq.quant.training.distillation import Distill
from dq.quant.training.oscillation import Oscillation
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import Ema
from dq.tracking.record.settings import Tracking
from launcher.sections import (
    DEFAULT_PRESET,
    DEFAULT_REPAIRS,
    FEW_BITS,
    REPAIR_KEYS,
    SHARES,
    QuantSettings,
    TrainingRecipe,
    check_section,
)

MODES = {False: "train", None: "train", True: "qat", "training": "qat", "calibration": "calibrate"}


def command_for(quantize: object) -> str:
    """Return the command that a config's ``quantize`` flag asks for.

    Raises:
        ValueError: The flag is not False, True, 'training' or 'calibration'.
    """
    if not isinstance(quantize, bool | str | None) or quantize not in MODES:
        raise ValueError(
            f"quantize is {quantize!r}; use False, True (or 'training') or 'calibration'"
        )
    return MODES[quantize]


def quant_settings(section: Mapping[str, Any] | None) -> QuantSettings:
    """Read the config's ``quant`` section.

    Raises:
        ValueError: A key is unknown (the nearest valid one is named), or a value is of a wrong type
            or out of bounds.
    """
    section = _settings(section, "quant", "dict(preset='int8')")
    training_recipe = _training_recipe(section)
    ema = section.get("ema")
    has_momentum = isinstance(ema, Mapping) and "momentum" in ema
    averages = training_recipe is not None and not has_momentum
    if training_recipe is not None:
        section = merged(training_recipe.rule, section)
    extras = [f.name for f in fields(Refinements)]
    refinements = _refinements({k: section.pop(k) for k in extras if k in section})
    schedule = section.pop("schedule", None) or {}
    check_section(schedule, "quant.schedule")
    training = section.pop("training", None) or {}
    chooses = "repairs" in section
    repair = _repair(section)
    base = preset(section.pop("preset", None) or DEFAULT_PRESET)
    if "target" in section:
        base = base.for_target(known_target(section.pop("target"), "quant.target"))
    weight = _spec(section.pop("weight", None), base.weight, "quant.weight")
    activation = _spec(section.pop("activation", None), base.activation, "quant.activation")
    if not chooses and activation.bits <= FEW_BITS:
        repair = replace(repair, steps=DEFAULT_REPAIRS)
    rules = section.pop("rules", None) or ()
    raised = tuple(section.pop("raised", None) or ())
    recipe = replace(
        base,
        weight=weight,
        activation=activation,
        rules=tuple(_rule(rule, number, weight, activation) for number, rule in enumerate(rules)),
        free_clips=any(step.frees_clips for step in chosen_steps(repair)),
        raised=raised,
        **section,
    )
    return QuantSettings(
        recipe=recipe,
        schedule=Schedule(**schedule),
        repair=repair,
        refinements=refinements,
        training=dict(training),
        training_recipe=training_recipe,
        averages_by_recipe=averages,
    )


def _training_recipe(section: dict[str, Any]) -> TrainingRecipe | None:
    """Remove the training recipe and its shares from ``section`` and return them."""
    name = section.pop("recipe", None)
    shares = {key: section.pop(key) for key in SHARES if section.get(key) is not None}
    for key in SHARES:
        section.pop(key, None)
    if name is None:
        if shares:
            raise ValueError(
                f"quant.{next(iter(shares))} is a setting of a training recipe, and none is named;"
                f" add quant.recipe = {next(iter(RULES))!r}, or leave it out"
            )
        return None
    rule_named(name)
    return TrainingRecipe(name=name, **shares)


def section_of_recipe(
    section: Mapping[str, Any] | None, recipe: Recipe, repair: Repair
) -> dict[str, Any]:
    """Return a ``quant`` section that calibrates as this recipe and these repairs say.

    Args:
        section: The config's; what the recipe and the repairs do not change stays.
        recipe: With the section's formats, rules and target.
        repair: Without mixed precision: its choice is in the recipe.
    """
    found = dict(section or {})
    found.pop("mixed", None)
    found |= {"observer": recipe.observer, "weight_range": recipe.weight_range}
    found["repairs"] = list(repair.steps)
    found["raised"] = list(recipe.raised)
    if not recipe.zero_points:
        found["zero_points"] = False
    return found


def guards(section: Mapping[str, Any] | None) -> Guards:
    """Read the config's ``guards`` section.

    Raises:
        ValueError: A key is unknown or a value is out of bounds.
    """
    return Guards(**_settings(section, "guards", "dict(nonfinite='skip')"))


def tracking(section: Mapping[str, Any] | None) -> Tracking:
    """Read the config's ``tracking`` section.

    Raises:
        ValueError: A key is unknown or a value is out of bounds.
    """
    given = _settings(section, "tracking", "dict(project='x')")
    tags = given.get("tags", ())
    tags = (tags,) if isinstance(tags, str) else tags
    return Tracking(**{**given, "tags": tuple(tags)})


def _settings(section: object, name: str, example: str) -> dict[str, Any]:
    """Return a copy of a section with all keys and types checked; empty for None."""
    if section is not None and not isinstance(section, Mapping):
        raise ValueError(f"{name} must be a dict such as {example}, not {section!r}")
    given = dict(section or {})
    check_section(given, name)
    return given


def _repair(section: dict[str, Any]) -> Repair:
    """Remove the settings of the repairs from ``section`` and return them."""
    steps = section.pop("repairs", None) or ()
    steps = [steps] if isinstance(steps, str) else steps
    mixed = section.pop("mixed", None)
    if mixed is not None:
        check_section(mixed, "quant.mixed")
        mixed = Mixed(**mixed)
    numbers = {name: section.pop(key) for key, name in REPAIR_KEYS.items() if key in section}
    return Repair(steps=tuple(steps), mixed=mixed, **numbers)


def _refinements(given: Mapping[str, Any]) -> Refinements:
    values = dict(given)
    for key, kind in (("oscillation", Oscillation), ("ema", Ema), ("distill", Distill)):
        if values.get(key) is not None:
            check_section(values[key], f"quant.{key}")
            values[key] = kind(**values[key])
    return Refinements(**values)


def known_target(name: Any, where: str) -> str:
    """Return the name of a target that a user may choose.

    Args:
        name: As given.
        where: The setting or option, for the message.

    Raises:
        ValueError: There is no such target.
    """
    if not is_one_of(name, TARGETS):
        raise ValueError(f"{where} {name!r} does not exist; {hint(str(name), TARGETS)}")
    return name


def _spec(given: Any, default: QuantSpec, where: str) -> QuantSpec:
    if given is None:
        return default
    check_section(given, "quant.weight", where)
    return replace(default, **given)


def _rule(given: Any, number: int, weight: QuantSpec, activation: QuantSpec) -> Rule:
    where = f"quant.rules[{number}]"
    conditions = ("module", "type", "position")
    if not isinstance(given, Mapping) or not any(name in given for name in conditions):
        raise ValueError(
            f"{where} needs module='PATTERN', type='CLASS' or position='...'"
            f" ({', '.join(POSITIONS)}), such as dict(module='bbox_head.*', ...)"
        )
    check_section(given, "quant.rules", where)
    values = dict(given)
    for key, default in (("weight", weight), ("activation", activation)):
        if values.get(key) is not None:
            values[key] = _spec(values[key], default, f"{where}.{key}")
    try:
        return Rule(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
