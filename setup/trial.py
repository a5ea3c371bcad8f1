"""Use an installed wheel as a user does: in an empty folder, without the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from environment import create
from steps import SetupError, say

LIMIT_S = 600.0
# A training of a few steps on a few images.
DATA = ["data", "digits", "--num-train", "8", "--num-val", "4", "--num-test", "4"]
TRAIN = ["train", "digits/ssd_resnet_fpn_160", "--wandb", "disabled", "--cfg-options"]
SHORT = ["data.train.times=1", "runner.max_epochs=1", "evaluation.interval=1"]
INIT = ["init", "data/digits", "--detector", "yolox_nano", "--size", "64"]
WHERE = "import dq, launcher, slurm; print(dq.__file__, launcher.__file__, slurm.__file__)"
FAULTS = ("Traceback", "fatal:", "error:")


def empty_environment(folder: Path, wheel: Path, packages: Path) -> Path:
    """Create an environment with the wheel alone, which finds its dependencies elsewhere.

    Args:
        folder: The new environment.
        wheel: Of this project; installed without its dependencies.
        packages: A folder ``site-packages`` that has the dependencies. Its ``.pth`` files, and with
            them an editable installation of the checkout, have no effect in the new environment.

    Returns:
        Its Python.

    Raises:
        SetupError: A command failed.
    """
    _run([sys.executable, "-m", "venv", "--without-pip", folder], Path.cwd())
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet"]
    _run([*pip, "--no-deps", "--no-index", wheel], Path.cwd())
    own = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    (folder / own / "dependencies.pth").write_text(f"{packages}\n", encoding="utf-8")
    return python


def use(python: Path, folder: Path, version: str) -> None:
    """Call the launcher in an empty folder: version, configs, data, a short training, a config.

    Args:
        python: Of an environment with the wheel.
        folder: Empty.
        version: What the launcher should say.

    Raises:
        SetupError: A command failed, or code of the checkout was used instead of the wheel's.
    """
    launcher = [python.parent / "launcher"]
    prefix = python.parent.parent
    for place in _run([python, "-c", WHERE], folder).split():
        if not Path(place).is_relative_to(prefix):
            raise SetupError(f"the wheel is not what is imported: {place} is not below {prefix}")
    for start in (launcher, [python.parent / "dq-launcher"], [python, "-m", "launcher"]):
        if (said := _run([*start, "--version"], folder)) != f"launcher {version}\n":
            raise SetupError(f"--version prints {said.strip()!r} and not launcher {version}")
    if f"in {prefix}" not in _run([*launcher, "configs"], folder):
        raise SetupError("`configs` does not list those in the wheel")
    for words, written in (
        (DATA, "data/digits/JPEGImages"),
        ([*TRAIN, *SHORT], "runs/ssd_resnet_fpn_160/float/float.pth"),
        (INIT, "digits_yolox_nano.py"),
    ):
        _run([*launcher, *words], folder)
        if not (folder / written).exists():
            raise SetupError(f"launcher {words[0]} has not written {written}")


def _run(words: list[str | Path], folder: Path) -> str:
    """Run a command without the variables that lead to other code; return what it prints."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "RANK", "WORLD_SIZE")
    environ = {name: value for name, value in os.environ.items() if name not in dropped}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    if done.returncode or any(fault in done.stderr for fault in FAULTS):
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SetupError(f"this command failed: {' '.join(map(str, words))}\n{tail}")
    return done.stdout


def try_with_pip(wheel: Path, version: str) -> None:
    """Install the wheel and all its dependencies into an empty environment, and use it there.

    mmcv-full, which has no wheel for current torch, is taken from the cache or compiled.

    Args:
        wheel: Of this project.
        version: Of the wheel.

    Raises:
        SetupError: Something failed.
    """
    with tempfile.TemporaryDirectory(prefix="wheel-") as temporary:
        began = time.monotonic()
        venv, folder = Path(temporary) / "venv", Path(temporary) / "empty"
        folder.mkdir()
        create(venv, "demo", project_wheel=wheel)
        use(venv / "bin" / "python", folder, version)
        say(f"{wheel.name} works alone, after {time.monotonic() - began:.0f} s")
