"""No function has so many parameters that nobody can say what it is about."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("dq", "launcher", "slurm", "website")
MOST = 8

# Whose parameters are dictated from outside, and by what.
DICTATED = {
    ("dq/quant/kernels/gpu/kernels.py", "activation"): "Triton: a kernel takes plain values",
    ("dq/quant/kernels/gpu/kernels.py", "learned_backward"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "_grid_of_row"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "_round_row"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "_row_gradients"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "weight"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "weights"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "weights_backward"): "Triton",
    ("dq/quant/kernels/gpu/kernels.py", "weight_backward"): "Triton",
    ("dq/quant/kernels/operators.py", "learned"): "torch: an operator takes plain values",
    ("dq/quant/kernels/operators.py", "learned_backward"): "torch",
    ("dq/quant/kernels/operators.py", "learned_gradients"): "what `learned_backward` computes",
    ("dq/quant/kernels/operators.py", "weight_gradients"): "torch: it is an operator itself",
    ("dq/quant/kernels/operators.py", "_"): "torch: an operator's result without its numbers",
    ("dq/detector/model/operators/composed.py", "deform_conv2d"): "mmcv's operator",
    ("dq/detector/model/operators/composed.py", "modulated_deform_conv2d"): "mmcv's operator",
}


def functions(text: str) -> Iterator[tuple[str, int]]:
    """Yield each function of a file with the number of its parameters, the object itself apart."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            given = node.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            more = [a for a in (given.vararg, given.kwarg) if a is not None]
            yield node.name, len([n for n in names if n not in ("self", "cls")]) + len(more)


def too_long(package: str) -> set[tuple[str, str]]:
    return {
        (path.relative_to(ROOT).as_posix(), name)
        for path in sorted((ROOT / package).rglob("*.py"))
        for name, number in functions(path.read_text())
        if number > MOST
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_has_too_many_parameters(package: str) -> None:
    found = too_long(package)
    assert found <= set(DICTATED), f"group their parameters: {sorted(found - set(DICTATED))}"
    unused = {place for place in DICTATED if place[0].startswith(f"{package}/")} - found
    assert not unused, f"no exception is needed for {sorted(unused)}"


def test_parameters_are_counted() -> None:
    text = "class A:\n def f(self, a, /, b, *c, d=1, **e):\n  def g(): pass\nasync def h(x): pass"
    assert sorted(functions(text)) == [("f", 5), ("g", 0), ("h", 1)]
