"""What hooks find in a runner is what mmcv's own runners show them, at every stage."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.parallel import MMDataParallel
from mmcv.runner import build_optimizer, build_runner
from torch.utils.data import DataLoader

from dq.detector.data.datasets import dataset_of
from dq.detector.loading.training_loader import training_loader
from dq.detector.model.build import build_model
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Workplace
from dq.detector.training.train import train
from tests.detector.recording import RECORDS

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
HOOKS = [
    {"type": "RecordingHook", "name": "early", "priority": "VERY_HIGH"},
    {"type": "RecordingHook", "name": "before the step", "priority": "HIGH"},
    {"type": "RecordingHook", "name": "usual"},
    {"type": "RecordingHook", "name": "low", "priority": "LOW"},
]
RUNNERS = {
    "epochs": {"type": "EpochBasedRunner", "max_epochs": 2},
    "iterations": {"type": "IterBasedRunner", "max_iters": 8},
}
WORKFLOWS: dict[str, list[tuple[str, int]]] = {
    "train": [("train", 1)],
    "train and val": [("train", 2), ("val", 1)],
}


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


class Given(DataLoader[Any]):
    """mmcv's kind of loader with the batches of ours, epoch after epoch."""

    def __init__(self, own: Any) -> None:
        super().__init__(own.dataset, batch_size=own.samples_per_chunk)
        self.own, self.epoch = own, -1

    def __len__(self) -> int:
        return len(self.own)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self.epoch += 1
        return iter([step[0] for step in self.own.steps(self.epoch)])


def settings(tiny: Callable[..., Any], runner: str, workflow: str) -> Any:
    config = tiny(log_config__interval=2, optimizer__lr=0.01)
    config.runner = RUNNERS[runner]
    config.workflow = WORKFLOWS[workflow]
    config.custom_hooks = HOOKS
    config.optimizer_config = {"grad_clip": {"max_norm": 35, "norm_type": 2}}
    return config


def detector_and_data(config: Any) -> tuple[Any, Any]:
    seed_everything(0)
    dataset = dataset_of(config, "train")
    return build_model(config, tuple(dataset.CLASSES), initialise=True), dataset


def mmcvs(config: Any, folder: Path, loaders: list[Any]) -> list[dict[str, Any]]:
    """Run mmcv's own runner as mmdet's ``train_detector`` does, and return what was recorded."""
    RECORDS.clear()
    detector, _ = detector_and_data(config)
    model = MMDataParallel(detector, device_ids=None)
    meta = {"env_info": "", "config": "", "seed": 0, "exp_name": "tiny.py", "hook_msgs": {}}
    runner = build_runner(
        dict(config.runner),
        default_args={
            "model": model,
            "optimizer": build_optimizer(model, config.optimizer),
            "work_dir": str(folder),
            "logger": logging.getLogger("mmcvs"),
            "meta": meta,
        },
    )
    runner.register_training_hooks(
        dict(config.lr_config),
        dict(config.optimizer_config),
        None,
        config.log_config.copy(),
        None,
        custom_hooks_config=list(config.custom_hooks),
    )
    runner.run(loaders, config.workflow)
    return list(RECORDS)


def ours(config: Any, folder: Path) -> list[dict[str, Any]]:
    RECORDS.clear()
    detector, dataset = detector_and_data(config)
    place = Workplace(work_dir=folder, device=CPU)
    train(config, detector, dataset, place, seed=0, validate=False)
    return list(RECORDS)


def same(got: Any, wanted: Any) -> bool:
    """Whether two records are alike, numbers within what the order of a sum may change."""
    if isinstance(wanted, dict):
        return (
            isinstance(got, dict)
            and list(got) == list(wanted)
            and all(same(got[k], v) for k, v in wanted.items())
        )
    if isinstance(wanted, list | tuple):
        return len(got) == len(wanted) and all(map(same, got, wanted))
    if isinstance(wanted, float):
        return isinstance(got, float) and got == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    return bool(got == wanted)


@pytest.mark.parametrize("workflow", WORKFLOWS)
@pytest.mark.parametrize("runner", RUNNERS)
def test_hooks_find_what_mmcvs_own_runner_shows_them(
    runner: str, workflow: str, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    config = settings(tiny, runner, workflow)
    got = ours(config, tmp_path / "ours")
    # Losses of validation images need their boxes, which the training's pipeline loads.
    config.data.val.pipeline = config.data.train.dataset.pipeline
    loaders = [
        Given(training_loader(config, dataset_of(config, split), seed=0))
        for split, _ in zip(("train", "val"), config.workflow, strict=False)
    ]
    wanted = mmcvs(config, tmp_path / "mmcvs", loaders)
    assert [(r["stage"], r["hook"]) for r in got] == [(r["stage"], r["hook"]) for r in wanted]
    for own, theirs in zip(got, wanted, strict=True):
        for attribute, value in theirs.items():
            assert same(own[attribute], value), (
                theirs["stage"], theirs["hook"], theirs["iter"], attribute, own[attribute], value
            )  # fmt: skip
