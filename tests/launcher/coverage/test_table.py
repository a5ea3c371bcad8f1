"""The table of all families: the content of a row, and reading it again."""

from __future__ import annotations

import datetime

from launcher.cli import build_parser
from launcher.coverage.row import CRASHED, DIFFERS, HAS_NOT, REFUSED, STEPS, WHOLE, YES, Row
from launcher.coverage.table import rows_of, table

ALL = dict.fromkeys(STEPS, YES)
ROWS = {
    "a": Row(config="one", steps=ALL, quantizers=12),
    "b": Row(config="two", steps={**ALL, "boxes": HAS_NOT, "nms": HAS_NOT}, quantizers=3,
             left_float="bbox_head (a|b)"),
    "c": Row(config="three", steps={"float": CRASHED}, what="float: took more than 1 s"),
    "d": Row(config="four", steps={"float": YES, "calibrate": REFUSED}, what="calibrate: no | sum",
             quantizers=7, left_float="neck (x; y)"),
    "e": Row(config="five", steps={**ALL, "eval": DIFFERS}, what="eval: qat had 1", quantizers=1),
}  # fmt: skip


def test_rows_are_judged_by_their_worst_step() -> None:
    assert [row.result for row in ROWS.values()] == [WHOLE, WHOLE, CRASHED, REFUSED, DIFFERS]
    assert [row.quantized for row in ROWS.values()] == ["OK", "partly float", "", "partly float",
                                                        "OK"]  # fmt: skip
    # A row with a step that was not run is not complete.
    assert Row(config="six", steps={"float": YES}).result == CRASHED


def test_table_is_markdown_with_date_and_versions() -> None:
    text = table(ROWS, today=lambda: datetime.date(2026, 1, 2))
    assert "2026-01-02, mmdet 2.28.2" in text
    assert "5 families, 2 whole way, 1 refused, 1 differs, 1 crashed; 2 quantized whole" in text
    lines = text.splitlines()[-5:]
    assert lines[0] == "| a | one | whole way | OK | 12 |" + " yes |" * len(STEPS) + "  |"
    assert lines[2].endswith("|  | float: took more than 1 s |")
    assert rows_of(text) == ROWS


def test_command_line() -> None:
    arguments = build_parser().parse_args(["coverage", "--families", "yolox,detr", "--jobs", "1"])
    assert arguments.families == ["yolox", "detr"]
