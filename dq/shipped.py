"""The configs that ship with the launcher: by name, from a checkout and from an installed wheel."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from dq.names import did_you_mean

# Folders without whole configs: parts of configs, and detectors without data (`launcher init`).
PARTS, DETECTORS = "_base_", "detectors"


def configs_folder() -> Path:
    """Return the folder of the configs: inside the package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    inside = here / "configs"
    return inside if inside.is_dir() else here.parent / "configs"


def shipped() -> dict[str, Path]:
    """Return the configs by name: their path below the folder, without the suffix."""
    root = configs_folder()
    paths = sorted(root.rglob("*.py"))
    names = {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
    return {n: p for n, p in names.items() if n.partition("/")[0] not in (PARTS, DETECTORS)}


def detectors() -> dict[str, Path]:
    """Return the detectors that `launcher init` knows, by name."""
    return {path.stem: path for path in sorted((configs_folder() / DETECTORS).glob("*.py"))}


def checked_detector(name: str) -> Path:
    """Return the config of a shipped detector.

    Raises:
        ValueError: There is none of this name.
    """
    known = detectors()
    if name not in known:
        raise ValueError(f"--detector {name} is not known{did_you_mean(name, known)}")
    return known[name]


def first_line(path: Path) -> str:
    """Return the first sentence of a config's comment; empty if it has none."""
    lines = path.read_text(encoding="utf-8").splitlines()
    comment = " ".join(line[1:].strip() for line in takewhile(lambda x: x.startswith("#"), lines))
    return comment.partition(". ")[0].rstrip(".")


def path_of(name: str) -> str | None:
    """Return the path of the only shipped config of this name; None if there is none.

    Args:
        name: With or without its folder, ``configs/`` and ``.py``.

    Raises:
        ValueError: There are several.
    """
    bare = name.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    known = shipped()
    if bare in known:
        return str(known[bare])
    same = [full for full in known if full.rpartition("/")[2] == bare]
    if len(same) > 1:
        raise ValueError(f"several configs are called {bare}: {', '.join(same)}; give one of these")
    return str(known[same[0]]) if same else None


def located(given: str) -> str:
    """Return the path of a config: the user's own file, else the shipped one of this name.

    Args:
        given: A path, or a shipped config's name (``digits/ssd_resnet_fpn_160``), with or without
            ``configs/`` and ``.py``; the part after the slash is enough if no other has it.

    Returns:
        A path; one that does not exist is returned unchanged.

    Raises:
        ValueError: It is neither a path nor the name of one config.
    """
    if Path(given).exists():
        return given
    if (path := path_of(given)) is not None:
        return path
    if Path(given).suffix:  # A file: the error of reading it suggests names.
        return given
    known = shipped()
    stems = {full.rpartition("/")[2] for full in known}
    raise ValueError(
        f"config {given} is neither a file nor a shipped config"
        f"{did_you_mean(given, [*known, *stems], '`launcher configs` lists them')}"
    )
