"""The engines that run exported models, by the names that ``--backend`` gives them.

Only the standard library is needed to read the names.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq.quant.verify.engine import Engine

# Three things for each engine: the module that evaluates, whose ENGINE is an `Engine`; the command
# that installs the engine's package; the module that measures speed, whose TIMED is an engine.
ENGINES = {
    "onnxruntime": (
        "dq.quant.verify.onnxruntime_session",
        "pip install dq-launcher",
        "dq.quant.latency.onnx_runtime",
    ),
    "openvino": (
        "dq.quant.verify.openvino_session",
        "pip install 'dq-launcher[openvino]'",
        "dq.quant.latency.openvino",
    ),
}


def is_installed(name: str) -> bool:
    """Say whether the package of an engine is installed."""
    return importlib.util.find_spec(name) is not None


def backend_of(title: str) -> str:
    """Return the key of `ENGINES` for an engine's name and version, such as ``OpenVINO 2026.4``."""
    written = title.lower().replace(" ", "")
    return next(name for name in ENGINES if written.startswith(name))


def engine_named(name: str) -> Engine:
    """Return an engine.

    Args:
        name: A key of `ENGINES`.

    Raises:
        ValueError: Its package is not installed, or cannot be loaded.
    """
    module, mend, _ = ENGINES[name]
    try:
        engine: Engine = importlib.import_module(module).ENGINE
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        what = f"the package {error.name}, which is missing" if missing else f"a package: {error}"
        raise ValueError(f"--backend {name} needs {what}; {mend}") from error
    return engine
