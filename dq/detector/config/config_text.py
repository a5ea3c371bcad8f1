"""Write a config as text for checkpoints and exported files, and read it back as data."""

from __future__ import annotations

import ast
import pprint
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.error_text import error_text
from dq.tracking.record.secrets import hide

# Floats whose text in Python is not a literal.
_FLOATS = {"inf": float("inf"), "nan": float("nan")}
_PICKLES = (".pkl", ".pickle")
# Packages that every process imports anyway.
_HARMLESS = ("dq", "mmcv", "mmdet")


def config_text(config: Config) -> str:
    """Return the config as Python text that reads back as the same config, for any strings in it.

    mmcv's own function does not escape strings: a path with a quote or a backslash becomes another
    path, or a syntax error. Keys and passwords are left out, because the text goes into checkpoints
    and exported files.
    """
    values = hide(config._cfg_dict.to_dict())
    return "".join(
        f"{name} = {pprint.pformat(value, width=100, sort_dicts=False)}\n"
        for name, value in values.items()
    )


def read_config_text(text: str, source: Path) -> Config:
    """Return the config that `config_text` wrote, without running any code of the text.

    A file from another person may contain anything. Only plain values are accepted: numbers,
    strings, lists, tuples, dicts, sets, ranges, booleans and None.

    Args:
        text: Assignments of plain values to names.
        source: The file that holds it, for messages.

    Raises:
        ValueError: The text contains anything else.
    """
    values: dict[str, Any] = {}
    try:
        for statement in ast.parse(text).body:
            name, value = _assigned(statement)
            values[name] = ast.literal_eval(_Plain().visit(value))
        if "_base_" in values:
            raise ValueError("_base_ names another file")
        return Config(values)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, KeyError) as error:
        raise ValueError(
            f"the config in {source} is not made of plain values"
            f" ({error_text(error)}); give the config file too"
        ) from error


def refuse_code(config: Config, source: Path) -> None:
    """Raise ValueError if a config from inside another file would run code.

    Args:
        config: Result of `read_config_text`.
        source: The file that holds it, for messages.
    """
    fix = "give the config file too, or allow it with --trust-checkpoint"
    section = config.get("custom_imports")
    imports = section.get("imports") if isinstance(section, Mapping) else section
    others = [name for name in _listed(imports) if name.partition(".")[0] not in _HARMLESS]
    if others:
        named = ", ".join(others)
        raise ValueError(f"the config in {source} imports {named}, which runs its code; {fix}")
    for key, value in _strings(config._cfg_dict.to_dict().get("data"), "data"):
        if value.partition("?")[0].lower().endswith(_PICKLES):
            raise ValueError(
                f"the config in {source} reads {key}={value!r}, a pickle, which may run any code;"
                f" {fix}"
            )


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, statement.value
    raise ValueError(f"line {statement.lineno} does more than give a value to a name")


class _Plain(ast.NodeTransformer):
    """Replace inf, nan and ranges by constants, which `ast.literal_eval` cannot parse itself."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return ast.Constant(_FLOATS[node.id]) if node.id in _FLOATS else node

    def visit_Call(self, node: ast.Call) -> ast.expr:
        if isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
            limits = [ast.literal_eval(argument) for argument in node.args]
            value: Any = range(*limits)
            return ast.Constant(value)
        return node


def _listed(imports: object) -> list[str]:
    given = imports if isinstance(imports, list | tuple) else [] if imports is None else [imports]
    return [str(name) for name in given]


def _strings(value: object, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _strings(inner, f"{key}.{name}")
    elif isinstance(value, list | tuple | set):
        for number, inner in enumerate(value):
            yield from _strings(inner, f"{key}[{number}]")
