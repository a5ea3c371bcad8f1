"""A package that is not installed where a command needs it: one line with its name."""

from __future__ import annotations

import importlib.util
import sys

# What pip calls packages that Python calls otherwise.
_PIP = {
    "PIL": "Pillow",
    "cv2": "opencv-python-headless",
    "mmcv": "mmcv-full",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "wandb_workspaces": "wandb-workspaces",
    "yaml": "PyYAML",
}
_OURS = ("dq", "launcher", "slurm")


def need(package: str, what: str) -> None:
    """Raise ValueError, which names the package, where it is not installed.

    Args:
        package: As Python calls it.
        what: That needs it.
    """
    if not _is_installed(package):
        raise ValueError(_words(package, what))


def explained(error: Exception, command: str) -> Exception:
    """Return an error in plain words where a package is missing, else as it is.

    Args:
        error: As a command raised it.
        command: Its name.
    """
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return error
    package = error.name.partition(".")[0]
    if package in _OURS or _is_installed(package):
        return error
    found = ValueError(_words(package, f"`launcher {command}`"))
    found.__cause__ = error
    return found


def _words(package: str, what: str) -> str:
    return (
        f"{what} needs the package {_PIP.get(package, package)}, which {sys.executable} does not"
        " have; install this project with all it needs (pip install .), or let it run where that"
        " is: launcher submit ..."
    )


def _is_installed(package: str) -> bool:
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
