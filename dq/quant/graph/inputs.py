"""Functions whose inputs have names that are known only at run time."""

from __future__ import annotations

import keyword
from collections.abc import Callable, Sequence
from typing import Any


def forward_with_inputs(names: Sequence[str], method: str) -> Callable[..., Any]:
    """Return a function ``forward(self, *names)`` that calls ``self.method`` with its inputs.

    torch.fx and torch.export read the names and the number of inputs from a function's code, so
    ``*inputs`` would not do.

    Args:
        names: One for each input.
        method: Name of the method of ``self`` that takes them by position.

    Raises:
        ValueError: A name is not one that Python accepts for a parameter.
    """
    for name in (*names, method):
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(f"{name!r} cannot be the name of an input")
    listed = ", ".join(names)
    namespace: dict[str, Any] = {}
    exec(f"def forward(self, {listed}):\n    return self.{method}({listed})", namespace)
    function: Callable[..., Any] = namespace["forward"]
    return function
