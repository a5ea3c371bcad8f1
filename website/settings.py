"""The reference of the settings, from the tables by which the launcher refuses unknown keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any

from dq.detector.config.mmdet_keys import OWN
from dq.detector.recipes.rules import RULES
from dq.quant.numerics.spec import QuantSpec
from dq.quant.ptq.settings import STEPS
from dq.quant.recipes.presets import PRESETS
from dq.quant.recipes.recipe import OBSERVERS
from dq.quant.targets.registry import TARGETS
from launcher.config import quant_settings
from launcher.sections import CHOICES, DEFAULT_PRESET, SECTIONS, Setting
from website.docstrings import meaning, module_summary, summary
from website.tables import code, source_link, table

PLACE = "reference/settings.md"
# One section of the config after the other, each key with its dataclass as the source.
HEAD = ("key", "value", "default", "meaning", "source")

# Annotations in words. One that is not here ends the build, so that no type is left out.
TYPES = {
    "int": "whole number",
    "float": "number",
    "bool": "True or False",
    "str": "text",
    "tuple[str, ...]": "list of texts",
    "tuple[Rule, ...]": "list of dicts",
    "When": "number, `dict(epoch=N)` or `dict(iteration=N)`",
    "Mapping[str, Any]": "dict",
    **dict.fromkeys(
        ("QuantSpec", "Schedule", "Mixed", "Oscillation", "Ema", "Distill", "Recipe"), "dict"
    ),
}
BEGIN = """\
# Settings

What a config may contain besides [mmdet's own keys](../mmdet_keys.md). This page is written from
the code that reads the settings: a key that is not here is refused, and the error names the nearest
one.

"""
TEXTS = {
    "quant": "How the detector is quantized, calibrated and trained. Everything is optional.",
    "quant.weight": "The integer format of every weight. The defaults are those of `int8`.",
    "quant.activation": "The integer format of every activation. The defaults are those of `int8`.",
    "quant.rules": "A list of dicts, each with other settings for the modules that it names by at"
    " least one of `module`, `type` and `position`.",
    "quant.rules.weight": "The keys of `quant.weight`; what is left out stays as there.",
    "quant.rules.activation": "The keys of `quant.activation`; what is left out stays as there.",
    "quant.mixed": "Automatic mixed precision, by calibration; [how it is used](../ptq.md).",
    "quant.schedule": "The phases of calibration and training; [how they are used](../qat.md).",
    "quant.oscillation": "Weights that jump between two integers; [how it is used](../qat.md).",
    "quant.ema": "The average of the weights; [how it is used](../qat.md).",
    "quant.distill": "The float detector as teacher; [how it is used](../qat.md).",
    "guards": "What is done about problems during a training; [which there are](../faults.md).",
    "tracking": "What is recorded, and where it is sent; [how it is used](../tracking.md).",
    "compile": "`True` for the defaults, or a dict; [what it gains](../qat.md).",
}


def pages() -> dict[str, str]:
    """Return the page of all settings by its place in the site."""
    parts = [BEGIN, "## Keys of a config\n\n", _own_keys()]
    for section in SECTIONS:
        parts += [f"\n## `{section}`\n\n", f"{TEXTS[section]}\n\n", *_section(section)]
        if section == "quant":
            parts += _names()
    return {PLACE: "".join(parts)}


def _own_keys() -> str:
    rows = []
    for key in OWN:
        name = code(key.name)
        rows.append((f"[{name}](#{key.name})" if key.name in SECTIONS else name, key.note))
    return table(("key", "meaning"), rows)


def _section(section: str) -> Iterator[str]:
    settings = SECTIONS[section]
    if section.startswith("quant.rules."):
        yield f"Keys: {', '.join(map(code, settings))}.\n"
        return
    defaults = _defaults(section)
    rows = []
    for key, setting in settings.items():
        name = f"{section}.{key}"
        link = f"[{code(key)}](#{name.replace('.', '')})" if name in SECTIONS else code(key)
        what = setting.note or meaning(setting.kind, setting.field)
        source = source_link(setting.kind, depth=1)
        rows.append((link, value_of(name, setting), defaults[key], what, source))
    yield table(HEAD, rows)


def value_of(name: str, setting: Setting) -> str:
    """Return what a key's value may be, in words.

    Args:
        name: The key with its section.
        setting: Of the key.

    Raises:
        KeyError: The field's annotation is not in `TYPES`.
    """
    found = _field(setting)
    annotation = str(found.type)
    known = found.metadata.get("known") or CHOICES.get(name)
    if known:
        several = "list of " if annotation.startswith("tuple") else "one of "
        words = several + ", ".join(map(code, known))
    else:
        words = TYPES[annotation.removesuffix(" | None")]
    words += f" from {found.metadata['least']}" if "least" in found.metadata else ""
    words += f" above {found.metadata['above']:g}" if "above" in found.metadata else ""
    return words + (", or None" if annotation.endswith(" | None") else "")


def _field(setting: Setting) -> Field[Any]:
    (found,) = (f for f in fields(setting.kind) if f.name == setting.field)
    return found


def _defaults(section: str) -> dict[str, str]:
    """Return the default of each key of a section, as a config without the section has it."""
    settings = quant_settings(None)
    given: dict[type[Any], Any] = {
        type(part): part
        for part in (settings, settings.recipe, settings.repair, settings.refinements)
    }
    if section in ("quant.weight", "quant.activation"):
        given[QuantSpec] = getattr(settings.recipe, section.partition(".")[2])
    return {
        key: code(DEFAULT_PRESET) if key == "preset" else _default(setting, given, section)
        for key, setting in SECTIONS[section].items()
    }


def _default(setting: Setting, given: Mapping[type[Any], Any], section: str) -> str:
    if setting.kind in given:
        value = getattr(given[setting.kind], setting.field)
    else:
        found = _field(setting)
        value = found.default if found.default_factory is MISSING else found.default_factory()
    if value is MISSING:  # Such as the name of a training recipe: there is none.
        return code(None)
    if f"{section}.{setting.field}" in SECTIONS and value not in (None, ()):
        return "see below"
    return code(list(value) if isinstance(value, tuple) else value)


def _names() -> Iterator[str]:
    """Yield a table of each kind of name that ``quant`` accepts."""
    yield "\n### Presets\n\n"
    yield table(
        ("`preset`", "weights", "activations", "`observer`", "`weight_range`", "`target`"),
        (
            (code(n), _format(r.weight), _format(r.activation), code(r.observer),
             code(r.weight_range), code(r.target))
            for n, r in PRESETS.items()
        ),
    )  # fmt: skip
    yield "\n### Targets\n\n"
    rows = ((code(n), t.engine, t.source) for n, t in TARGETS.items())
    yield table(("`target`", "engine", "the rules are taken from"), rows)
    yield "\n### Observers\n\n"
    yield table(("`observer`", "range"), ((code(n), summary(k)) for n, k in OBSERVERS.items()))
    yield "\n### Repairs\n\nThey run in this order, whatever the order in the config.\n\n"
    rows_of_repairs = ((code(n), module_summary(f"dq.quant.ptq.{m}")) for n, m in STEPS.items())
    yield table(("`repairs`", "what it does"), rows_of_repairs)
    yield "\n### Recipes of training\n\n"
    yield table(
        ("`recipe`", "`rate`", "`passes`", "steps at least", "its own settings"),
        (
            (code(n), f"{r.rate:g}", f"{r.passes:g}", str(r.least_steps),
             ", ".join(code(f"{k}={v!r}") for k, v in r.section.items()))
            for n, r in RULES.items()
        ),
    )  # fmt: skip


def _format(spec: QuantSpec) -> str:
    words = [f"{spec.bits} bits", "signed" if spec.signed else "unsigned"]
    words += ["symmetric"] if spec.symmetric else ["with a zero point"]
    words += ["scales are powers of two"] if spec.power_of_two else []
    return ", ".join(words)
