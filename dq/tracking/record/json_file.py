"""A JSON file that is written whole or not at all, in strict JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dq.whole_file import write_whole


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write the file, or leave it as it was; see `json_text`."""
    write_whole(path, json_text(content, indent=2))


def json_text(content: Any, indent: int | None = None) -> str:
    """Return JSON on one line, or with ``indent`` on several; it ends with a line break.

    Values that JSON does not know are written as text. NaN and infinities become null, because
    Python would write words that other readers refuse.
    """
    return json.dumps(_finite(content), indent=indent, default=str, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
