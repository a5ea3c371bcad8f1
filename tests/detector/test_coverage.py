"""Coverage: one config a family, each in a process of its own, one table."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from dq.detector.coverage import cover, probe_apart, representatives, rows_of, table
from dq.detector.probe import CRASHED, OK, PARTLY, REFUSED, Verdict
from launcher.cli import build_parser


def test_every_family_has_a_config() -> None:
    configs = representatives()
    assert len(configs) > 80
    assert all(path.is_file() and path.parent.name == name for name, path in configs.items())


def test_unknown_family_is_refused_with_the_near_one() -> None:
    with pytest.raises(ValueError, match="did you mean retinanet"):
        representatives(["retinanett"])


@pytest.mark.slow
def test_three_families() -> None:
    configs = representatives(["yolox", "detr", "timm_example"])
    verdicts = cover(configs, jobs=1, limit_s=200, limit_mib=6000)
    assert verdicts["yolox"].verdict == OK
    assert verdicts["yolox"].quantizers > 200
    assert verdicts["detr"].verdict == PARTLY
    assert verdicts["detr"].what.startswith("bbox_head")
    assert verdicts["timm_example"].verdict == REFUSED


@pytest.mark.slow
def test_slow_and_large_ones_are_rows_and_not_the_end() -> None:
    path = representatives(["yolox"])["yolox"]
    assert probe_apart(path, limit_s=0.0, limit_mib=6000).what == "took more than 0 s"
    assert probe_apart(path, limit_s=60.0, limit_mib=1).what == "took more than 1 MiB"


def test_table_is_markdown_with_date_and_versions() -> None:
    configs = {"a": Path("a/one.py"), "b": Path("b/two.py"), "c": Path("c/three.py")}
    verdicts = {
        "a": Verdict(verdict=OK, quantizers=12),
        "b": Verdict(verdict=PARTLY, what="bbox_head: a|b", quantizers=3),
        "c": Verdict(verdict=CRASHED, what="took more than 1 s"),
    }
    text = table(configs, verdicts, today=lambda: datetime.date(2026, 1, 2))
    assert "2026-01-02, mmdet 2.28.2" in text
    assert "3 families, 1 OK, 1 partly float, 0 refused, 1 crashed" in text
    assert text.splitlines()[-3:] == [
        "| a | one | OK | 12 |  |",
        "| b | two | partly float | 3 | bbox_head: a\\|b |",
        "| c | three | crashed | 0 | took more than 1 s |",
    ]
    old_configs, old = rows_of(text)
    assert {name: path.stem for name, path in old_configs.items()} == {
        name: path.stem for name, path in configs.items()
    }
    assert old == verdicts


def test_command_line() -> None:
    arguments = build_parser().parse_args(["coverage", "--families", "yolox,detr", "--jobs", "1"])
    assert arguments.families == ["yolox", "detr"]
