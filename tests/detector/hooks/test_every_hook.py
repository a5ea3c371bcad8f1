"""Every hook of mmcv and mmdet runs in every kind of training, or is refused by name."""

from __future__ import annotations

import copy
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from mmcv.runner import HOOKS, build_runner
from mmdet.datasets import build_dataset
from torch import nn

from dq.detector.calibration.calibrate import calibrate
from dq.detector.data.datasets import calibration_dataset, calibration_images, dataset_of
from dq.detector.model.build import build_model
from dq.detector.model.graph import quantize_detector
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Quantization, Workplace
from dq.detector.training.train import train
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.schedule import Schedule
from tests.detector import small_set
from tests.detector.recording import RECORDS

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
KINDS = ("float", "quantized")
RUNNERS: dict[str, dict[str, Any]] = {
    "epochs": {"type": "EpochBasedRunner", "max_epochs": 2},
    "iterations": {"type": "IterBasedRunner", "max_iters": 4},
}
CALLS: list[int] = []

# These run together in one training; the other hooks have their own tests below.
TOGETHER: dict[str, dict[str, Any]] = {
    "IterTimerHook": {},
    "ClosureHook": {"fn_name": "after_train_iter", "fn": lambda runner: CALLS.append(runner.iter)},
    "SyncBuffersHook": {},
    "SyncNormHook": {"num_last_epochs": 1},
    "CheckpointHook": {"interval": 1, "filename_tmpl": "own_{}.pth", "max_keep_ckpts": 1},
    "ProfilerHook": {"activities": ["cpu"], "profile_iters": 1},
    "EmptyCacheHook": {"before_epoch": True, "after_iter": True},
    "DistSamplerSeedHook": {},
    "NumClassCheckHook": {},
    "CheckInvalidLossHook": {"interval": 1},
    "MemoryProfilerHook": {"interval": 1},
}
LOGGERS: dict[str, dict[str, Any]] = {
    "TextLoggerHook": {},
    "TensorboardLoggerHook": {},
    "WandbLoggerHook": {"log_artifact": True, "init_kwargs": {"project": "x"}},
    "MMDetWandbHook": {"num_eval_images": 0, "init_kwargs": {"project": "x"}},
    "MlflowLoggerHook": {},
    "NeptuneLoggerHook": {},
    "PaviLoggerHook": {"add_last_ckpt": True, "add_ckpt_kwargs": {"active": True}},
    "DvcliveLoggerHook": {},
    "ClearMLLoggerHook": {},
    "SegmindLoggerHook": {},
}
RATES: dict[str, dict[str, Any]] = {
    "Fixed": {},
    "Step": {"step": [1], "warmup": "exp", "warmup_iters": 2},
    "Exp": {"gamma": 0.5, "warmup": "constant", "warmup_iters": 1},
    "Poly": {"power": 2.0},
    "Inv": {"gamma": 0.5},
    "CosineAnnealing": {"min_lr_ratio": 0.1, "warmup": "linear", "warmup_iters": 3},
    "FlatCosineAnnealing": {"min_lr_ratio": 0.1, "start_percent": 0.5},
    "CosineRestart": {"periods": [2, 20], "restart_weights": [1, 0.5], "min_lr": 0.0},
    "Cyclic": {"target_ratio": (10, 1e-4)},
    "OneCycle": {"max_lr": 0.01, "total_steps": 20},
    "LinearAnnealing": {"min_lr": 0.0},
    "YOLOX": {"min_lr_ratio": 0.05, "num_last_epochs": 1, "warmup": "exp", "warmup_iters": 2},
}
MOMENTA: dict[str, dict[str, Any]] = {
    "Step": {"step": [1]},
    "CosineAnnealing": {"min_momentum": 0.5},
    "LinearAnnealing": {"min_momentum": 0.5},
    "Cyclic": {},
    "OneCycle": {},
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "OptimizerHook": {"detect_anomalous_params": True},
    "Fp16OptimizerHook": {"loss_scale": 512.0},
    "GradientCumulativeOptimizerHook": {"cumulative_iters": 2},
    "GradientCumulativeFp16OptimizerHook": {"cumulative_iters": 2, "loss_scale": 512.0},
}
AVERAGES = ("EMAHook", "ExpMomentumEMAHook", "LinearMomentumEMAHook")
# mmdet's own runner fails for these too, except for RFSearchHook.
REFUSED = {
    "SyncRandomSizeHook": "needs update_dynamic_scale, which RepeatDataset lacks",
    "SetEpochInfoHook": "needs set_epoch, which SingleStageDetector lacks",
    "RFSearchHook": "changes the network during training",
}
IN_TESTS_OF_THEIR_OWN = {"YOLOXModeSwitchHook", *AVERAGES, *OPTIMIZERS, *REFUSED}


def test_no_hook_is_missing() -> None:
    covered = {*TOGETHER, *LOGGERS, *IN_TESTS_OF_THEIR_OWN}
    covered |= {f"{name}LrUpdaterHook" for name in RATES}
    covered |= {f"{name}MomentumUpdaterHook" for name in MOMENTA}
    theirs = {
        name for name, kind in HOOKS.module_dict.items()
        if kind.__module__.partition(".")[0] in ("mmcv", "mmdet")
    }  # fmt: skip
    assert theirs == covered


@pytest.fixture(autouse=True)
def no_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stand-ins for packages that are not installed, or that would connect to a server."""
    names = ("mlflow", "neptune", "pavi", "dvclive", "clearml", "segmind", "wandb")
    found = {name: MagicMock(name=name) for name in names}
    for name, package in found.items():
        monkeypatch.setitem(sys.modules, name, package)
    found["wandb"].__version__ = "0.31.0"
    monkeypatch.setitem(sys.modules, "mlflow.pytorch", found["mlflow"].pytorch)
    monkeypatch.setitem(sys.modules, "neptune.new", found["neptune"].new)
    found["board"] = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", found["board"])
    memory = SimpleNamespace(available=2e9, used=1e9, percent=33.0, total=3e9)
    psutil = SimpleNamespace(virtual_memory=lambda: memory, swap_memory=lambda: memory)
    monkeypatch.setitem(sys.modules, "psutil", psutil)
    usage = SimpleNamespace(memory_usage=lambda: [1.0])
    monkeypatch.setitem(sys.modules, "memory_profiler", usage)
    return SimpleNamespace(**found)


@pytest.fixture(scope="module")
def parts(tiny: Callable[..., Any]) -> SimpleNamespace:
    """A float detector and one with ranges, with their data set; all tests train the same ones."""
    config = tiny(optimizer__lr=1e-3, log_config__interval=2)
    seed_everything(0)
    dataset = dataset_of(config, "train")
    config.data.train_dataloader.samples_per_gpu = 2
    dataset.dataset.data_infos, dataset.flag = dataset.dataset.data_infos[:8], dataset.flag[:8]
    dataset._ori_len = 8
    plain, rounded = (
        build_model(config, tuple(dataset.CLASSES), initialise=True) for _ in range(2)
    )
    recipe = Recipe()
    graph = quantize_detector(rounded, recipe)
    images = calibration_images(calibration_dataset(config), num_images=4, batch_size=4, seed=0)
    calibrate(rounded, graph, images, CPU)
    quantization = Quantization(graph=graph, recipe=recipe, schedule=Schedule())
    return SimpleNamespace(
        config=config, dataset=dataset, detectors={"float": plain, "quantized": rounded},
        quantization=quantization,
    )  # fmt: skip


def run(
    parts: SimpleNamespace, folder: Path, kind: str, runner: str, *, fresh: bool = False,
    dataset: Any = None, **changes: Any,
) -> nn.Module:  # fmt: skip
    """Train a few steps and return the detector."""
    RECORDS.clear()
    CALLS.clear()
    config = copy.deepcopy(parts.config)
    config.runner = dict(RUNNERS[runner])
    for name, value in changes.items():
        config[name] = value
    detector = parts.detectors[kind]
    return train(
        config, copy.deepcopy(detector) if fresh else detector, dataset or parts.dataset,
        Workplace(work_dir=folder, device=CPU), seed=0, validate=False,
        task=parts.quantization if kind == "quantized" else None,
    ).detector  # fmt: skip


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("kind", KINDS)
def test_hooks_and_loggers_that_run_together(
    kind: str, runner: str, parts: SimpleNamespace, packages: SimpleNamespace, tmp_path: Path
) -> None:
    by_epoch = runner == "epochs"
    hooks = [{"type": name, **settings} for name, settings in TOGETHER.items()]
    for hook in hooks:
        if hook["type"] in ("CheckpointHook", "ProfilerHook"):
            hook["by_epoch"] = by_epoch
    loggers = [{"type": name, **settings} for name, settings in LOGGERS.items()]
    run(parts, tmp_path, kind, runner, custom_hooks=hooks,
        log_config={"interval": 2, "hooks": loggers})  # fmt: skip
    steps = 8 if by_epoch else 4
    assert list(range(steps)) == CALLS
    assert [p.name for p in tmp_path.glob("own_*.pth")] == [f"own_{2 if by_epoch else 4}.pth"]
    lines = steps // 2
    calls = packages.mlflow.log_metrics.call_args_list
    logged = [call.args[0] for call in calls if "train/loss" in call.args[0]]
    assert len(logged) == lines
    for tags in logged:
        assert tags["train/loss"] > 0
        assert tags["train/loss_cls"] > 0
        assert tags["learning_rate"] > 0
        assert tags["momentum"] == pytest.approx(0.9)
    assert [call.kwargs["step"] for call in calls] == list(range(2, steps + 1, 2))
    assert [c.kwargs["step"] for c in packages.wandb.log.call_args_list] == [
        step for step in range(2, steps + 1, 2) for _ in range(2)
    ]
    board = packages.board.SummaryWriter.return_value
    assert sum(c.args[0] == "train/loss" for c in board.add_scalar.call_args_list) == lines
    report = packages.clearml.Task.init.return_value.get_logger.return_value.report_scalar
    assert sum(c.args[0] == "train/loss" for c in report.call_args_list) == lines
    neptune = packages.neptune.new.init.return_value
    assert [c.args[0] for c in neptune.__getitem__.call_args_list].count("train/loss") == lines
    assert packages.segmind.utils.logging_utils.try_mlflow_log.call_count == lines
    assert packages.pavi.SummaryWriter.return_value.add_scalars.call_count == lines
    live = packages.dvclive.Live.return_value
    # By epoch it logs the results of an evaluation, and there is none here.
    assert live.set_step.call_count == (0 if by_epoch else lines)
    snapshots = packages.pavi.SummaryWriter.return_value.add_snapshot_file.call_args_list
    assert Path(snapshots[-1].kwargs["snapshot_file_path"]).is_file()
    if by_epoch:
        # mmdet's hook uses the last epoch's checkpoint, which must exist already.
        added = packages.wandb.Artifact.return_value.add_file.call_args_list
        assert "epoch_2.pth" in [Path(c.args[0]).name for c in added]


class Toy(nn.Module):
    """Runs in mmcv's own runner without training anything."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def train_step(self, batch: Any, optimizer: Any, **_: Any) -> dict[str, Any]:
        return {"loss": self.weight.square(), "log_vars": {}, "num_samples": 1}


def of_mmcv(runner: str, rate: dict[str, Any], momentum: dict[str, Any] | None) -> Any:
    """Return the rates and momenta of every step under mmcv's own runner."""
    RECORDS.clear()
    model = Toy()
    model.module = Toy()
    own = build_runner(
        dict(RUNNERS[runner]),
        default_args={
            "model": model, "meta": {}, "logger": logging.getLogger("toy"),
            "optimizer": torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        },
    )  # fmt: skip
    own.register_training_hooks(
        dict(rate), {}, None, None, None if momentum is None else dict(momentum),
        custom_hooks_config=[{"type": "RecordingHook"}],
    )  # fmt: skip
    own.run([torch.utils.data.DataLoader([0] * 4)], [("train", 1)])
    return rates()


def rates() -> list[Any]:
    return [record["rates"] for record in RECORDS if record["stage"] == "after_train_iter"]


@pytest.mark.parametrize("number", range(len(RATES)))
def test_rates_and_momenta_are_those_of_mmcvs_own_runner(
    number: int, parts: SimpleNamespace, tmp_path: Path
) -> None:
    policy, settings = list(RATES.items())[number]
    rate = {"policy": policy, **settings}
    momentum = None
    if number < len(MOMENTA):
        name, settings = list(MOMENTA.items())[number]
        momentum = {"policy": name, **settings}
    for kind, runner in zip(KINDS, RUNNERS, strict=True):
        wanted = of_mmcv(runner, rate, momentum)
        run(parts, tmp_path / kind, kind, runner, lr_config=dict(rate),
            momentum_config=None if momentum is None else dict(momentum),
            custom_hooks=[{"type": "RecordingHook"}])  # fmt: skip
        got = rates()
        assert len(got) == len(wanted)
        for own, theirs in zip(got, wanted, strict=True):
            for index in (0, 1):
                assert own[index][0] == pytest.approx(theirs[index][0], rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_hooks_step(name: str, kind: str, parts: SimpleNamespace, tmp_path: Path) -> None:
    detector = parts.detectors[kind]
    before = detector.bbox_head.cls_convs[0][0].weight.detach().clone()
    run(parts, tmp_path, kind, "iterations", optimizer_config={"type": name, **OPTIMIZERS[name]},
        custom_hooks=[{"type": "RecordingHook"}])  # fmt: skip
    assert not torch.equal(before, detector.bbox_head.cls_convs[0][0].weight)
    batches = [r["batch"] for r in RECORDS if r["stage"] == "before_train_iter"]
    assert len(batches) == 4
    # Only with several micro-batches per step, a step has a list of them.
    assert isinstance(batches[0], tuple) == name.startswith("GradientCumulative")


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("name", AVERAGES)
def test_averages(name: str, runner: str, parts: SimpleNamespace, tmp_path: Path) -> None:
    detector = run(parts, tmp_path, "float", runner, fresh=True, custom_hooks=[{"type": name}])
    assert all(p.isfinite().all() for p in detector.parameters())
    if runner == "iterations":
        run(parts, tmp_path / "quantized", "quantized", runner, custom_hooks=[{"type": name}])


@pytest.mark.parametrize("kind", KINDS)
def test_yolox_switches_its_data_and_its_loss(
    kind: str, parts: SimpleNamespace, digits: Path, tmp_path: Path
) -> None:
    for name in RUNNERS:
        dataset = build_dataset(small_set.mixed(digits))
        detector = parts.detectors[kind]
        detector.bbox_head.use_l1 = False
        run(parts, tmp_path / name, kind, name, dataset=dataset,
            custom_hooks=[{"type": "YOLOXModeSwitchHook", "num_last_epochs": 1}])  # fmt: skip
        switched = name == "epochs"
        assert detector.bbox_head.use_l1 == switched
        assert bool(dataset._skip_type_keys) == switched


@pytest.mark.parametrize("name", REFUSED)
def test_hooks_that_cannot_work_are_refused_before_the_first_step(
    name: str, parts: SimpleNamespace, tmp_path: Path
) -> None:
    settings = {"config": {"search": {"num_branches": 2}}} if name == "RFSearchHook" else {}
    with pytest.raises(ValueError, match=REFUSED[name]):
        run(parts, tmp_path, "float", "epochs", custom_hooks=[{"type": name, **settings}])
    with pytest.raises(ValueError, match=r"custom_hooks: .*would run the optimizer a second time"):
        run(parts, tmp_path, "float", "epochs", custom_hooks=[{"type": "OptimizerHook"}])
    assert not list(tmp_path.glob("*.pth"))


def test_set_epoch_info_reaches_a_detector_that_needs_it(
    parts: SimpleNamespace, tmp_path: Path
) -> None:
    epochs: list[int] = []
    detector = parts.detectors["float"]
    detector.__dict__["set_epoch"] = epochs.append
    try:
        run(parts, tmp_path, "float", "epochs", custom_hooks=[{"type": "SetEpochInfoHook"}])
    finally:
        del detector.__dict__["set_epoch"]
    assert epochs == [0, 1]
