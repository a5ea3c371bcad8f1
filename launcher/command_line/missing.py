"""Report a package that a command needs and that is not installed, in one line."""

from __future__ import annotations

import importlib.util
import sys

# Names for pip of packages that are imported under another name.
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
    """Raise ValueError with the package's name if it is not installed.

    Args:
        package: The name that is imported.
        what: What needs the package, for the message.
    """
    if not _is_installed(package):
        raise ValueError(_words(package, what))


def explained(error: BaseException, command: str) -> BaseException:
    """Return an error in plain words if a package is missing, else the error itself.

    Args:
        error: Raised by a command.
        command: Name of the command.
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
        " have; install this project with its dependencies (pip install .), or run the command on"
        " a cluster that has them: launcher submit ..."
    )


def _is_installed(package: str) -> bool:
    try:
        return package in sys.modules or importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):
        return False
