"""Create the virtual environment: torch, mmcv-full compiled from its sdist, then this project.

The Makefile runs it with the system's Python, so it uses only the standard library. A step is
skipped if its result exists already, so a second run takes seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import subprocess
import sys
import time
from pathlib import Path

from mmcv_wheel import mmcv_wheel
from pins import CONSTRAINTS, pinned
from steps import SetupError, require_space, run, say

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
VENV_GIB = 8.0
BUILD_TOOLS = ("pip", "setuptools", "wheel", "ninja")
BEFORE_MMCV = ("torch", "torchvision", "numpy", "opencv-python-headless", "packaging", "pyyaml")


def installed_version(python: Path, module: str) -> str | None:
    """Return the version of a distribution in the environment, None if it is absent."""
    code = (
        "import importlib.metadata as m, sys\n"
        "try: print(m.version(sys.argv[1]))\n"
        "except m.PackageNotFoundError: pass"
    )
    done = subprocess.run([python, "-c", code, module], capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def is_installed(python: Path, requirement: str) -> bool:
    """Return whether exactly this ``name==version`` is in the environment."""
    name, version = requirement.split("==")
    found = installed_version(python, name)
    return found is not None and found.split("+")[0] == version


def fingerprint(extras: str) -> str:
    """Return a digest of everything that affects what is installed."""
    digest = hashlib.sha256(extras.encode())
    for path in (ROOT / "pyproject.toml", CONSTRAINTS, *sorted(HERE.glob("*.py"))):
        digest.update(path.read_bytes())
    digest.update(sys.version.encode())
    return digest.hexdigest()


def create(venv: Path, extras: str, *, project_wheel: Path | None = None) -> None:
    """Install the project and its dependencies into ``venv``; do nothing if they already are.

    Args:
        venv: The environment; created if it does not exist.
        extras: Names of optional dependencies, separated by commas.
        project_wheel: The project as a wheel; None to use the checkout, in place.
    """
    if not (3, 11, 4) <= sys.version_info < (3, 14):
        version = platform.python_version()
        raise SetupError(
            f"Python 3.11.4 to 3.13 is needed, this is {version}; set PYTHON=python3.11"
        )
    stamp, wanted = venv / "setup.sha256", fingerprint(extras)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    began = time.monotonic()
    python = venv / "bin" / "python"
    log = venv / "setup.log"
    if not python.exists():
        require_space(venv.parent, VENV_GIB, "the virtual environment")
        say(f"creating {venv}")
        done = subprocess.run(
            [sys.executable, "-m", "venv", venv], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SetupError(
                f"python -m venv {venv} failed: {(done.stdout + done.stderr).strip()[:300]}"
                " (Debian/Ubuntu: apt-get install python3-venv)"
            )
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    pip += ["-c", CONSTRAINTS]
    missing = [
        pinned(n) for n in (*BUILD_TOOLS, *BEFORE_MMCV) if not is_installed(python, pinned(n))
    ]
    if missing:
        say(f"installing torch and build tools (packages: {len(missing)}; up to 5.5 GB, minutes)")
        run([*pip, *missing], log=log)
    if not is_installed(python, pinned("mmcv-full")):
        wheel = mmcv_wheel(python, log)
        say(f"installing {wheel.name}")
        run([*pip, wheel], log=log)
    say("installing the project and its dependencies")
    project = ["-e", str(ROOT)] if project_wheel is None else [str(project_wheel)]
    project[-1] += f"[{extras}]"
    run([*pip, "--no-build-isolation", *project], log=log)
    stamp.write_text(wanted)
    say(f"environment ready in {time.monotonic() - began:.0f} s: {venv}")


def main() -> int:
    """Parse the command line, create the environment, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="where it goes")
    parser.add_argument("--extras", default="test,demo", help="optional dependency groups")
    arguments = parser.parse_args()
    try:
        create(arguments.venv.resolve(), arguments.extras)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: {error}: {(error.stderr or '')[-500:]}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
