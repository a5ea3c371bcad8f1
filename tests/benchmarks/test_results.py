"""The benchmark of results: which commands make a cell, and the table of what is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import COLUMNS, commands, folder_of, main
from launcher.cli import build_parser

CONFIG = Path("configs/bccd/ssd_mobilenet_fpn_256.py")


@pytest.mark.parametrize("column", COLUMNS)
def test_commands_are_the_launchers_own(column: str, tmp_path: Path) -> None:
    for words in commands(tmp_path, CONFIG, 1, column, ["a=1"]):
        parsed = build_parser().parse_args(words)
        assert parsed.seed == 1
        assert parsed.cfg_options == ["a=1", *COLUMNS[column].options]


def test_table_has_mean_and_spread_of_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, value in ((0, 0.5), (1, 0.52)):
        for column in ("float", "exported int8"):
            stage = folder_of(tmp_path, CONFIG, seed, column) / COLUMNS[column].stage
            stage.mkdir(parents=True)
            content = {COLUMNS[column].value: value - 0.1 * (column != "float")}
            (stage / "summary.json").write_text(json.dumps(content))
    words = ["--configs", str(CONFIG), "--root", str(tmp_path), "--table-only"]
    assert main([*words, "--write", str(tmp_path / "results.md")]) == 0
    text = (tmp_path / "results.md").read_text()
    row = "| bccd/ssd_mobilenet_fpn_256 | 51.0 ± 1.4 |  |  | 41.0 ± 1.4 |  |  |  |"
    assert row in text
    assert row in capsys.readouterr().out
