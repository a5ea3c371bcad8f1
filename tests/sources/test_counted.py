"""Counts in messages: "1 image", never "1 images"; no message counts in another way."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.counted import counted, form

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("dq", "launcher", "slurm", "setup", "website")
    for path in (ROOT / folder).rglob("*.py")
)
# What messages count.
NOUNS = [
    "anchor",
    "annotation",
    "attempt",
    "batch",
    "block",
    "box",
    "branch",
    "byte",
    "candidate",
    "category",
    "check",
    "chunk",
    "class",
    "command",
    "copy",
    "core",
    "day",
    "detection",
    "detector",
    "difference",
    "element",
    "entry",
    "epoch",
    "error",
    "experiment",
    "failure",
    "family",
    "file",
    "finding",
    "folder",
    "function",
    "group",
    "image",
    "iteration",
    "job",
    "kernel",
    "key",
    "label",
    "layer",
    "level",
    "line",
    "message",
    "micro-batch",
    "minute",
    "module",
    "name",
    "node",
    "object",
    "operator",
    "option",
    "package",
    "page",
    "pair",
    "parameter",
    "part",
    "photo",
    "photograph",
    "place",
    "prediction",
    "process",
    "quantizer",
    "range",
    "rank",
    "reason",
    "recipe",
    "report",
    "restart",
    "result",
    "round",
    "row",
    "run",
    "sample",
    "second",
    "seed",
    "setting",
    "split",
    "stage",
    "step",
    "task",
    "tensor",
    "test",
    "thread",
    "trial",
    "value",
    "warning",
    "weight",
    "word",
    "worker",
]
PLURALS = {n + "s" for n in NOUNS} | {n + "es" for n in NOUNS} | {n[:-1] + "ies" for n in NOUNS}
# A number may be before a noun of two words.
COUNT = re.compile(r" (?:(?!has|holds|the|of|on|in|no|is|are)[a-z-]+ )?([a-z-]+)\b")
PERCENT = re.compile(rf"%d{COUNT.pattern}")
# After `counted` the verb would be wrong for one.
VERB = re.compile(r"\s*(are|were|have|do|differ|lie|need|stay) ")
# Texts where the value is no number, or one that cannot be 1.
ALLOWED = {
    # The value is a name.
    ("dq/data/formats/registry.py", " annotations, but no image"),
    ("dq/detector/data/checks/images.py", " prepares samples"),
    ("dq/detector/data/data_section.py", " mixes images"),
    ("dq/detector/export/write.py", " runs on no boxes"),
    ("dq/detector/hooks/evaluation.py", " finds only boxes"),
    ("dq/detector/step/optimizer_config.py", " steps in its own way"),
    ("dq/quant/latency/float_twin.py", " nodes, whose layers"),
    # It has decimals, or is never 1.
    ("dq/tracking/live/words.py", " images/s"),
    ("dq/tracking/wandb_copy/send_offline.py", " bytes\n"),
    ("dq/detector/data/checks/boxes.py", " images is checked"),
    ("dq/detector/data/evaluated_sets.py", " results for "),
    ("dq/detector/step/optimizer_step.py", " steps in a row"),
    ("dq/dist/rendezvous/environment.py", " processes, which"),
    ("setup/steps.py", " files"),
    ("setup/mmcv_wheel.py", " jobs"),
    ("setup/distribution.py", " files, "),
}


def texts(path: Path) -> Iterator[tuple[ast.expr | None, str, int]]:
    """Yield (value, text after it, line) of f-strings, and texts with ``%d`` without a value."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if isinstance(value, ast.FormattedValue) and isinstance(text, ast.Constant):
                    yield value, str(text.value), node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield None, node.value, node.lineno


def is_float(value: ast.FormattedValue) -> bool:
    """Return whether a value is written with decimals: 1.00 points is right."""
    return value.format_spec is not None and re.search(r"[fge%]'", ast.unparse(value)) is not None


def is_constant(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id.isupper()


def called(value: ast.expr) -> str:
    inner = value.value if isinstance(value, ast.FormattedValue) else value
    return inner.func.id if isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) else ""


@pytest.mark.parametrize(
    ("words", "one", "several"),
    [
        ("image[s]", "1 image", "2 images"),
        ("box[es] outside [its|their] image", "1 box outside its image", None),
        ("entr[y differs|ies differ]", "1 entry differs", "2 entries differ"),
        ("layer[s] [is|are] in float", "1 layer is in float", "2 layers are in float"),
        ("shape[s] that [is no box|are no boxes]", "1 shape that is no box", None),
        ("in integers", "1 in integers", "2 in integers"),
    ],
)
def test_words_go_with_their_number(words: str, one: str, several: str | None) -> None:
    assert counted(1, words) == one
    if several is not None:
        assert counted(2, words) == several
    assert "[" not in counted(0, words)
    assert form(1, words) == one.removeprefix("1 ")


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_every_count_is_written_by_counted(path: Path) -> None:
    wrong = []
    for value, text, line in texts(path):
        where = f"line {line}: ...{text[:40]!r}"
        if value is None:
            wrong += [where for noun in PERCENT.findall(text) if noun in PLURALS]
        elif called(value) in ("counted", "form"):
            wrong += [where] * bool(VERB.match(text))
        elif isinstance(value, ast.FormattedValue) and not (
            is_float(value) or is_constant(value.value)
        ):
            match = COUNT.match(text)
            allowed = any(str(path) == f and text.startswith(t) for f, t in ALLOWED)
            if match and not allowed and {match[1], match[0].split()[0]} & PLURALS:
                wrong.append(where)
    assert not wrong, "write counted(number, 'image[s] [is|are]') instead: " + "; ".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_the_words_are_written_out(path: Path) -> None:
    """A name from outside may have brackets, which `counted` would take for its own."""
    if path.name in ("counted.py", "progress.py", "labelled.py", "exact_runner.py", "numbers.py"):
        return
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and called(node) in ("counted", "form"):
            words = node.args[1]
            assert isinstance(words, ast.Constant), f"{path}:{node.lineno}"
            assert "[" in str(words.value), f"{path}:{node.lineno}"
