"""Copy a config file and the files it inherits into one folder."""

from __future__ import annotations

from pathlib import Path

from dq.whole_file import write_whole
from slurm.copies.config_source import read_source


def copy_config(path: Path, folder: Path) -> Path:
    """Copy a config and its bases into ``folder`` and return the copy of the config.

    The copies refer to each other; ``{{ fileDirname }}`` and similar refer to the originals. A
    computed ``_base_`` stays as it is: it finds files of installed packages, which nobody edits.

    Args:
        path: An mmdet 2.x config in Python, JSON or YAML.
        folder: An empty or missing folder.

    Raises:
        ValueError: A file is missing or is not valid.
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
        for name in _names(read_source(path).bases, path) or []:
            _check(_resolve(name, path), seen, (*above, path))


def literal_setting(path: Path, name: str) -> str | None:
    """Return a text that a config or one of its bases sets at its top level; needs no mmcv.

    Args:
        path: A config that `check_config` has accepted.
        name: Name of the setting.

    Returns:
        The text; None if there is none, or if it is computed.
    """
    source = read_source(path)
    found = source.texts.get(name)
    if found is not None:
        return found
    for base in _names(source.bases, path) or []:
        found = literal_setting(_resolve(base, path), name) or found
    return found


def _copy(path: Path, folder: Path, copies: dict[Path, str], asked_by: Path | None) -> str:
    path = Path(path).resolve() if asked_by else path
    if path in copies:
        return copies[path]
    source = read_source(path)
    name = path.name if not copies else f"base_{len(copies)}_{path.name}"
    copies[path] = name
    bases = _names(source.bases, path)
    text = source.text
    if bases is not None:
        text = source.with_bases(
            [_copy(_resolve(base, path), folder, copies, path) for base in bases]
        )
    write_whole(folder / name, text)
    return name


def _names(bases: list[object] | None, path: Path) -> list[str] | None:
    """Return the bases' names; None if there are none or they are computed.

    Raises:
        ValueError: One of them is not a path; mmcv takes a text, or a list of texts.
    """
    if bases is None:
        return None
    names: list[str] = []
    for each in bases:
        if not isinstance(each, str) or not each or "\0" in each:
            raise ValueError(
                f"config {path}: _base_ has {each!r}, which is no path; give the path of a config"
                " as text, or a list of such paths"
            )
        names.append(each)
    return names


def _resolve(name: str, of: Path) -> Path:
    return (of.parent / name).resolve()
