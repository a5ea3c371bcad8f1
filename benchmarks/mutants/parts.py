"""The modules that are mutated, in parts, and the tests that belong to each of them."""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from pathlib import Path

# Every part gets the same number of mutants. Folders are meant with all that is in them, except
# modules that another part names.
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
# Modules that are tested through a command, in a folder that does not mirror theirs.
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "dq/dist/group/early_failure.py": ("tests/launcher/test_early_failures.py",),
    "dq/dist/group/claim.py": ("tests/launcher/test_wrong_address.py",),
    "dq/detector/model/checkpoint_content.py": ("tests/launcher/test_resume.py",),
    "dq/detector/training/resume_state.py": ("tests/launcher/test_resume.py",),
}
# They need a cluster, which other users of this machine may be using.
NEVER = "tests/slurm"


def modules_of(root: Path, part: str) -> list[str]:
    """Return the modules of a part, as paths below the root of the tree, sorted."""
    named = {place for other, places in PARTS.items() if other != part for place in places}
    found: set[Path] = set()
    for place in PARTS[part]:
        path = root / place
        found |= {path} if path.suffix == ".py" else set(path.rglob("*.py"))
    names = {p.relative_to(root).as_posix() for p in found if p.name != "__init__.py"}
    return sorted(names - named)


def tests_of(root: Path, module: str) -> dict[str, list[str]]:
    """Return the test files of a module, those most likely to fail first.

    First the file with its name, then the folder that mirrors its own, then, for the fast tests,
    the files elsewhere that import it.

    Returns:
        pytest's expression of markers (``not slow``, ``slow``) to files below the root.
    """
    path = Path(module)
    folder = Path("tests", *path.parts[1:-1])
    # Directly below `tests` are the tests of single files.
    pattern = "test_*.py" if folder != Path("tests") else f"test_{path.stem}*.py"
    mirror = sorted(p.relative_to(root).as_posix() for p in (root / folder).rglob(pattern))
    own = [name for name in mirror if Path(name).name.startswith(f"test_{path.stem}")]
    dotted = ".".join(path.with_suffix("").parts)
    importing = [
        name
        for file in sorted((root / "tests").rglob("test_*.py"))
        if not (name := file.relative_to(root).as_posix()).startswith(NEVER)
        and dotted in _imported(file)
    ]
    near = [*own, *mirror, *ELSEWHERE.get(module, ())]
    files = {"not slow": [*near, *importing], "slow": near}
    return {stage: list(dict.fromkeys(names)) for stage, names in files.items()}


@functools.cache
def _imported(file: Path) -> frozenset[str]:
    """Return the names that a file imports, modules and what is in them."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)
