"""Evaluation during training: errors do not end the training; the best checkpoint is right."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from dq.detector.hooks.evaluation import ShardedEvalHook
from tests.detector.coco_set import CLASSES, found, nothing, section, write_coco


class Runner:
    """The part of mmcv's runner that the hook needs, at the end of epoch 1."""

    counts_epochs = True

    def __init__(self, folder: Path, detector: nn.Module) -> None:
        self.epoch = self.iter = 0
        self.inner_iter = 0
        self.work_dir, self.model = str(folder), detector
        self.meta: dict[str, Any] = {}
        self.log_buffer = SimpleNamespace(output={}, ready=False)
        self.logger = SimpleNamespace(info=lambda *_: None)
        self.average = None
        self.supervision = SimpleNamespace(aside=lambda **_: contextlib.nullcontext())
        self.saved: list[str] = []

    def save_checkpoint(self, out_dir: str, filename_tmpl: str, **_: Any) -> None:
        self.saved.append(filename_tmpl)


class Detector(nn.Module):
    """Returns the given results, image by image."""

    with_mask = False

    def __init__(self, results: list[Any]) -> None:
        super().__init__()
        self.results = results
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, index: Any, **_: Any) -> Any:
        return [self.results[int(index[0])]]


def hook_and_runner(
    folder: Path, results: list[Any] | None = None, **settings: Any
) -> tuple[ShardedEvalHook, Runner]:
    from mmdet.datasets import build_dataset

    dataset = build_dataset(section(write_coco(folder)), {"test_mode": True})
    dataset.prepare_test_img = lambda index: {"index": index}
    loader = torch.utils.data.DataLoader(dataset)
    hook = ShardedEvalHook(loader, workers=0, **{"interval": 1, "metric": "bbox", **settings})
    runner = Runner(folder, Detector(results if results is not None else found(CLASSES)))
    hook.before_run(runner)
    return hook, runner


def test_metrics_are_logged_and_the_best_is_kept(tmp_path: Path) -> None:
    hook, runner = hook_and_runner(tmp_path, save_best="auto")
    hook.after_train_epoch(runner)
    assert runner.log_buffer.output["bbox_mAP"] == pytest.approx(1.0)
    assert "1.0000" in runner.log_buffer.output["bbox_mAP_copypaste"]
    assert runner.log_buffer.ready
    assert runner.saved == ["best_bbox_mAP_epoch_1.pth"]


def test_a_detector_without_detections_may_be_the_best_so_far(tmp_path: Path) -> None:
    hook, runner = hook_and_runner(tmp_path, nothing(3), save_best="bbox_mAP")
    hook.after_train_epoch(runner)
    assert runner.log_buffer.output["bbox_mAP"] == 0.0
    assert runner.meta["hook_msgs"]["best_score"] == 0.0
    assert runner.saved == ["best_bbox_mAP_epoch_1.pth"]


def test_a_metric_that_fails_does_not_end_the_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, settings in enumerate(({"metric": "proposal_fast"}, {"nonsense": 3})):
        hook, runner = hook_and_runner(tmp_path / str(number), save_best="auto", **settings)
        hook.after_train_epoch(runner)
        assert runner.saved == []
        assert not runner.log_buffer.ready
        lines = [r for r in caplog.records if "the training continues" in r.getMessage()]
        assert len(lines) == number + 1
        assert "\n" not in lines[-1].getMessage()

    hook, runner = hook_and_runner(tmp_path / "own")
    hook.dataloader.dataset.evaluate = lambda *_, **__: 1 // 0
    hook.after_train_epoch(runner)
    assert "the training continues" in caplog.records[-2].getMessage()


def test_a_missing_metric_for_save_best_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hook, runner = hook_and_runner(tmp_path, save_best="segm_mAP")
    hook.after_train_epoch(runner)
    assert runner.saved == []
    assert "save_best is segm_mAP, and there are bbox_mAP" in caplog.text


@pytest.mark.parametrize("name", ["PQ", "bbox_AP", "recall@100@0.5", "AR@1000", "bbox_mAP_s"])
def test_every_metric_of_mmdet_is_better_if_greater(name: str, tmp_path: Path) -> None:
    hook, _ = hook_and_runner(tmp_path, save_best=name)
    assert hook.rule == "greater"


def test_invalid_settings_are_refused_before_the_training(tmp_path: Path) -> None:
    for settings, said in (
        ({"interval": 0}, "positive"),
        ({"save_best": "whatever"}, "rule"),
        ({"metric": ["bbox", "segm"]}, "needs masks, but Detector finds only boxes"),
    ):
        with pytest.raises(ValueError, match=said):
            hook_and_runner(tmp_path, **settings)  # type: ignore[arg-type]


def test_keys_about_collecting_results_have_no_effect(tmp_path: Path) -> None:
    hook, runner = hook_and_runner(
        tmp_path, tmpdir="x", gpu_collect=True, broadcast_bn_buffer=False
    )
    hook.after_train_epoch(runner)
    assert runner.log_buffer.output["bbox_mAP"] == pytest.approx(1.0)
