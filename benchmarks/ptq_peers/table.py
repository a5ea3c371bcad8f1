"""The rows as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FLOAT = "float"


def table(rows: Mapping[str, Mapping[str, Any]], engines: Mapping[str, str]) -> str:
    """Return the table; a row that failed says why.

    Args:
        rows: By name, `FLOAT` among them: ``title``, and as far as they are known ``value`` (0 to
            1), ``seconds``, ``speed`` by engine (median of float's time divided by the file's own)
            and ``failed``.
        engines: Title of each engine.
    """
    metric = rows[FLOAT].get("metric", "metric")
    heads = ["", f"{metric}, %", "drop", "seconds", *(f"x float, {t}" for t in engines.values())]
    lines = [[*heads, ""], ["---"] * (len(heads) + 1)]
    reference = rows[FLOAT].get("value")
    for name, row in rows.items():
        value, speed = row.get("value"), row.get("speed", {})
        drop = ""
        if value is not None and reference is not None and name != FLOAT:
            drop = f"{100 * (reference - value):.2f}"
        lines.append(
            [
                row["title"],
                "" if value is None else f"{100 * value:.2f}",
                drop,
                f"{row['seconds']:.0f}" if row.get("seconds") else "",
                *(_speed(speed.get(engine)) for engine in engines),
                _note(row),
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _speed(found: float | str | None) -> str:
    return f"{found:.2f}" if isinstance(found, float) else "-"


def _note(row: Mapping[str, Any]) -> str:
    return str(row.get("failed", "")).replace("|", "/").replace("\n", " ")
