"""All targets by name."""

from __future__ import annotations

import importlib

from dq.names import hint, is_one_of
from dq.quant.targets.as_written import TARGET as AS_WRITTEN
from dq.quant.targets.target import Target

# Modules of this package, each with a `TARGET`.
MODULES = (
    "any_engine",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tidl",
    "qnn",
    "ncnn",
)


def _read(module: str) -> Target:
    found = importlib.import_module(f"dq.quant.targets.{module}").TARGET
    assert isinstance(found, Target)
    return found


TARGETS: dict[str, Target] = {target.name: target for target in map(_read, MODULES)}


def target_of(name: str) -> Target:
    """Return the target of this name.

    Raises:
        ValueError: The target does not exist; the message names the closest one.
    """
    if name == AS_WRITTEN.name:  # In checkpoints only.
        return AS_WRITTEN
    if not is_one_of(name, TARGETS):
        raise ValueError(f"quant.target {name!r} does not exist; {hint(name, TARGETS)}")
    return TARGETS[name]
