"""The kernels compile for GPUs that are not installed, without fused multiply-add."""

import itertools
import re
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels for a GPU need Triton")

from triton import compile as triton_compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dq.quant.kernels.gpu import kernels
from dq.quant.kernels.gpu.ops import OPTIONS

pytestmark = pytest.mark.cpu

POINTERS = {"mask_ptr": "*u8", "zero_point_ptr": "*i32", "table_ptr": "*i64"}
NUMBERS = {"clip_low": "fp32", "clip_high": "fp32"}
FLAGS = ("GIVEN", "PER_CHANNEL", "SIGNED", "SYMMETRIC", "POWER_OF_TWO", "FOLDS", "UNFOLDS")
OPTIONAL = {"factor_ptr": "FOLDS", "scale_ptr": "GIVEN", "zero_point_ptr": "GIVEN"}


def compiled(kernel: Any, capability: int, constants: dict[str, Any]) -> str:
    """Return the kernel's code for a GPU as PTX."""
    given = {**constants, "BLOCK": 1024}
    if "GIVEN" in constants:
        given |= {name: None for name, flag in OPTIONAL.items() if not constants[flag]}
    signature = {
        name: "constexpr"
        if name in given
        else POINTERS.get(name, "*fp32" if name.endswith("_ptr") else NUMBERS.get(name, "i32"))
        for name in kernel.arg_names
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=given)
    made = triton_compile(source, target=GPUTarget("cuda", capability, 32), options=OPTIONS)
    code: str = made.asm["ptx"]
    return code


def every(*names: str) -> list[dict[str, bool]]:
    return [
        dict(zip(names, values, strict=True))
        for values in itertools.product([False, True], repeat=len(names))
    ]


@pytest.mark.parametrize("capability", [80, 90])
def test_kernels_of_activations(capability: int) -> None:
    for constants in every("ROUNDS", "MASKS", "OBSERVES"):
        code = compiled(kernels.activation, capability, {**constants, "WRITES": True})
        assert not re.search(r"\bfma\.", code)
        assert ("div.rn.f32" in code or "rcp.rn.f32" in code) == constants["ROUNDS"]
    for has_offset in (False, True):
        code = compiled(kernels.learned_backward, capability, {"HAS_OFFSET": has_offset})
        assert not re.search(r"\bfma\.", code)
    for kernel in (kernels.masked, kernels.record):
        assert ".entry" in compiled(kernel, capability, {})


def test_kernels_of_weights() -> None:
    for constants in every("GIVEN", "SYMMETRIC", "FOLDS"):
        unfolds = constants["FOLDS"]
        rest = {"PER_CHANNEL": True, "SIGNED": constants["SYMMETRIC"], "UNFOLDS": unfolds}
        both = {**constants, **rest, "POWER_OF_TWO": not constants["GIVEN"]}
        assert set(both) == set(FLAGS)
        code = compiled(kernels.weight, 90, both)
        assert not re.search(r"\bfma\.", code)
        wanted = {"WANTS_FACTOR": constants["FOLDS"], "WANTS_SCALE": constants["GIVEN"]}
        code = compiled(kernels.weight_backward, 90, both | wanted)
        assert not re.search(r"\bfma\.", code)
        of_rows = {name: value for name, value in both.items() if name != "PER_CHANNEL"}
        for kernel, constant in ((kernels.weights, {}), (kernels.weights_backward, wanted)):
            code = compiled(kernel, 90, of_rows | constant)
            assert not re.search(r"\bfma\.", code)
