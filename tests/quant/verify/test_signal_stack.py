"""A signal does not end a process in which OpenVINO has run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from dq.quant.verify.signal_stack import address, kept_signal_stack
from tests.quant.latency.models import int8_model

pytestmark = pytest.mark.cpu

PROGRAM = """
import faulthandler, gc, signal, subprocess, sys
import numpy, onnx

faulthandler.enable()  # Handlers of signals have a stack of their own from here on.
signal.signal(signal.SIGCHLD, lambda *_: None)
from dq.quant.verify.signal_stack import address

before = address()
assert before
model = onnx.load(sys.argv[1])
if sys.argv[2] == "evaluates":
    from dq.quant.verify.openvino_session import ENGINE as engine
else:
    from dq.quant.latency.openvino import TIMED as engine
shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
# The first is freed before the second one, which would give back the first one's stack.
networks = [engine.open(model, threads=1) for _ in range(2)]
for network in networks:
    network.compute([numpy.zeros(shape, numpy.float32)])
assert address() == before
del network
while networks:
    networks.pop(0)
    gc.collect()
assert address() == before
subprocess.run(["true"], check=True)
print("lives")
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["evaluates", "measures"])
def test_a_signal_after_openvino_has_run_does_not_end_the_process(
    what: str, tmp_path: Path
) -> None:
    onnx.save(int8_model(), tmp_path / "net.onnx")
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "net.onnx"), what]
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.endswith("lives\n")


def test_the_stack_is_the_same_after_an_error_too() -> None:
    before = address()
    with pytest.raises(RuntimeError, match="broken"), kept_signal_stack():
        raise RuntimeError("broken")
    assert address() == before
