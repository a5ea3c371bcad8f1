"""The engines that evaluate an exported model, by the names that ``--backend`` gives them.

Only the standard library is needed to read the names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq.quant.verify.engine import Engine

# The module of each: it has an `Engine` called ENGINE, and imports the package that it needs.
ENGINES = {
    "onnxruntime": "dq.quant.verify.onnxruntime_session",
    "openvino": "dq.quant.verify.openvino_session",
}


def engine_named(name: str) -> Engine:
    """Return an engine.

    Args:
        name: A key of `ENGINES`.

    Raises:
        ValueError: Its package is not installed, or cannot be loaded.
    """
    try:
        engine: Engine = importlib.import_module(ENGINES[name]).ENGINE
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        what = f"is not installed ({error.name})" if missing else f"cannot be loaded ({error})"
        raise ValueError(
            f"--backend {name}: the engine {what}; pip install 'dq-launcher[{name}]'"
        ) from error
    return engine
