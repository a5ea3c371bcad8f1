"""``launcher quantize``: one command meets a limit, on any number of ranks, without labels too."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, on_ranks


def pareto(folder: Path) -> Any:
    """Return the table without the measured times."""
    found = json.loads((folder / "quantize/pareto.json").read_text())
    for row in found["rows"]:
        del row["times_as_fast"]
    return found


def words(config: Path, checkpoint: Path, images: Path, work_dir: Path) -> list[object]:
    """Return a search that has to raise quantizers and ends soon."""
    return [
        *("quantize", config, "--checkpoint", checkpoint, "--images", images / "JPEGImages"),
        *("--max-drop", 0, "--max-raised", 2, "--work-dir", work_dir, "--threads", 1),
        *("--cfg-options", "quant.rounding_steps=2", "quant.repair_images=4"),
    ]


@pytest.fixture(scope="module")
def searched(
    config: Path, float_checkpoint: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str, int]:
    """A search on one rank, on images without labels."""
    folder = tmp_path_factory.mktemp("search")
    done = on_ranks(1, *words(config, float_checkpoint, digits, folder))
    return folder, done.stdout, done.stderr, done.returncode


@pytest.mark.slow
def test_the_table_has_all_candidates_and_says_when_the_limit_is_missed(
    searched: tuple[Path, str, str, int],
) -> None:
    folder, out, err, code = searched
    found = pareto(folder)
    names = [row["name"] for row in found["rows"]]
    assert names[:3] == ["as configured", "as configured, without bias", "weighted mse + bias"]
    assert any("adaround" in name for name in names)
    assert [row["num_raised"] for row in found["rows"]][-2:] == [1, 2]
    assert found["float"] == pytest.approx(100.0), "measured against its own boxes"
    (chosen,) = [row for row in found["rows"] if row["chosen"]]
    assert chosen["on_front"]
    timed = json.loads((folder / "quantize/pareto.json").read_text())["rows"]
    assert [row["times_as_fast"] is not None for row in timed] == [r["on_front"] for r in timed]
    if chosen["drop"] > 0:
        assert code == 1, err
        assert "no candidate is within 0 points of float" in err
    else:
        assert code == 0, err
    for name in names:
        assert f"| {name} |" in out
    assert (folder / "quantize/pareto.png").is_file()
    # Only the chosen candidate's checkpoint is kept.
    assert len(list((folder / "quantize/candidates").glob("*.pth"))) == 1


def recipe_of_section(
    folder: Path, config: Path, checkpoint: Path, digits: Path, launch: Launch
) -> Any:
    """Calibrate with the section that a search printed; return the recipe, which is the search's.

    Args:
        folder: Of the search; the config and the calibration are written there too.
        config: Without the section.
        checkpoint: The float checkpoint.
        digits: The data set of the search.
        launch: Runs a command.
    """
    own = folder / "own.py"
    text = (folder / "quantize/quant_section.py").read_text()
    section = re.sub(r"quant = \{", "quant = {'_delete_': True, ", text, count=1)
    own.write_text(f"_base_ = [{str(config)!r}]\n{section}")
    code, _, err = launch(
        *("calibrate", own, "--checkpoint", checkpoint, "--images", digits / "JPEGImages"),
        *("--work-dir", folder, "--threads", 1),
    )
    assert code == 0, err
    found, again = (
        load_checkpoint(folder / path)["quantization"]
        for path in ("quantize/quantize.pth", "calibrated/calibrated.pth")
    )
    assert found["digest"] == again["digest"]
    assert found["recipe"] == again["recipe"]
    return again["recipe"]


@pytest.mark.slow
def test_the_printed_section_calibrates_the_same_detector(
    searched: tuple[Path, str, str, int],
    config: Path,
    float_checkpoint: Path,
    digits: Path,
    launch: Launch,
) -> None:
    folder = searched[0]
    assert (folder / "quantize/quant_section.py").read_text() in searched[1]
    recipe = recipe_of_section(folder, config, float_checkpoint, digits, launch)
    (chosen,) = [row for row in pareto(folder)["rows"] if row["chosen"]]
    assert len(recipe["raised"]) == chosen["num_raised"]


@pytest.mark.slow
def test_for_openvino_zero_points_are_left_out_where_the_limit_allows_it(
    config: Path, float_checkpoint: Path, digits: Path, launch: Launch, tmp_path: Path
) -> None:
    code, _, err = launch(
        *("quantize", config, "--checkpoint", float_checkpoint, "--images", digits / "JPEGImages"),
        *("--max-drop", 99, "--target", "openvino", "--work-dir", tmp_path, "--threads", 1),
    )
    assert code == 0, err
    names = [row["name"] for row in pareto(tmp_path)["rows"]]
    assert names == ["no zero points", "no zero points, without bias"]
    recipe = recipe_of_section(tmp_path, config, float_checkpoint, digits, launch)
    assert (recipe["target"], recipe["zero_points"]) == ("openvino", False)


@pytest.mark.slow
def test_three_ranks_find_what_one_rank_finds(
    searched: tuple[Path, str, str, int],
    config: Path,
    float_checkpoint: Path,
    digits: Path,
    tmp_path: Path,
) -> None:
    done = on_ranks(3, *words(config, float_checkpoint, digits, tmp_path))
    assert done.returncode == searched[3], done.stderr
    assert pareto(tmp_path) == pareto(searched[0])


@pytest.mark.slow
def test_a_search_that_is_started_again_calibrates_nothing_twice(
    searched: tuple[Path, str, str, int],
    config: Path,
    float_checkpoint: Path,
    digits: Path,
    launch: Launch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, before = searched[0], pareto(searched[0])

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("calibrated again")

    monkeypatch.setattr("dq.detector.search.trials.calibration_of", refuse)
    code, _, err = launch(*words(config, float_checkpoint, digits, folder))
    assert code == searched[3], err
    assert pareto(folder) == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--max-drop", "much"), "'much' is not a number of points such as 0.5"),
        (("--max-drop", -1), "is not a number of points"),
        (("--max-drop", 1, "--budget", "soon"), "'soon' is not a time; give 90s, 20m or 1.5h"),
        (("--max-drop", 1, "--target", "onxruntime"), "did you mean onnxruntime?"),
        (("--max-drop", 1, "--images", "nowhere"), "nowhere is not a folder"),
        (("--max-drop", 1, "--metric", "speed"), "there is no metric speed; there are "),
        (("--max-drop", 1, "--max-raised", -1), "'-1' is not a number of quantizers such as 5"),
        (("--max-drop", 1, "--max-raised", "few"), "'few' is not a number of quantizers"),
        (("--max-drop", 1, "--budget", "0s"), "--budget ended before the first candidate was"),
    ],
)
def test_wrong_options_are_one_line(
    options: tuple[object, ...],
    said: str,
    config: Path,
    untrained: Path,
    launch: Launch,
    tmp_path: Path,
) -> None:
    code, _, err = launch(
        "quantize", config, "--checkpoint", untrained, "--work-dir", tmp_path, *options
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line


@pytest.mark.parametrize("metric", [(), ("--metric", "AP50")])
def test_a_metric_of_which_nothing_can_be_lost_is_refused(
    metric: tuple[str, ...], config: Path, untrained: Path, launch: Launch, tmp_path: Path
) -> None:
    # The detector finds nothing at all: every candidate would be within the limit.
    code, _, err = launch(
        *("quantize", config, "--checkpoint", untrained, "--work-dir", tmp_path, *metric),
        *("--max-drop", 1, "--cfg-options", "model.test_cfg.score_thr=0.999"),
    )
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert " is 0.00 % on the " in line
    assert "so nothing can be lost" in line
    assert not (tmp_path / "quantize/quantize.pth").exists()


@pytest.mark.slow
def test_a_quantized_checkpoint_is_refused(
    searched: tuple[Path, str, str, int], config: Path, launch: Launch, tmp_path: Path
) -> None:
    checkpoint = searched[0] / "quantize/quantize.pth"
    code, _, err = launch(
        *("quantize", config, "--checkpoint", checkpoint, "--max-drop", 1, "--work-dir", tmp_path)
    )
    assert code == 2
    assert "quantize.pth is quantized; a search needs a float checkpoint" in err


def test_images_in_which_nothing_is_found_are_refused(
    config: Path,
    untrained: Path,
    digits: Path,
    launch: Launch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("launcher.stages.unlabelled.confident_boxes", lambda *_: {})
    code, _, err = launch(
        *("calibrate", config, "--checkpoint", untrained, "--work-dir", tmp_path),
        *("--images", digits / "JPEGImages"),
    )
    assert code == 2
    assert "float.pth finds nothing in the images of" in err


@pytest.mark.slow
def test_a_training_without_annotations_brings_the_detector_nearer_to_float(
    config: Path, float_checkpoint: Path, digits: Path, launch: Launch, tmp_path: Path
) -> None:
    # Only images: a training that looks for annotations ends with an error.
    images = tmp_path / "photos"
    shutil.copytree(digits / "JPEGImages", images)
    own = tmp_path / "own.py"
    own.write_text(
        f"_base_ = [{str(config)!r}]\n"
        "quant = dict(weight=dict(bits=4),\n"
        "    training={'runner.max_epochs': 4, 'optimizer.lr': 3e-4})\n"
        # For a pipeline with mosaic, which photographs do not have.
        "custom_hooks = [dict(type='YOLOXModeSwitchHook', num_last_epochs=1)]\n"
        "data_root = '/nowhere'\n"
    )
    done = on_ranks(
        2,
        *("qat", own, "--checkpoint", float_checkpoint, "--images", images),
        *("--work-dir", tmp_path / "work", "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    rows = [
        json.loads(line) for line in (tmp_path / "work/qat/metrics.jsonl").read_text().splitlines()
    ]
    losses = [row for row in rows if "loss_distill" in row]
    assert losses
    assert not any("loss_cls" in row for row in rows), "the detector's own losses need annotations"
    assert losses[-1]["loss_distill"] < losses[0]["loss_distill"]
    # A training is not resumed on other photographs without a word.
    (images / "new.jpg").write_bytes(next(images.glob("*.jpg")).read_bytes())
    code, _, err = launch(
        *("qat", own, "--checkpoint", float_checkpoint, "--images", images, "--resume"),
        *("--work-dir", tmp_path / "work", "--threads", 1),
    )
    assert code == 2, err
    assert "made with other settings: data.train.photographs" in err
