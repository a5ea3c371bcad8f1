"""All targets by name."""

from __future__ import annotations

from dq.names import hint
from dq.quant.targets import (
    any_engine,
    as_written,
    ncnn,
    onnxruntime,
    openvino,
    qnn,
    tensorrt,
    tidl,
)
from dq.quant.targets.target import Target

TARGETS: dict[str, Target] = {
    module.TARGET.name: module.TARGET
    for module in (any_engine, onnxruntime, openvino, tensorrt, tidl, qnn, ncnn)
}
# Not for new quantizations.
STORED = {**TARGETS, as_written.TARGET.name: as_written.TARGET}


def target_of(name: str) -> Target:
    """Return the target of this name.

    Raises:
        ValueError: There is none; the message names the closest one.
    """
    if name not in STORED:
        raise ValueError(f"quant.target {name!r} does not exist; {hint(name, TARGETS)}")
    return STORED[name]
