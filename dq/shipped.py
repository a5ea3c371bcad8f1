"""The configs that ship with the launcher: by name, from a checkout and from an installed wheel."""

from __future__ import annotations

from pathlib import Path

from dq.names import did_you_mean

# Not configs of their own: parts of others, and detectors without data for `launcher init`.
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


def located(given: str) -> str:
    """Return the path of a config: the user's own file, else the shipped one of this name.

    Args:
        given: A path, or a shipped config's name (``digits/ssd_resnet_fpn_160``), with or without
            ``configs/`` and ``.py``; the part after the slash is enough if it is the only one.

    Returns:
        A path; one that does not exist is returned unchanged.

    Raises:
        ValueError: It is neither a path nor the name of one config.
    """
    if Path(given).exists():
        return given
    name = given.removeprefix("./").removeprefix("configs/").removesuffix(".py")
    known = shipped()
    if name in known:
        return str(known[name])
    same = [full for full in known if full.rpartition("/")[2] == name]
    if len(same) == 1:
        return str(known[same[0]])
    if len(same) > 1:
        raise ValueError(f"several configs are called {name}: {', '.join(same)}; give one of these")
    if Path(given).suffix:  # A file; reading it says what is near.
        return given
    stems = {full.rpartition("/")[2] for full in known}
    raise ValueError(
        f"config {given} is neither a file nor a shipped config"
        f"{did_you_mean(given, [*known, *stems])}; `launcher configs` lists them"
    )
