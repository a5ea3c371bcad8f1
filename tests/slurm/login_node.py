"""A login node: an interpreter with only this project, submitit and its dependencies."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from tests.launcher.conftest import ROOT

PACKAGES = ("submitit", "cloudpickle", "typing_extensions")
START = """
import sys
sys.path[:0] = {paths!r}
sys.argv[0] = "launcher"
from launcher.cli import main
raise SystemExit(main())
"""


def login(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Call the launcher without site-packages, except links to the packages of a login node.

    Args:
        folder: Folder for those links and for the user's index of submissions.
        words: The launcher's command line.
    """
    packages = folder / "packages"
    packages.mkdir(exist_ok=True)
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        source = Path(spec.origin)
        source = source.parent if source.name == "__init__.py" else source
        if not (packages / source.name).exists():
            (packages / source.name).symlink_to(source)
    start = START.format(paths=[str(ROOT), str(packages)])
    environ = {**os.environ, "XDG_STATE_HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", start, *map(str, words)],
        cwd=folder,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
        env=environ,
    )
