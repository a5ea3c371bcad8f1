"""Build the sdist and the wheel of a release, and check what is in them.

`make dist` runs it with the environment's Python, which has `build`. Both are built from a copy of
the files that git knows, so nothing that lies about in the checkout gets into them. The wheel is
built from the sdist, as users without a wheel for their machine would; it must equal the wheel that
is built from the checkout.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from steps import SetupError, say

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("dq", "launcher", "slurm")
# Beside the packages and the configs, in the sdist.
BESIDE = ("CHANGELOG.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
METADATA = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")
EGG_INFO = ("PKG-INFO", "SOURCES.txt", "dependency_links.txt", "entry_points.txt", "requires.txt",
            "top_level.txt")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """The files of a release."""

    sdist: Path
    wheel: Path


def sources(root: Path = ROOT) -> list[str]:
    """Return the files of the checkout that are its own, relative to it, sorted.

    Those that git knows or would know; without git all but what a build or a run leaves behind.
    """
    words = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    if shutil.which("git") and (root / ".git").exists():
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return sorted({n for n in done.stdout.split("\0") if n and (root / n).is_file()})
    skipped = re.compile(r"(^|/)(\.[^/]*|__pycache__|runs|data|dist|build|[^/]*\.egg-info)/")
    names = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    own = ("dq/dist/", "dq/data/")  # Packages, whose names are also those of leftovers.
    return sorted(n for n in names if (n.startswith(own) and "__pycache__" not in n)
                  or not skipped.search(n))  # fmt: skip


def build(out: Path, root: Path = ROOT) -> Built:
    """Build both files into ``out``, which may exist, and check them.

    Args:
        out: Earlier releases in it stay.
        root: The checkout.

    Raises:
        SetupError: The build failed, or a file is missing or too much; the message names it.
    """
    names = sources(root)
    with tempfile.TemporaryDirectory(prefix="dist-") as temporary:
        folder = Path(temporary)
        copy = folder / "source"
        for name in names:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, copy / name)
        sdist = _built(copy, folder / "sdist", "--sdist")
        from_checkout = _built(copy, folder / "direct", "--wheel")
        with tarfile.open(sdist) as archive:
            archive.extractall(folder / "unpacked", filter="data")
        (unpacked,) = (folder / "unpacked").iterdir()
        wheel = _built(unpacked, folder / "wheel", "--wheel")
        check_version(version_of(root), sdist, wheel)
        check_names("the sdist", content_of(sdist), expected_in_sdist(names, sdist))
        check_names("the wheel", content_of(wheel), expected_in_wheel(names, wheel))
        check_equal(content_of(from_checkout), content_of(wheel))
        out.mkdir(parents=True, exist_ok=True)
        return Built(*(Path(shutil.copy(path, out)) for path in (sdist, wheel)))


def _built(source: Path, out: Path, kind: str) -> Path:
    # Without isolation: the tools are those that setup/constraints.txt pins.
    words = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", out, source]
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-25:])
        raise SetupError(f"python -m build {kind} failed\n{tail}")
    (found,) = out.iterdir()
    return found


def content_of(path: Path) -> dict[str, bytes]:
    """Return the files in a wheel, or in an sdist below its folder, by name."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return {i.filename: wheel.read(i) for i in wheel.infolist() if not i.is_dir()}
    found = {}
    with tarfile.open(path) as sdist:
        for member in sdist.getmembers():
            if (file := sdist.extractfile(member)) is not None:
                found[member.name.partition("/")[2]] = file.read()
    return found


def version_of(root: Path = ROOT) -> str:
    """Return the version that ``pyproject.toml`` says."""
    text = (root / "pyproject.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text)["project"]["version"])


def check_version(version: str, *paths: Path) -> None:
    """Raise SetupError unless the files are called after the version."""
    for path in paths:
        if path.name.split("-")[1].removesuffix(".tar.gz") != version:
            raise SetupError(f"{path.name} is not of version {version}, as pyproject.toml says")


def expected_in_wheel(names: Collection[str], wheel: Path) -> set[str]:
    """Return the files that a wheel of these sources has."""
    info = "-".join(wheel.name.split("-")[:2]) + ".dist-info"
    found = {name for name in names if name.split("/")[0] in PACKAGES}
    found |= {f"dq/{name}" for name in names if name.startswith("configs/")}
    return found | {f"{info}/{name}" for name in METADATA}


def expected_in_sdist(names: Collection[str], sdist: Path) -> set[str]:
    """Return the files that an sdist of these sources has, below its folder."""
    info = sdist.name.split("-")[0] + ".egg-info"
    found = {name for name in names if name.split("/")[0] in (*PACKAGES, "configs", *BESIDE)}
    return found | {"PKG-INFO", "setup.cfg"} | {f"{info}/{name}" for name in EGG_INFO}


def check_names(what: str, found: Collection[str], expected: Collection[str]) -> None:
    """Raise SetupError for files that are missing or should not be there."""
    for names, fault in (
        (set(expected) - set(found), "lacks"),
        (set(found) - set(expected), "has"),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise SetupError(
                f"{what} {fault} {', '.join(sorted(names)[:3])}{more}; see [tool.setuptools] in"
                " pyproject.toml, MANIFEST.in and setup.py"
            )


def check_equal(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> None:
    """Raise SetupError unless two wheels have the same files with the same content."""
    names = sorted(name for name in {*one, *other} if one.get(name) != other.get(name))
    if names:
        raise SetupError(
            f"the wheel from the sdist differs from that of the checkout; files: {len(names)},"
            f" first {names[0]}"
        )


def main() -> int:
    """Parse the command line, build, return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="where the files go")
    parser.add_argument("--try", dest="trial", action="store_true",
        help="install the wheel with all dependencies from pip into an empty environment, and use"
             " it there; takes as long as `make setup`")  # fmt: skip
    arguments = parser.parse_args()
    try:
        built = build(arguments.out)
        for path in (built.sdist, built.wheel):
            say(f"{path}: {len(content_of(path))} files, {path.stat().st_size / 1e6:.1f} MB")
        if arguments.trial:
            from trial import try_with_pip

            try_with_pip(built.wheel, version_of())
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
