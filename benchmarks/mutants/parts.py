"""The modules that are mutated, in parts, and the tests that belong to each of them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path

# Every part gets the same number of mutants. A folder includes all its modules except those that
# another part names.
PARTS: Mapping[str, tuple[str, ...]] = {
    "numerics": ("dq/quant/numerics",),
    "observers": ("dq/quant/observers",),
    "quantizers": ("dq/quant/quantizers",),
    "graph": ("dq/quant/graph",),
    "ptq": ("dq/quant/ptq",),
    "integer": ("dq/quant/integer",),
    "sync": ("dq/sync.py",),
    "dist": ("dq/dist",),
    "checkpoints and order": (
        "dq/dist/files/checkpoint.py",
        "dq/detector/model/checkpoint_content.py",
        "dq/detector/training/checkpoint_order.py",
        "dq/detector/training/checkpoint_plan.py",
        "dq/detector/training/optimizer_state.py",
        "dq/detector/training/resume_state.py",
        "dq/detector/loading/epoch_order.py",
    ),
}
# Modules with tests in a folder that does not mirror theirs, such as those that a command tests.
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "dq/quant/graph/placement.py": ("tests/quant/targets/test_placement.py",),
    "dq/dist/group/early_failure.py": ("tests/launcher/failures/test_early_failures.py",),
    "dq/dist/group/claim.py": ("tests/launcher/failures/test_wrong_address.py",),
    "dq/detector/model/checkpoint_content.py": ("tests/launcher/training/test_resume.py",),
    "dq/detector/training/resume_state.py": ("tests/launcher/training/test_resume.py",),
}
# Tests that read the source of every module.
OF_ALL = ("tests/house/test_dataclasses.py",)
# pytest's expression of markers (`not slow` or `slow`), and files below the root of the tree.
Stage = tuple[str, list[str]]


def modules_of(root: Path, part: str) -> list[str]:
    """Return the modules of a part, as paths below the root of the tree, sorted."""
    named = {place for other, places in PARTS.items() if other != part for place in places}
    found: set[Path] = set()
    for place in PARTS[part]:
        path = root / place
        found |= {path} if path.suffix == ".py" else set(path.rglob("*.py"))
    names = {p.relative_to(root).as_posix() for p in found if p.name != "__init__.py"}
    return sorted(names - named)


def stages_for(root: Path, module: str) -> list[Stage]:
    """Return the tests of a module in the order in which they run, the quickest to fail first.

    First the fast tests: those in the file with its name, then in the folder that mirrors its own,
    then in the other files of the same package that import it. Last the slow ones of its file and
    folder.
    """
    path = Path(module)
    folder = root / Path("tests", *path.parts[1:-1])
    # Directly below `tests` are the tests of single files.
    alone = folder == root / "tests"
    found = folder.glob(f"test_{path.stem}*.py") if alone else folder.rglob("test_*.py")
    mirror = sorted(p.relative_to(root).as_posix() for p in found)
    own = [name for name in mirror if Path(name).name.startswith(f"test_{path.stem}")]
    near = list(dict.fromkeys([*own, *mirror, *ELSEWHERE.get(module, ()), *OF_ALL]))
    dotted = ".".join(path.with_suffix("").parts)
    importing = [
        name
        for file in sorted((root / "tests").rglob("test_*.py"))
        if (name := file.relative_to(root).as_posix()) not in near
        and dotted in _imported(file)
        and Path(name).parts[1:2] == path.parts[1:2]
    ]
    stages = [("not slow", near), ("not slow", importing), ("slow", near)]
    return [(marker, files) for marker, files in stages if files]


@functools.cache
def _imported(file: Path) -> frozenset[str]:
    """Return the names that a file imports: modules and names in them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)
