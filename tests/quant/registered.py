"""Names that a test registers end with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dq.quant.recipes.presets import PRESETS
from dq.quant.recipes.recipe import OBSERVERS
from dq.quant.targets.registry import TARGETS


@contextmanager
def names_stay() -> Iterator[None]:
    """Put the names of observers, targets and presets back at the end."""
    before: list[tuple[dict[str, Any], dict[str, Any]]]
    before = [(names, dict(names)) for names in (OBSERVERS, TARGETS, PRESETS)]
    try:
        yield
    finally:
        for names, content in before:
            names.clear()
            names.update(content)
