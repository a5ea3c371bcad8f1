"""The keys of a config's own sections: each key with the dataclass and the field that it sets.

Reading a config refuses all other keys, and the reference of the settings is made from here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from dq.detector.model.compilation import Compilation
from dq.detector.recipes.rules import RULES, rule_named
from dq.detector.recipes.rules import Rule as TrainingRule
from dq.detector.step.guards import Guards
from dq.field_types import check_value, field_type
from dq.names import check_keys
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.settings import STEPS, Mixed, Repair
from dq.quant.quantizers.factory import LEARNED
from dq.quant.recipes.presets import PRESETS
from dq.quant.recipes.recipe import OBSERVERS, POSITIONS, WEIGHT_RANGES, Recipe, Rule
from dq.quant.targets.registry import TARGETS
from dq.quant.training.distillation import Distill
from dq.quant.training.oscillation import Oscillation
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import Ema
from dq.tracking.record.settings import Tracking

DEFAULT_PRESET = "int8"
# Without `quant.repairs`. They cost the engine nothing where no channel is much larger than others.
DEFAULT_REPAIRS = ("channel_scales", "bias")
# With more bits for activations the default repairs are not needed.
FEW_BITS = 8
# Settings of a training recipe, as shares of the float training's values.
SHARES = ("rate", "passes")
# A larger share can only be a mistake.
MOST_SHARE = 1000
REPAIR_KEYS = {
    "repair_images": "images",
    "rounding_steps": "rounding_steps",
    "most_scaled": "most_scaled",
    "reconstruction_steps": "reconstruction_steps",
}
# Fields of `Recipe` that are not for the user: they follow from the repairs.
_NOT_KEYS = ("free_clips", "scaled")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """A recipe of quantization-aware training that the config names.

    Attributes:
        name: Name of the recipe, from `dq.detector.recipes.rules.RULES`; it gives all numbers of
            the training that the config does not give.
        rate: Share of the float training's learning rate; None for the recipe's.
        passes: Share of the float training's passes over the data; None for the recipe's.
    """

    name: str
    rate: float | None = None
    passes: float | None = None

    def __post_init__(self) -> None:
        for key in SHARES:
            given = getattr(self, key)
            is_number = isinstance(given, int | float) and not isinstance(given, bool)
            if given is not None and not (is_number and 0 < given <= MOST_SHARE):
                raise ValueError(
                    f"quant.{key} is {given!r}; it is a share of the float training's, such as 0.1"
                )

    @property
    def rule(self) -> TrainingRule:
        """The recipe itself."""
        return rule_named(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSettings:
    """The settings of the config's ``quant`` section.

    Attributes:
        recipe: The integer format of each module.
        schedule: Calibration and the phases of training.
        repair: Corrections that calibration makes after it has found the ranges.
        refinements: Optional methods of quantization-aware training: keys ``learned_lr``,
            ``oscillation``, ``ema``, ``distill``.
        training: Config overrides for quantization-aware training only, by dotted key:
            ``{'optimizer.lr': 0.001, 'runner.max_epochs': 5}``.
        training_recipe: Gives the numbers of the training that ``training`` does not give; None to
            take them from the config.
        averages_by_recipe: Whether that recipe also gives ``ema.momentum``.
    """

    recipe: Recipe = field(default_factory=Recipe)
    schedule: Schedule = field(default_factory=Schedule)
    repair: Repair = field(default_factory=Repair)
    refinements: Refinements = field(default_factory=Refinements)
    training: Mapping[str, Any] = field(default_factory=dict)
    training_recipe: TrainingRecipe | None = None
    averages_by_recipe: bool = False


class Setting(NamedTuple):
    """A key of a section.

    Attributes:
        kind: The dataclass that it goes to; its docstring says what the key means.
        field: The name there.
        note: Its meaning, if no dataclass documents it.
        given: The type that a config gives, if the field has another one: with None, a key counts
            as not given.
    """

    kind: type[Any]
    field: str
    note: str = ""
    given: Any = None


def _of(kind: type[Any], without: Iterable[str] = ()) -> dict[str, Setting]:
    return {f.name: Setting(kind, f.name) for f in fields(kind) if f.name not in without}


# Written `rules[N]` in messages, where N counts the rules from 0.
SECTIONS: dict[str, dict[str, Setting]] = {
    "quant": {
        "preset": Setting(
            QuantSettings,
            "recipe",
            "Name of the formats, observer and target to begin with; the other keys change them.",
            given=str | None,
        ),
        **_of(Recipe, _NOT_KEYS),
        "weight": Setting(Recipe, "weight", given=QuantSpec | None),
        "activation": Setting(Recipe, "activation", given=QuantSpec | None),
        "rules": Setting(Recipe, "rules", given=tuple[Rule, ...] | None),
        "raised": Setting(Recipe, "raised", given=tuple[str, ...] | None),
        "repairs": Setting(
            Repair,
            "steps",
            "Methods that calibration applies; they always run in one order. Without this key:"
            f" {', '.join(DEFAULT_REPAIRS)} where activations have at most {FEW_BITS} bits.",
            given=tuple[str, ...] | None,
        ),
        "mixed": Setting(Repair, "mixed"),
        **{key: Setting(Repair, name) for key, name in REPAIR_KEYS.items()},
        "recipe": Setting(TrainingRecipe, "name", given=str | None),
        **{key: Setting(TrainingRecipe, key) for key in SHARES},
        "schedule": Setting(QuantSettings, "schedule", given=Schedule | None),
        **_of(Refinements),
        "training": Setting(QuantSettings, "training", given=Mapping[str, Any] | None),
    },
    "quant.weight": _of(QuantSpec),
    "quant.activation": _of(QuantSpec),
    "quant.rules": _of(Rule),
    "quant.rules.weight": _of(QuantSpec),
    "quant.rules.activation": _of(QuantSpec),
    "quant.mixed": _of(Mixed),
    "quant.schedule": _of(Schedule),
    "quant.oscillation": _of(Oscillation),
    "quant.ema": _of(Ema),
    "quant.distill": _of(Distill),
    "guards": _of(Guards),
    "tracking": _of(Tracking),
    "compile": _of(Compilation),
}

# The names that a setting accepts, where it accepts a fixed set. Names that are registered later
# belong to them.
CHOICES: Mapping[str, Collection[str]] = {
    "quant.preset": PRESETS,
    "quant.observer": OBSERVERS,
    "quant.weight_range": WEIGHT_RANGES,
    "quant.learned": LEARNED,
    "quant.target": TARGETS,
    "quant.repairs": STEPS,
    "quant.recipe": RULES,
    "quant.rules.position": POSITIONS,
}


def check_section(given: Mapping[str, object], section: str, where: str | None = None) -> None:
    """Raise ValueError for a key that the section does not have, or a value of a wrong type.

    Whether a value of the right type is within its limits is checked by the key's dataclass.

    Args:
        given: From a config.
        section: Of `SECTIONS`.
        where: The section's name in the message; the default is its own.
    """
    where = where or section
    check_keys(given, SECTIONS[section], where)
    for key, value in given.items():
        annotation, more = type_of(section, key)
        check_value(f"{where}.{key}", value, annotation, more)


def type_of(section: str, key: str) -> tuple[Any, Mapping[str, Any]]:
    """Return what a config may give for a key, and what `check_value` says too if it is wrong."""
    setting = SECTIONS[section][key]
    annotation, more = field_type(setting.kind, setting.field)
    known = CHOICES.get(f"{section}.{key}")
    more = more if known is None else {**more, "known": known}
    return annotation if setting.given is None else setting.given, more
