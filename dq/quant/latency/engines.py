"""The engines whose speed can be measured, by name; their packages are imported when needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq.quant.latency.engine import Engine


def _onnx_runtime() -> Engine:
    from dq.quant.latency.onnx_runtime import OnnxRuntime

    return OnnxRuntime()


def _openvino() -> Engine:
    from dq.quant.latency.openvino import OpenVino

    return OpenVino()


ENGINES: Mapping[str, Callable[[], Engine]] = {
    "onnxruntime": _onnx_runtime,
    "openvino": _openvino,
}
