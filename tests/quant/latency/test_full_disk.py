"""ONNX Runtime writes its optimized model into a temporary file, whose disk may be full."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator

import onnx
import pytest

from dq.quant.latency.onnx_runtime import OnnxRuntime
from dq.quant.verify.onnxruntime_session import ENGINE
from tests.quant.latency.models import int8_model

pytestmark = pytest.mark.cpu

OPENERS: list[Callable[[onnx.ModelProto], object]] = [
    lambda model: ENGINE.open(model, threads=1),
    lambda model: OnnxRuntime().open(model, threads=1),
]


@pytest.fixture
def no_room() -> Iterator[None]:
    """Let every write that makes a file longer than 100 bytes fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("no_room")
@pytest.mark.parametrize("open_it", OPENERS)
def test_the_file_is_named(open_it: Callable[[onnx.ModelProto], object]) -> None:
    with pytest.raises(OSError, match="File too large") as full:
        open_it(int8_model())
    assert full.value.errno == errno.EFBIG
    assert str(full.value.filename).endswith("optimized.onnx")


@pytest.mark.parametrize("open_it", OPENERS)
def test_a_model_that_it_cannot_run_is_another_error(
    open_it: Callable[[onnx.ModelProto], object],
) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(int8_model())
    model.graph.node[0].op_type = "Unknown"
    with pytest.raises(ValueError, match="Unknown"):
        open_it(model)
