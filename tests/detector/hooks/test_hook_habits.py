"""Common actions of custom hooks on a runner work as in mmcv."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv.runner import HOOKS, Hook

from dq.detector.data.datasets import dataset_of
from dq.detector.model.build import build_model
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Workplace
from dq.detector.training.train import train
from dq.dist.files.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow
SEEN: list[Any] = []


@HOOKS.register_module(force=True)
class HabitsHook(Hook):  # type: ignore[misc]
    """Runs before the optimizer's hook: reads batches and changes the loss."""

    def after_train_iter(self, runner: Any) -> None:
        SEEN.append((runner.iter, float(runner.outputs["log_vars"]["loss"])))
        runner.outputs["loss"] = 0.0 * runner.outputs["loss"]
        loader = getattr(runner.data_loader, "_dataloader", runner.data_loader)
        other = next(iter(loader))
        assert other.keys() == runner.data_batch.keys()
        assert loader.batch_size == len(other["img"].data[0])
        if not runner.max_epochs and runner.iter == 2:
            runner._max_iters = 3


@HOOKS.register_module(force=True)
class UploadHook(Hook):  # type: ignore[misc]
    """Runs after mmcv's CheckpointHook: reads the file."""

    def after_train_epoch(self, runner: Any) -> None:
        path = Path(runner.work_dir, f"epoch_{runner.epoch + 1}.pth")
        assert load_checkpoint(path)["meta"]["epoch"] == runner.epoch + 1
        runner.save_checkpoint(runner.work_dir, "mine_{}.pth", create_symlink=False)

    def after_train_iter(self, runner: Any) -> None:
        if not runner.max_epochs:
            path = Path(runner.work_dir, f"iter_{runner.iter + 1}.pth")
            assert load_checkpoint(path)["meta"]["iter"] == runner.iter + 1


@HOOKS.register_module(force=True)
class BrokenHook(Hook):  # type: ignore[misc]
    """Raises the given error."""

    def __init__(self, error: str) -> None:
        self.error = error

    def before_train_iter(self, runner: Any) -> None:
        if self.error == "asserts":
            assert runner.iter < 0, "there is no such iteration"
        elif self.error == "asserts in silence":
            raise AssertionError
        elif self.error == "imports":
            raise ImportError("please install nothing")
        else:
            runner.no_such_thing  # noqa: B018


def run(config: Any, folder: Path) -> Any:
    SEEN.clear()
    seed_everything(0)
    dataset = dataset_of(config, "train")
    detector = build_model(config, tuple(dataset.CLASSES), initialise=True)
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    train(
        config, detector, dataset, Workplace(work_dir=folder, device=torch.device("cpu")),
        seed=0, validate=False,
    )  # fmt: skip
    return before, detector


def test_hooks_may_change_the_loss_and_read_batches_and_checkpoints(
    tiny: Callable[..., Any], tmp_path: Path
) -> None:
    for runner in ({"type": "EpochBasedRunner", "max_epochs": 1},
                   {"type": "IterBasedRunner", "max_iters": 6}):  # fmt: skip
        config = tiny(optimizer__lr=0.1, optimizer__weight_decay=0.0)
        config.runner = runner
        config.checkpoint_config = {"interval": 1}
        config.custom_hooks = [
            {"type": "HabitsHook", "priority": "HIGH"}, {"type": "UploadHook", "priority": "LOW"},
        ]  # fmt: skip
        folder = tmp_path / runner["type"]  # type: ignore[operator]
        before, detector = run(config, folder)
        # A loss of zero changes no weight.
        after = dict(detector.named_parameters())
        assert all(torch.equal(after[name], value) for name, value in before.items())
        by_epoch = "max_epochs" in runner
        assert [step for step, _ in SEEN] == list(range(6 if by_epoch else 3))
        assert all(loss > 0 for _, loss in SEEN)
        if by_epoch:
            assert "optimizer" in load_checkpoint(folder / "mine_1.pth")


@pytest.mark.parametrize(
    ("error", "kind", "line"),
    [
        ("asserts", ValueError, "BrokenHook fails in before_train_iter: there is no such iter"),
        ("asserts in silence", ValueError, "AssertionError at tests/detector/hooks/test_h"),
        ("imports", ValueError, "BrokenHook fails in before_train_iter: please install nothing"),
        ("attribute", RuntimeError, "BrokenHook fails in before_train_iter: .*no_such_thing"),
    ],
)
def test_an_error_in_a_hook_names_it(
    error: str, kind: type[Exception], line: str, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    config = tiny()
    config.custom_hooks = [{"type": "BrokenHook", "error": error}]
    with pytest.raises(kind, match=line):
        run(config, tmp_path)
