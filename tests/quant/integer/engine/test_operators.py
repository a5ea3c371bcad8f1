"""Operators between two convolutions are exact, in every way to call them."""

from __future__ import annotations

import platform

import pytest
import torch

from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe
from tests.quant.integer.engine.compared import shares_different
from tests.quant.integer.engine.operators import DIRECT, EXACT, IN_FLOAT, Net

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="the instructions of ONNX Runtime's kernels are known on x86",
    ),
]
SIGNED = Recipe(activation=QuantSpec(bits=8, signed=True))


@pytest.mark.parametrize(
    "recipe", [Recipe(), preset("int8_power2")], ids=["any scale", "power of two"]
)
def test_operators_are_exact(recipe: Recipe) -> None:
    torch.manual_seed(0)
    shares, model = shares_different(Net(EXACT.values()), recipe)
    assert {name: s for name, s in zip(EXACT, shares, strict=True) if s > 0} == {}
    assert model.num_float == 0
    assert model.num_integer > len(EXACT)


def test_functions_after_layers_are_exact_for_the_target() -> None:
    torch.manual_seed(0)
    shares, model = shares_different(Net(DIRECT.values()), preset("onnxruntime"))
    assert {name: s for name, s in zip(DIRECT, shares, strict=True) if s > 0} == {}
    assert model.num_float == 0
    assert model.num_integer > len(DIRECT)


@pytest.mark.parametrize("name", ["average pool", "concatenation", "bilinear"])
def test_signed_integers_are_exact(name: str) -> None:
    """ONNX Runtime converts them to unsigned ones if a tensor has one reader."""
    torch.manual_seed(1)
    shares, _ = shares_different(Net([EXACT[name]]), SIGNED)
    assert shares == [0.0]


def test_operators_in_float_differ_at_few_ties() -> None:
    torch.manual_seed(0)
    shares, model = shares_different(Net(IN_FLOAT.values()))
    assert {name: s for name, s in zip(IN_FLOAT, shares, strict=True) if s > 2e-4} == {}
    assert model.num_float > 0
