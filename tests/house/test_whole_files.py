"""Temporary files that are renamed are written only by `dq.whole_file`; checked in the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMPLEMENTATION = "dq/whole_file.py"
# Other places that rename or use such a name, and why.
OTHERS = {
    ("dq/data/disk.py", "rename"): "a whole folder, under a name by chance",
    ("dq/tracking/record/rows.py", "replace"): "moves a finished file aside",
    ("launcher/commands/coverage.py", "TemporaryDirectory"): "a scratch folder of its own",
    ("dq/detector/search/speed.py", "TemporaryDirectory"): "a scratch folder of its own",
    ("dq/native.py", "TemporaryDirectory"): "a scratch folder of its own",
    ("dq/quant/verify/onnxruntime_session.py", "TemporaryDirectory"): "a scratch folder of its own",
    ("dq/quant/latency/onnx_runtime.py", "TemporaryDirectory"): "a scratch folder of its own",
    ("dq/tracking/wandb_copy/relay_process.py", "mkdtemp"): "a scratch folder of its own",
    ("dq/detector/evaluation/results_file.py", "TemporaryDirectory"): "mmdet chooses its files",
    ("dq/detector/evaluation/results_file.py", "replace"): "moves mmdet's files to their folder",
    ("dq/data/download.py", ".tmp"): "a part that the next attempt goes on with, under a lock",
    ("dq/data/download.py", "replace"): "a part that has come whole",
    ("dq/data/voc.py", "replace"): "moves a finished file into a folder that nobody has yet",
    ("dq/one_writer/lock_file.py", ".tmp"): "a draft that is linked; it never replaces a file",
}
RENAMES = {"replace", "rename", "renames"}
SCRATCH = {"mkstemp", "mkdtemp", "NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"}
ENDINGS = (r"\.tmp", r"\.partial", r"\.part", r"\.temp", r"\.new")


def found_in(path: Path) -> Iterator[str]:
    """Yield the places in a file that look like a temporary name or its rename."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in SCRATCH:
                yield name
            # str.replace has two arguments, dataclasses.replace keywords.
            is_method = isinstance(node.func, ast.Attribute)
            on_os = is_method and ast.unparse(node.func.value) in ("os", "shutil")
            of_path = is_method and len(node.args) == 1 and not node.keywords
            if name in RENAMES and (on_os or of_path):
                yield name
        text = node.value if isinstance(node, ast.Constant) else None
        if isinstance(text, str) and re.search(rf"(^|[^a-z ])({'|'.join(ENDINGS)})$", text):
            yield ".tmp"


def test_every_draft_is_of_one_implementation() -> None:
    seen = set()
    for package in ("dq", "launcher", "slurm", "website"):
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            for what in found_in(path):
                if place == IMPLEMENTATION:
                    seen.add((place, what))
                    continue
                assert (place, what) in OTHERS, (
                    f"{place} has a draft or a rename ({what}) of its own; use {IMPLEMENTATION}"
                )
                seen.add((place, what))
    assert {what for place, what in seen if place == IMPLEMENTATION} == {"replace", ".tmp"}
    assert set(OTHERS) <= seen, "an exception that is none any more"
