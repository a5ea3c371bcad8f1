"""The GPU kernels give the results of the CPU kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dq.quant.kernels import native

ROOT = Path(__file__).resolve().parents[4]
LEAST = 80


@pytest.mark.slow
@pytest.mark.cpu
def test_interpreted_kernels_equal_those_for_a_cpu() -> None:
    pytest.importorskip("triton", reason="the GPU kernels need Triton")
    if not native.is_there():
        pytest.skip("there are no CPU kernels to compare with")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/quant/kernels/gpu/interpreted.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None
    assert int(passed[1]) >= LEAST
