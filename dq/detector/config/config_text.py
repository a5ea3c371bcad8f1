"""A config as text that checkpoints and exported files carry: written, and read back as data."""

from __future__ import annotations

import ast
import pprint
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config

from dq.tracking.record.secrets import hide

# How Python writes floats that have no literal.
_FLOATS = {"inf": float("inf"), "nan": float("nan")}
_PICKLES = (".pkl", ".pickle")
# Packages that every process here imports anyway.
_HARMLESS = ("dq", "mmcv", "mmdet")


def config_text(config: Config) -> str:
    """Return the config as Python that reads back as the same, whatever stands in its strings.

    mmcv's own way sets strings between quotes that it does not escape, so a path with a quote or a
    backslash in it is another path, or no Python at all. Keys and passwords are left out: the text
    goes into checkpoints and exported files.
    """
    values = hide(config._cfg_dict.to_dict())
    return "".join(
        f"{name} = {pprint.pformat(value, width=100, sort_dicts=False)}\n"
        for name, value in values.items()
    )


def read_config_text(text: str, source: Path) -> Config:
    """Return the config that `config_text` wrote; nothing in the text is run.

    A file that is handed from one person to another may hold anything. Only plain values are
    taken: numbers, strings, lists, tuples, dicts, sets, ranges, booleans and None.

    Args:
        text: Assignments of plain values to names.
        source: The file that holds it, for messages.

    Raises:
        ValueError: Anything else stands in the text.
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
            f" ({' '.join(str(error).split()) or type(error).__name__}); give the config file too"
        ) from error


def refuse_code(config: Config, source: Path) -> None:
    """Raise ValueError where a config that came in a file would have code run.

    Args:
        config: As `read_config_text` returns it.
        source: The file that holds it, for messages.
    """
    mend = "give the config file too, or allow it with --trust-checkpoint"
    section = config.get("custom_imports")
    imports = section.get("imports") if isinstance(section, Mapping) else section
    others = [name for name in _listed(imports) if name.partition(".")[0] not in _HARMLESS]
    if others:
        named = ", ".join(others)
        raise ValueError(f"the config in {source} imports {named}, which runs its code; {mend}")
    for key, value in _strings(config._cfg_dict.to_dict().get("data"), "data"):
        if value.partition("?")[0].lower().endswith(_PICKLES):
            raise ValueError(
                f"the config in {source} reads {key}={value!r}, a pickle, which may run any code;"
                f" {mend}"
            )


def _assigned(statement: ast.stmt) -> tuple[str, ast.expr]:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name):
            return target.id, statement.value
    raise ValueError(f"line {statement.lineno} does more than give a value to a name")


class _Plain(ast.NodeTransformer):
    """Put values where `ast.literal_eval` knows no literal for them."""

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
