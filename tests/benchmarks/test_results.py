"""The benchmark of results: the commands of a cell, and the tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from mmcv import Config

from benchmarks.results import (
    BEGIN,
    COLUMNS,
    END,
    RECIPES,
    TO_CONTROL,
    TO_FLOAT,
    Cell,
    between_markers,
    commands,
    intervals,
    main,
    tables,
)
from launcher.cli import build_parser
from launcher.config import quant_settings

CONFIG = Path(__file__).resolve().parents[2] / "configs/bccd/ssd_mobilenet_fpn_160.py"


def cell(root: Path, column: str, seed: int = 1) -> Cell:
    return Cell(root=root, config=CONFIG, seed=seed, column=column)


@pytest.mark.parametrize("column", COLUMNS)
def test_commands_are_the_launchers_own(column: str, tmp_path: Path) -> None:
    made = cell(tmp_path, column)
    for words in commands(made, ["a=1"]):
        parsed = build_parser().parse_args(words)
        assert parsed.seed == 1
        wanted = [option.format(parent=made.parent) for option in made.what.options]
        assert parsed.cfg_options == ["a=1", *wanted]


# The second has a `quant` section of its own, which the recipe replaces.
@pytest.mark.parametrize("detector", [CONFIG, CONFIG.parents[1] / "digits/ssd_resnet_fpn_160.py"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_cells_config_joins_detector_and_recipe(
    column: str, detector: Path, tmp_path: Path
) -> None:
    from dq.detector.config.read import finish, read_config

    path = tmp_path / "config.py"
    path.write_text(replace(cell(tmp_path, column), config=detector).config_text())
    config = finish(read_config(path, ["data_root=/data"]))
    assert config.data.test.ann_file == "/data/ImageSets/Main/test.txt"
    settings = quant_settings(config.get("quant"))
    assert not settings.training
    recipe = COLUMNS[column].recipe
    if recipe:
        # Its numbers follow from the detector's float training.
        assert settings.training_recipe is not None
        assert settings == quant_settings(Config.fromfile(RECIPES / f"{recipe}.py").quant)
    elif detector == CONFIG:
        assert settings.training_recipe is None


def test_each_recipe_is_a_columns(tmp_path: Path) -> None:
    used = {column.recipe for column in COLUMNS.values()} - {""}
    assert {path.stem for path in RECIPES.glob("quant_*.py")} == used


def write(made: Cell, value: float) -> None:
    made.summary.parent.mkdir(parents=True)
    content = {"metrics": {"mAP": value, "bbox_mAP": value / 2}}
    made.summary.write_text(json.dumps(content))


def test_tables_have_mean_spread_and_difference_of_what_was_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, value in ((0, 0.5), (1, 0.52)):
        write(cell(tmp_path, "float", seed), value)
    write(cell(tmp_path, "exported int8", 1), 0.51)
    page = tmp_path / "results.md"
    page.write_text(f"# Page\n\n{BEGIN}\nold\n{END}\n\nWhy.\n")
    words = ["--configs", str(CONFIG), "--root", str(tmp_path), "--table-only"]
    assert main([*words, "--write", str(page)]) == 0
    text = page.read_text()
    assert "| bccd/ssd_mobilenet_fpn_160 | 2 | 51.0 ± 1.4 | 51.0 (-1.0) |" in text
    assert "| bccd/ssd_mobilenet_fpn_160 | 2 | 25.5 ± 0.7 | 25.5 (-0.5) |" in text
    assert text.startswith("# Page\n\n")
    assert text.endswith("\n\nWhy.\n")
    assert "old" not in text
    assert "51.0 (-1.0)" in capsys.readouterr().out


def test_a_cell_names_its_difference_to_its_own_control(tmp_path: Path) -> None:
    values = {"float": 0.5, "W4A8 QAT": 0.49, "float, as W4A8": 0.53, "float, trained on": 0.6}
    for column, value in values.items():
        write(cell(tmp_path, column), value)
    text = tables([cell(tmp_path, column) for column in COLUMNS])
    assert "| 49.0 (-1.0; -4.0 to its control) | 53.0 (+3.0) |" in text


@pytest.mark.parametrize("name", [name for name, column in COLUMNS.items() if column.control])
def test_a_control_is_a_stage_of_the_training_that_it_controls(name: str) -> None:
    control = COLUMNS[COLUMNS[name].control]
    assert control.recipe == COLUMNS[name].recipe
    assert control.of in (name, COLUMNS[name].parent)
    # The training that it belongs to is finished first.
    assert list(COLUMNS).index(control.of) < list(COLUMNS).index(COLUMNS[name].control)


def test_differences_have_intervals_over_images(tmp_path: Path) -> None:
    from dq.tracking.record.matches import write_matches
    from tests.tracking.reports.test_bootstrap import matches

    for column, noise in (("float", 1.0), ("int8 QAT", 1.0), ("float, trained on", 5.0)):
        made = cell(tmp_path, column)
        write(made, 0.5)
        write_matches(made.summary.parent, matches(noise, 0))
    cells = [cell(tmp_path, column) for column in COLUMNS]
    to_float = intervals(cells, TO_FLOAT)
    assert "| bccd/ssd_mobilenet_fpn_160 | +0.00 (+0.00 to +0.00), within chance | -" in to_float
    # QAT is compared with its control too.
    to_control = intervals(cells, TO_CONTROL)
    assert re.search(r"\| \| int8 QAT \|\n.*\n\| bccd/\S+ \| \+\d", to_control)
    assert to_float in tables(cells)
    assert intervals([cell(tmp_path, "float")], TO_FLOAT) == ""


def test_the_interval_of_several_seeds_is_that_of_their_mean(tmp_path: Path) -> None:
    from dq.tracking.record.matches import write_matches
    from dq.tracking.reports.bootstrap import mean_difference
    from tests.tracking.reports.test_bootstrap import matches

    cells, pairs = [], []
    for seed in (0, 1):
        pair = matches(1.0, seed), matches(3.0, seed + 2)
        pairs.append(pair)
        for column, found in zip(("float", "int8 PTQ"), pair, strict=True):
            made = cell(tmp_path, column, seed)
            write(made, 0.5)
            write_matches(made.summary.parent, found)
            cells.append(made)
    text = str(mean_difference(pairs)).replace(" points", "")
    assert f"| bccd/ssd_mobilenet_fpn_160 | {text} |" in intervals(cells, TO_FLOAT)


def test_markers_are_added_where_there_are_none() -> None:
    once = between_markers("# Page\n", "table")
    assert once == f"# Page\n\n{BEGIN}\n\ntable\n{END}\n"
    assert between_markers(once, "other") == once.replace("table", "other")


def test_a_cell_without_its_parent_fails(tmp_path: Path) -> None:
    words = ["--configs", str(CONFIG), "--root", str(tmp_path), "--seeds", "0"]
    assert main([*words, "--columns", "int8 PTQ"]) == 1


def test_a_variant_is_a_column_with_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.results.COLUMNS", dict(COLUMNS))
    folder = tmp_path / "bccd-ssd_mobilenet_fpn_160/seed0/alone/qat"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"metrics": {"mAP": 0.5}}))
    words = ["--configs", str(CONFIG), "--root", str(tmp_path), "--table-only", "--columns"]
    variant = ["--variant", "alone", "W4A4 QAT", "quant.distill=None"]
    assert main([*words, *variant]) == 0
    assert "| mAP, % | seeds | alone |" in capsys.readouterr().out
    with pytest.raises(ValueError, match="there is a column 'alone' already"):
        main([*words, *variant])
    # Names of columns have commas in them.
    with pytest.raises(ValueError, match=r"no column 'int8'; give one of .*, 'float, trained on',"):
        main([*words, "--variant", "mine", "int8"])
    with pytest.raises(SystemExit):
        main([*words, "--variant", "mine"])
    assert "--variant needs a name, a column, and settings" in capsys.readouterr().err
