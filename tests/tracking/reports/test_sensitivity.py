"""The output of `launcher analyze`: table, JSON without infinities, plot."""

import json
import math
from pathlib import Path
from typing import Any

from dq.tracking.reports.sensitivity import sensitivity_table, write_sensitivity

RESULT: dict[str, Any] = {
    "quantizers": [
        {"name": "a/out", "kind": "activation", "bits": 8, "sqnr": 12.345},
        {"name": "b", "kind": "weight", "bits": 4, "sqnr": 30.0},
        {"name": "c", "kind": "weight", "bits": 4, "sqnr": math.inf},
    ],
    "sqnr": 11.0,
    "raised": ["a/out"],
    "sqnr_raised": 29.0,
}


def test_the_table_shows_the_most_sensitive_and_counts_the_rest() -> None:
    assert sensitivity_table(RESULT, rows=2) == (
        "| quantizer | kind | bits | SQNR alone (dB) | |\n"
        "|---|---|---|---|---|\n"
        "| a/out | activation | 8 | 12.3 | -> 16 bit |\n"
        "| b | weight | 4 | 30.0 |  |\n"
        "\n"
        "1 more quantizer disturbs the outputs less.\n"
        "SQNR of the outputs: 11.0 dB with all quantizers rounding,"
        " 29.0 dB with 1 raised to 16 bit."
    )


def test_outputs_that_are_no_numbers_are_the_most_sensitive() -> None:
    broken = {**RESULT, "sqnr": -math.inf}
    assert "SQNR of the outputs: -inf dB with all quantizers" in sensitivity_table(broken)


def test_json_and_plot_are_written(tmp_path: Path) -> None:
    data, plot = write_sensitivity(tmp_path / "analyze", RESULT)
    assert json.loads(data.read_text())["quantizers"][2]["sqnr"] is None
    assert plot.read_bytes().startswith(b"\x89PNG")
