"""The dependency rule: which package may import which, read from the source."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dq", "launcher", "slurm", "website")

# Packages that must never be imported, neither at the top of a file nor inside a function.
FORBIDDEN = {
    "dq/quant": ("torch.distributed", "dq.dist", "dq.detector", "dq.sync", "mmdet", "mmcv"),
    "dq/dist": ("dq.quant", "dq.detector", "dq.sync", "mmdet", "mmcv"),
    "dq/data": ("torch.distributed", "dq.quant", "dq.dist", "dq.detector", "mmdet", "mmcv"),
    "dq/tracking": ("torch.distributed", "dq.quant", "dq.dist", "dq.detector", "mmdet", "mmcv"),
    "dq/native.py": ("torch.distributed", "dq.quant", "dq.dist", "dq.detector", "mmdet", "mmcv"),
    "dq/sync.py": ("dq.detector", "dq.tracking", "mmdet", "mmcv", "torch.distributed"),
    "dq": ("launcher", "slurm", "website"),
    "launcher": ("mmdet", "torch.distributed", "website"),
    "slurm": ("torch", "mmdet", "mmcv", "dq", "website"),
}
# Needs only the standard library, so a login node can run it.
WITHOUT_PACKAGES = {("slurm", "dq.whole_file"), ("slurm", "dq.names"), ("slurm", "dq.proc")}
# mmcv prints through its own loggers, which only the session that creates ours can silence.
EXCEPTIONS = {("launcher/session.py", "mmcv.utils")}


def files(place: str) -> Iterator[Path]:
    path = ROOT / place
    yield from [path] if path.suffix == ".py" else sorted(path.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            found |= {str(node.module)} | {f"{node.module}.{a.name}" for a in node.names}
    return found


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


@pytest.mark.parametrize("place", FORBIDDEN)
def test_forbidden_imports(place: str) -> None:
    checked = 0
    for path in files(place):
        checked += 1
        for name in imports(path):
            for package in FORBIDDEN[place]:
                if any(place == p and is_below(name, allowed) for p, allowed in WITHOUT_PACKAGES):
                    continue
                assert not is_below(name, package), f"{path.relative_to(ROOT)} imports {name}"
    assert checked


def test_only_the_adapter_and_the_log_setup_know_mmcv() -> None:
    for package in PACKAGES:
        for path in files(package):
            place = path.relative_to(ROOT).as_posix()
            if place.startswith("dq/detector/"):
                continue
            for name in imports(path):
                if any(is_below(name, p) for p in ("mmcv", "mmdet")):
                    assert (place, name.rpartition(".")[0]) in EXCEPTIONS or (
                        place,
                        name,
                    ) in EXCEPTIONS, f"{place} imports {name}"


def test_no_import_circles() -> None:
    graph: dict[str, set[str]] = {}
    modules = {
        path.relative_to(ROOT)
        .with_suffix("")
        .as_posix()
        .replace("/", ".")
        .removesuffix(".__init__")
        for package in PACKAGES
        for path in files(package)
    }
    for package in PACKAGES:
        for path in files(package):
            name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
            name = name.removesuffix(".__init__")
            tree = ast.parse(path.read_text())
            top = {
                f"{node.module}.{alias.name}"
                for node in tree.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            } | {str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)}
            graph[name] = (top & modules) - {name}

    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"circle: {' -> '.join((*trail, name))}"
        if name not in done:
            for child in graph[name]:
                visit(child, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_login_node_modules_need_only_the_standard_library() -> None:
    for _, name in WITHOUT_PACKAGES:
        found = {n.partition(".")[0] for n in imports(ROOT / f"{name.replace('.', '/')}.py")}
        assert found <= {*sys.stdlib_module_names}, found


def test_no_files_for_leftovers() -> None:
    names = {path.stem for package in PACKAGES for path in files(package)}
    assert not names & {"utils", "common", "helpers", "misc"}
