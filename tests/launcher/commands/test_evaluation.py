"""Evaluation of masks, without detections, with a failing metric; options of mmdet's test.py."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmdet.datasets import DATASETS

from dq.detector.data.voc_folder import VOCFolderDataset
from tests.launcher.conftest import Launch, on_ranks
from tests.launcher.failures.test_errors import only_error

ORDER = ("high", "low", "middle")


@DATASETS.register_module(force=True)
class FailsToEvaluate(VOCFolderDataset):
    """Its metric raises an unexpected error."""

    def evaluate(self, results: Any, *args: Any, **kwargs: Any) -> Any:
        """Raise an error."""
        raise OverflowError("too large")


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a small Mask R-CNN on files that list the categories in another order."""
    from dq.data.tiny_coco import write_tiny_coco
    from dq.detector.survey.tiny_config import tiny_config

    folder = tmp_path_factory.mktemp("masks")
    data = write_tiny_coco(folder / "data")
    for file in data.glob("*.json"):
        content = json.loads(file.read_text())
        content["categories"].sort(key=lambda category: ORDER.index(category["name"]))
        file.write_text(json.dumps(content))
    source = Path(mmdet.__file__).parent / ".mim/configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py"
    path = folder / "masks.py"
    path.write_text(tiny_config(source, data) + "\nload_from = None\n")
    return path


def printed(text: str) -> dict[str, float]:
    """Return the metrics that ``launcher eval`` prints."""
    return {k: float(v) for k, v in re.findall(r"^(\w*mAP\w*) (\S+)$", text, re.MULTILINE)}


@pytest.mark.slow
def test_masks_are_trained_and_evaluated_on_two_ranks(masks: Path, tmp_path: Path) -> None:
    options = [
        "evaluation.metric=[bbox,segm]",
        "evaluation.classwise=True",
        "data.workers_per_gpu=0",
    ]
    done = on_ranks(2, "train", masks, "--work-dir", tmp_path, "--cfg-options", *options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    # Once on the console, because the file and the config disagree.
    assert done.stdout.count("lists the classes as low, middle, high, the annotations") == 1
    path = tmp_path / "float/float.pth"
    meta = torch.load(path, weights_only=False)["meta"]
    assert tuple(meta["CLASSES"]) == ORDER
    summary = json.loads((tmp_path / "float/summary.json").read_text())
    assert {"bbox_mAP", "segm_mAP"} <= set(summary["metrics"])
    assert set(summary["classes"]) <= set(ORDER)

    words = ("eval", masks, "--checkpoint", path, "--cfg-options", options[2])
    asked = ("--eval", "bbox", "segm", "--eval-options", "classwise=True")
    kept = ("--out", tmp_path / "all.pkl", "--show-dir", tmp_path / "painted")
    alone = on_ranks(1, *words, *asked, *kept, "--work-dir", tmp_path / "alone")
    both = on_ranks(2, *words, *asked, "--work-dir", tmp_path / "both")
    assert printed(alone.stdout) == printed(both.stdout) == summary["metrics"], alone.stderr
    assert re.search(r"\| high +\| \S+ +\| low +\| \S+ +\| middle +\|", alone.stdout)
    results = pickle.loads((tmp_path / "all.pkl").read_bytes())
    assert len(results) == 4
    assert all(isinstance(result, tuple) for result in results)
    assert len(list((tmp_path / "painted").glob("*.png"))) == 4

    formatted = on_ranks(2, *words, "--format-only", "--work-dir", tmp_path / "formatted")
    assert formatted.returncode == 0, formatted.stderr
    found = tmp_path / "formatted/eval/formatted/results.segm.json"
    assert str(found) in formatted.stdout
    assert isinstance(json.loads(found.read_text()), list)


@pytest.mark.slow
def test_no_evaluation_loses_a_training(launch: Launch, config: Path, tmp_path: Path) -> None:
    options = [f"data.{split}.type=FailsToEvaluate" for split in ("val", "test")]
    code, out, err = launch(
        "train", config, "--work-dir", tmp_path, "--wandb", "disabled", "--cfg-options", *options
    )
    assert code == 1
    assert "no evaluation, the training continues: " in out
    path = tmp_path / "float/float.pth"
    assert path.is_file()
    assert len(err.strip().splitlines()) == 1, err
    assert "too large" in err
    assert f"{path} is written" in err
    code, out, _ = launch(
        "eval",
        config,
        "--checkpoint",
        path,
        "--work-dir",
        tmp_path / "later",
        "--wandb",
        "disabled",
    )
    assert code == 0
    assert re.search(r"^mAP \S+$", out, re.MULTILINE)


@pytest.mark.slow
def test_nothing_found_is_zero_in_every_stage_and_in_the_gate(
    launch: Launch, config: Path, untrained: Path, tmp_path: Path
) -> None:
    none = ("--cfg-options", "model.test_cfg.score_thr=2.0", "evaluation.metric=[mAP,bbox]")
    shared = ("--work-dir", tmp_path, "--wandb", "disabled", *none)
    code, out, err = launch("calibrate", config, "--checkpoint", untrained, *shared)
    assert code == 0, err
    assert "mAP 0.00 %" in out
    calibrated = tmp_path / "calibrated/calibrated.pth"
    assert (tmp_path / "calibrated/predictions.json.gz").is_file()
    code, out, err = launch("eval", config, "--checkpoint", calibrated, *shared)
    assert code == 0, err
    assert printed(out)["mAP"] == printed(out)["bbox_mAP"] == 0.0
    for decode in ("none", "nms"):
        words = ("export", config, "--checkpoint", calibrated, "--decode", decode, *shared)
        assert launch(*words)[0] == 0
    for model in (tmp_path / "export").glob("*.onnx"):
        code, out, err = launch("eval", "--backend", "onnxruntime", model, *shared)
        assert code == 0, err
        assert "0 fake-quantized, 0 onnxruntime, 0 alike" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "results.json"), "must end with .pkl"),
        (("--eval", "segm"), "metric 'segm' does not exist for VOCFolderDataset"),
        (("--eval-options", "classwise=True"), "classwise is not a setting of VOCFolderDataset"),
        (("--eval-options", "iou_thr"), "is not of the form key=value"),
        (("--eval", "mAP", "--format-only"), "exclude each other"),
        (("--format-only",), "VOCFolderDataset has no format of results"),
        (("--cfg-options", "evaluation.metrik=mAP"), "evaluation.metrik"),
    ],
)
def test_options_that_make_no_sense_are_named(
    words: tuple[str, ...],
    said: str,
    launch: Launch,
    config: Path,
    untrained: Path,
    tmp_path: Path,
) -> None:
    shared = ("--checkpoint", untrained, "--work-dir", tmp_path, "--wandb", "disabled")
    assert said in only_error(launch("eval", config, *shared, *words))


def test_a_config_beside_an_exported_model_may_be_json_or_yaml(launch: Launch) -> None:
    for config in ("c.json", "c.yaml", "c.py"):
        for words in ((config, "no.onnx"), ("no.onnx", config)):
            error = only_error(launch("eval", "--backend", "onnxruntime", *words))
            assert "no.onnx" in error
            assert "needs one MODEL.onnx" not in error


def test_options_of_torch_are_refused_for_exported_models(launch: Launch, tmp_path: Path) -> None:
    for option in (("--out", "x.pkl"), ("--show-dir", "x"), ("--format-only",)):
        error = only_error(launch("eval", "--backend", "onnxruntime", "model.onnx", *option))
        assert f"{option[0]} is for a checkpoint in torch" in error
