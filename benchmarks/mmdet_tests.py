"""Run mmdet's own tests on current numpy and torch, with `dq.detector.removed_names`.

    python -m benchmarks.mmdet_tests FOLDER [--limit 180] [TESTS ...]

FOLDER has ``tests`` and ``configs`` of mmdet 2.28.2's repository, which its wheel does not include,
and nothing else of it, so that the installed package is tested. TESTS are files or folders below
FOLDER. By default all tests except those of asynchronous inference run, in about 20 minutes. The
exit code is pytest's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = "tests/test_runtime/test_async.py"
FOLDERS = ("test_data", "test_utils", "test_metrics", "test_runtime", "test_models")


def command(folder: Path, tests: Sequence[str], limit_s: int) -> list[str]:
    """Return the command that runs the tests, in the folder.

    Raises:
        ValueError: The folder does not have the expected content.
    """
    for name in ("tests", "configs"):
        if not (folder / name).is_dir():
            raise ValueError(
                f"{folder} has no {name}; give a folder with tests and configs of mmdet 2.28.2"
            )
    if (folder / "mmdet").exists():
        raise ValueError(
            f"{folder} contains mmdet's sources too, which would be tested instead of the installed"
            " ones; give a folder with tests and configs alone"
        )
    chosen = list(tests) or [
        f"tests/{name}" for name in FOLDERS if (folder / "tests" / name).is_dir()
    ]
    # The plugin is our package: it restores numpy's removed names before a test imports mmdet.
    words = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", ".", "-q", "-rfE"]
    words += ["-p", "dq.detector", "-p", "no:cacheprovider", "--timeout", str(limit_s)]
    return [*words, "--ignore", LEFT_OUT, *chosen]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the tests and return their exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("tests", nargs="*", metavar="TESTS")
    parser.add_argument("--limit", type=int, default=180, metavar="SECONDS", help="for each test")
    given = parser.parse_args(argv)
    try:
        words = command(given.folder, given.tests, given.limit)
    except ValueError as error:
        parser.error(str(error))
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(words, cwd=given.folder, env=environ, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
