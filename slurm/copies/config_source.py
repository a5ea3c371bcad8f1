"""Read a config's text as far as a copy needs it, without mmcv and without running it.

mmcv reads configs in Python, JSON and YAML, and a config may inherit one of another kind. It fills
in ``{{ fileDirname }}`` and similar names before anything else, so this does too.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dq.names import hint

BASE = "_base_"
SUFFIXES = (".py", ".json", ".yaml", ".yml")
# YAML's tag of a text.
_TEXT = "tag:yaml.org,2002:str"
# A value may be the name of a setting of the bases, which is neither JSON nor YAML. mmcv puts a
# quoted text there before it reads the file.
_NAMES_OF_BASES = re.compile(r"\{\{.*?\}\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A config file, read but not run.

    Attributes:
        text: With mmcv's names for the file and its folder filled in.
        bases: What ``_base_`` lists, which may be no paths; None if it is not set, or computed.
        texts: Top-level settings that are texts; None for those of another kind.
    """

    text: str
    bases: list[object] | None
    texts: Mapping[str, str | None]
    _value: slice

    def with_bases(self, names: list[str]) -> str:
        """Return the text with other bases; only for a config that has bases."""
        begin, old = self._value.start, self.text[self._value]
        # A space: in YAML a list that begins in the first column would be read as a key. There a
        # list of lines ends at the next line.
        value = f" {json.dumps(names)}" + ("\n" if old.endswith("\n") else "")
        return self.text[:begin] + value + self.text[begin + len(old) :]


def read_source(path: Path) -> Source:
    """Return a config's text, its bases, and its top-level texts.

    Raises:
        ValueError: The file is missing, is no text, or is not valid Python, JSON or YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise _unreadable(path, reason) from error
    if path.suffix not in SUFFIXES:
        raise ValueError(
            f"config {path} is none of {', '.join(SUFFIXES)}; {hint(path.suffix, SUFFIXES)}"
        )
    text = _with_predefined(text, path)
    return _python(text, path) if path.suffix == ".py" else _plain(text, path)


def _unreadable(path: Path, said: str, line: int | None = None) -> ValueError:
    place = "" if line is None else f"line {line}: "
    return ValueError(f"config {path} cannot be read: {place}{said}")


def _with_predefined(text: str, path: Path) -> str:
    """Fill in mmcv's names for the file and its folder, which differ for a copy."""
    values = {
        "fileDirname": str(path.parent),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for key, value in values.items():
        text = re.sub(r"\{\{\s*" + key + r"\s*\}\}", lambda _, v=value: v, text)  # type: ignore[misc]
    return text


def _python(text: str, path: Path) -> Source:
    try:
        module = ast.parse(text, str(path))
    except SyntaxError as error:
        raise _unreadable(path, error.msg, error.lineno) from error
    except ValueError as error:  # a zero byte
        raise _unreadable(path, str(error)) from error
    texts: dict[str, str | None] = {}
    bases: list[object] | None = None
    value = slice(0)
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        constant = node.value.value if isinstance(node.value, ast.Constant) else None
        for target in targets:
            if isinstance(target, ast.Name):
                # The last assignment counts.
                texts[target.id] = constant if isinstance(constant, str) else None
                if target.id == BASE:
                    bases, value = _literal(node.value), _place(node.value, text)
    return Source(text=text, bases=bases, texts=texts, _value=value)


def _literal(value: ast.expr) -> list[object] | None:
    try:
        return _listed(ast.literal_eval(value))
    except (ValueError, TypeError):  # TypeError: {[]}
        return None


def _listed(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _place(value: ast.expr, text: str) -> slice:
    """Return where an expression is in the text; Python counts lines, and bytes in a line."""
    assert value.end_lineno is not None
    assert value.end_col_offset is not None
    # Not splitlines, which ends lines at characters at which Python does not.
    lines = text.split("\n")

    def offset(line: int, column: int) -> int:
        before = sum(len(each) + 1 for each in lines[: line - 1])
        return before + len(lines[line - 1].encode()[:column].decode())

    return slice(
        offset(value.lineno, value.col_offset), offset(value.end_lineno, value.end_col_offset)
    )


def _plain(text: str, path: Path) -> Source:
    """Read JSON or YAML; JSON is YAML too, but for tabs between its values."""
    import yaml

    # Of the same length, so places in the one are places in the other.
    readable = _NAMES_OF_BASES.sub(lambda m: f'"{"_" * (len(m[0]) - 2)}"', text)
    try:
        if path.suffix == ".json":
            json.loads(readable)
            readable = readable.replace("\t", " ")
        root = yaml.compose(readable, Loader=yaml.SafeLoader)
    except json.JSONDecodeError as error:
        raise _unreadable(path, error.msg, error.lineno) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or "it is not YAML"
        raise _unreadable(path, said, mark and mark.line + 1) from error
    if not isinstance(root, yaml.MappingNode):
        raise ValueError(f"config {path} has no settings; write them as NAME: VALUE")
    texts: dict[str, str | None] = {}
    bases: list[object] | None = None
    value = slice(0)
    for key, node in root.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _unreadable(path, "a key is no text", key.start_mark.line + 1)
        texts[key.value] = node.value if node.tag == _TEXT else None
        if key.value == BASE:
            bases = _listed(_constructed(node))
            value = slice(node.start_mark.index, node.end_mark.index)
    return Source(text=text, bases=bases, texts=texts, _value=value)


def _constructed(node: object) -> object:
    """Return a text or a list of texts; other values as something that is neither."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_constructed(each) for each in node.value]
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.tag == _TEXT else yaml.safe_load(node.value)
    return {}
