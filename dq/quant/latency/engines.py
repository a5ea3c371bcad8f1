"""The engines whose speed can be measured, by the names that ``--backend`` gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from dq.engines import engine_named

if TYPE_CHECKING:
    from dq.quant.latency.engine import Engine


def _onnx_runtime() -> Engine:
    from dq.quant.latency.onnx_runtime import OnnxRuntime

    return OnnxRuntime()


def _openvino() -> Engine:
    from dq.quant.latency.openvino import OpenVino

    return OpenVino()


_TIMED: Mapping[str, Callable[[], Engine]] = {
    "onnxruntime": _onnx_runtime,
    "openvino": _openvino,
}


def timed_engine(name: str) -> Engine:
    """Return an engine whose speed can be measured.

    Args:
        name: A key of `dq.engines.ENGINES`.

    Raises:
        ValueError: Its package is not installed, or cannot be loaded.
    """
    engine_named(name)
    return _TIMED[name]()
