"""Copy a config file and the files it inherits into one folder."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from dq.whole_file import write_whole


def copy_config(path: Path, folder: Path) -> Path:
    """Copy a config and its bases into ``folder`` and return the copy of the config.

    The copies refer to each other; ``{{ fileDirname }}`` and similar refer to the originals. A
    computed ``_base_`` stays as it is: it finds files of installed packages, which nobody edits.

    Args:
        path: An mmdet 2.x Python config.
        folder: An empty or missing folder.

    Raises:
        ValueError: A file is missing or is not valid Python.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copies: dict[Path, str] = {}
    _copy(path.absolute(), folder, copies, None)
    return folder / path.name


def check_config(path: Path) -> None:
    """Raise ValueError if a config or base is missing, wrong, or its own base; needs no mmcv."""
    _check(path.absolute(), set(), ())


def _check(path: Path, seen: set[Path], above: tuple[Path, ...]) -> None:
    if path in above:
        raise ValueError(f"config {path} is its own base; leave it out of one of the _base_ lists")
    if path not in seen:
        seen.add(path)
        for name in _bases(_base_statement(_parse(path)), path) or []:
            _check(_resolve(name, path), seen, (*above, path))


def literal_setting(path: Path, name: str) -> str | None:
    """Return a string that a config or one of its bases sets at its top level; needs no mmcv.

    Args:
        path: An mmdet 2.x Python config that `check_config` has accepted.
        name: Name of the setting.

    Returns:
        The string; None if there is none, or if it is computed.
    """
    module = _parse(path)
    found: str | None = None
    for node in module.body:
        names = [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
        if isinstance(node, ast.Assign) and name in names:
            is_string = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
            found = str(node.value.value) if is_string else None  # type: ignore[attr-defined]
    if found is not None:
        return found
    for base in _bases(_base_statement(module), path) or []:
        found = literal_setting(_resolve(base, path), name) or found
    return found


def _copy(path: Path, folder: Path, copies: dict[Path, str], asked_by: Path | None) -> str:
    path = Path(path).resolve() if asked_by else path
    if path in copies:
        return copies[path]
    text = _read(path)
    name = path.name if not copies else f"base_{len(copies)}_{path.name}"
    copies[path] = name
    statement = _base_statement(_parse(path))
    bases = _bases(statement, path)
    if statement is not None and bases is not None:
        names = [_copy(_resolve(base, path), folder, copies, path) for base in bases]
        lines = text.splitlines(keepends=True)
        lines[statement.lineno - 1 : statement.end_lineno] = [f"_base_ = {names!r}\n"]
        text = "".join(lines)
    write_whole(folder / name, _predefined(text, path))
    return name


def _predefined(text: str, path: Path) -> str:
    """Fill in mmcv's variables for the file's name and folder, which differ for the copy."""
    values = {
        "fileDirname": str(path.parent),
        "fileBasename": path.name,
        "fileBasenameNoExtension": path.stem,
        "fileExtname": path.suffix,
    }
    for key, value in values.items():
        text = re.sub(r"\{\{\s*" + key + r"\s*\}\}", lambda _, v=value: v, text)  # type: ignore[misc]
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ValueError(f"config {path} cannot be read: {reason}") from error


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(_read(path), str(path))
    except (SyntaxError, ValueError) as error:
        if isinstance(error, SyntaxError):
            raise ValueError(
                f"config {path} cannot be read: line {error.lineno}: {error.msg}"
            ) from error
        raise


def _base_statement(module: ast.Module) -> ast.Assign | ast.AnnAssign | None:
    """Return the last statement that sets ``_base_``, which is the one that counts."""
    found = None
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "_base_" for target in targets):
                found = node
    return found


def _bases(statement: ast.Assign | ast.AnnAssign | None, path: Path) -> list[str] | None:
    """Return the bases' names; None if there are none or they are computed.

    Raises:
        ValueError: One of them is not a path; mmcv takes a text, or a list of texts.
    """
    if statement is None or statement.value is None:
        return None
    try:
        value = ast.literal_eval(statement.value)
    except (ValueError, TypeError):  # TypeError: {[]}
        return None
    given = value if isinstance(value, list) else [value]
    for base in given:
        if not isinstance(base, str) or not base or "\0" in base:
            raise ValueError(
                f"config {path}: _base_ has {base!r}, which is no path; give the path of a config"
                " as text, or a list of such paths"
            )
    return given


def _resolve(name: str, of: Path) -> Path:
    return (of.parent / name).resolve()
