"""The engines that evaluate an exported model, by the names that ``--backend`` gives them.

Only the standard library is needed to read the names.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dq.quant.verify.engine import Engine

# The module of each, which has an `Engine` called ENGINE, and what installs the package it imports.
ENGINES = {
    "onnxruntime": ("dq.quant.verify.onnxruntime_session", "pip install dq-launcher"),
    "openvino": ("dq.quant.verify.openvino_session", "pip install 'dq-launcher[openvino]'"),
}


def engine_named(name: str) -> Engine:
    """Return an engine.

    Args:
        name: A key of `ENGINES`.

    Raises:
        ValueError: Its package is not installed, or cannot be loaded.
    """
    module, mend = ENGINES[name]
    try:
        engine: Engine = importlib.import_module(module).ENGINE
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        what = f"the package {error.name}, which is missing" if missing else f"a package: {error}"
        raise ValueError(f"--backend {name} needs {what}; {mend}") from error
    return engine
