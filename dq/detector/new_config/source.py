"""Put settings into words: the source of a config that people read and change."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 100
_INDENT = "    "
# What the file says, in order; variables that only the template needs are left out.
_PARTS: Mapping[str, tuple[str, ...]] = {
    "The data. Change `data_root` if the images move.": (
        *("classes", "image_size", "data_root", "annotations"),
    ),
    "The detector.": ("model",),
    "From a file to the network's input.": ("train_pipeline", "test_pipeline"),
    "Batches and files. One epoch passes `times` over the images.": ("data", "evaluation"),
    "The float training.": ("optimizer", "optimizer_config", "lr_config", "runner"),
    "Quantization: docs/ptq.md and docs/qat.md.": ("quantize", "quant"),
    "Checkpoints and logs.": ("checkpoint_config", "log_config", "log_level", "load_from",
                              "resume_from", "workflow"),
}  # fmt: skip
# Variables that other settings refer to, if they are equal.
_SHARED = ("train_pipeline", "test_pipeline")


class _Name(str):
    """A name or an expression, written without quotes."""

    __slots__ = ()


def source(settings: Mapping[str, Any], head: Sequence[str]) -> str:
    """Return the text of a config.

    Args:
        settings: Of plain values; ``${name}`` in a string becomes the variable.
        head: Lines of the comment at the top.
    """
    # A command line may contain line breaks.
    lines = [f"# {line}".rstrip() for each in head for line in each.splitlines() or [""]]
    for title, names in _PARTS.items():
        lines += ["", f"# {title}"]
        for name in names:
            if name in settings:
                own = settings[name] if name in _SHARED else _referring(settings[name], settings)
                value = _with_names(own)
                lines.append(f"{name} = {_text(value, '', len(name) + 3)}")
    return "\n".join(lines) + "\n"


def _referring(value: Any, settings: Mapping[str, Any]) -> Any:
    """Return nested settings in which equal values are references to the shared variables."""
    for name in _SHARED:
        if value == settings.get(name):
            return _Name(name)
    if isinstance(value, Mapping):
        return {key: _referring(inner, settings) for key, inner in value.items()}
    return value


def _with_names(value: Any) -> Any:
    """Return nested settings in which ``${name}`` at the start of a string is an expression."""
    if isinstance(value, str) and not isinstance(value, _Name):
        found = re.fullmatch(r"\$\{(\w+)\}(.*)", value)
        if found is None:
            return value
        return _Name(f'{found[1]} + "{found[2]}"' if found[2] else found[1])
    if isinstance(value, Mapping):
        return {key: _with_names(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_with_names, value))
    return value


def _text(value: Any, indent: str, used: int) -> str:
    """Return the source of a value: on one line if it fits, else one entry per line.

    Args:
        value: Plain, or a `_Name`.
        indent: Of the line that it begins on.
        used: Characters before it on that line, and after it.
    """
    short = _short(value)
    parts = _entries(value)
    if len(indent) + used + len(short) < WIDTH or not parts:
        return short
    opening, entries, closing = parts
    inner = indent + _INDENT
    lines = [f"{inner}{head}{_text(own, inner, len(head) + 1)}," for head, own in entries]
    return "\n".join([opening, *lines, f"{indent}{closing}"])


def _short(value: Any) -> str:
    """Return the source of a value on one line."""
    if isinstance(value, _Name):
        return str(value)
    if isinstance(value, str):
        return _quoted(value)
    parts = _entries(value)
    if parts is None:
        return repr(value)
    opening, entries, closing = parts
    text = ", ".join(f"{head}{_short(own)}" for head, own in entries)
    comma = "," if isinstance(value, tuple) and len(entries) == 1 else ""
    return f"{opening}{text}{comma}{closing}"


def _entries(value: Any) -> tuple[str, list[tuple[str, Any]], str] | None:
    """Return how a collection begins, its entries with what is before each, and how it ends."""
    if isinstance(value, Mapping):
        if all(isinstance(key, str) and key.isidentifier() for key in value):
            pairs = sorted(value.items(), key=lambda pair: pair[0] != "type")
            return "dict(", [(f"{key}=", inner) for key, inner in pairs], ")"
        return "{", [(f"{_quoted(str(key))}: ", inner) for key, inner in value.items()], "}"
    if isinstance(value, list):
        return "[", [("", inner) for inner in value], "]"
    if isinstance(value, tuple):
        return "(", [("", inner) for inner in value], ")"
    return None


def _quoted(text: str) -> str:
    """Return a string in double quotes, as `ruff format` prefers them."""
    # mmcv replaces {{ name }} in a config before it is Python.
    plain = repr(text).replace("{{", "\\x7b{")
    if plain.startswith("'") and '"' not in plain:
        return f'"{plain[1:-1]}"'
    return plain
