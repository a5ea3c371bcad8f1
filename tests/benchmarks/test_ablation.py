"""The ablation of a recipe: its rows are trainings of the launcher, and its table adds up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import ablation, results
from benchmarks.ablation import COLUMNS, NOTHING, RECIPE, WITHOUT, cells_of, main, rows
from dq.detector.config.read import finish, read_config
from launcher.cli import build_parser
from launcher.config import QuantSettings, quant_settings

CONFIG = Path(__file__).resolve().parents[2] / "configs/digits/ssd_resnet_fpn_160.py"


@pytest.fixture(autouse=True)
def _columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns that are added are gone after a test."""
    monkeypatch.setattr(results, "COLUMNS", dict(results.COLUMNS))


@pytest.fixture(params=COLUMNS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, QuantSettings]:
    """The settings of the training of each row."""
    found = {}
    cells = cells_of(tmp_path, CONFIG, request.param, [0], ["quant.passes=0.2"])
    for row, (cell,) in cells.items():
        path = tmp_path / "config.py"
        path.write_text(cell.config_text())
        (words,) = results.commands(cell, ["a=1"])
        options = build_parser().parse_args(words).cfg_options
        assert options[:2] == ["a=1", "quant.passes=0.2"]
        found[row] = quant_settings(finish(read_config(path, options[1:])).get("quant"))
    return found


def _parts(settings: QuantSettings) -> dict[str, Any]:
    extras = settings.refinements
    return {
        "learned scales": settings.recipe.learned,
        "distillation": extras.distill,
        "early fixing of norms (0.8 instead of 0.2)": settings.schedule.freeze_norm_after,
    }


def test_a_row_leaves_out_its_part_and_nothing_else(settings: dict[str, QuantSettings]) -> None:
    whole, none = _parts(settings[RECIPE]), _parts(settings[NOTHING])
    assert all(whole[part] != none[part] for part in WITHOUT)
    for part in WITHOUT:
        assert _parts(settings[f"without {part}"]) == whole | {part: none[part]}
        assert _parts(settings[f"only {part}"]) == none | {part: whole[part]}


def test_each_row_is_another_training_with_the_recipes_length(
    settings: dict[str, QuantSettings],
) -> None:
    assert list(settings) == list(rows())
    kinds = [repr((s.recipe, s.repair, s.schedule, s.refinements, s.training_recipe))
             for s in settings.values()]  # fmt: skip
    assert len(set(kinds)) == len(kinds)
    for each in settings.values():
        assert each.training_recipe is not None
        assert each.training_recipe.passes == 0.2


def _write(cell: results.Cell, value: float) -> None:
    cell.summary.parent.mkdir(parents=True)
    cell.summary.write_text(json.dumps({"metrics": {"mAP": value, "bbox_mAP": value / 2}}))


def test_the_table_has_each_seeds_difference_to_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = cells_of(tmp_path, CONFIG, "w4a4", [0, 1], [])
    for row, values in ((RECIPE, (0.5, 0.52)), (NOTHING, (0.4, 0.44)), ("twice the rate", (0.51,))):
        for cell, value in zip(cells[row], values, strict=False):
            _write(cell, value)
    _write(results.Cell(root=tmp_path, config=CONFIG, seed=0, column="float"), 0.6)
    monkeypatch.setattr(results, "COLUMNS", {k: v for k, v in results.COLUMNS.items()
                                             if not k.startswith("ablation")})  # fmt: skip
    page = tmp_path / "page.md"
    page.write_text("# Page\n")
    words = ["--config", str(CONFIG), "--root", str(tmp_path), "--seeds", "0", "1", "--table-only"]
    assert main([*words, "--write", str(page)]) == 0
    text = page.read_text()
    assert "| the recipe | 2 | 51.0 ± 1.4 |  | 25.5 ± 0.7 |  |" in text
    assert "| none of them | 2 | 42.0 ± 2.8 | -9.0 (-10.0, -8.0) |" in text
    assert "| twice the rate | 1 | 51.0 | +1.0 |" in text
    assert "| float | 1 | 60.0 | +10.0 |" in text
    assert "without distillation" not in text
    assert text.startswith(f"# Page\n\n{ablation.BEGIN.format(name='ssd_resnet_fpn_160, w4a4')}")
    assert "25.5" in capsys.readouterr().out


def test_a_training_that_fails_is_named_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[str] = []

    def make(cell: results.Cell, options: list[str], ranks: int, threads: int) -> bool:
        made.append(f"{cell.column} {cell.seed}")
        assert options == [f"data_root={tmp_path / 'digits'}", "a=1"]
        return cell.seed == 1

    monkeypatch.setattr(ablation, "make", make)
    words = ["--config", str(CONFIG), "--root", str(tmp_path), "--seeds", "0", "1"]
    words += ["--rows", RECIPE, NOTHING, "--data", str(tmp_path), "--cfg-options", "a=1"]
    assert main(words) == 1
    # Each seed's float detector comes before its other rows.
    wanted = ["float", "ablation w4a4 0", "ablation w4a4 1"]
    assert made == [f"{column} {seed}" for seed in (0, 1) for column in wanted]
    assert capsys.readouterr().out.count("failed: ") == 3
