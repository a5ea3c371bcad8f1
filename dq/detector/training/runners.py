"""mmcv's runners with exact resuming from checkpoints, and stopping on request."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch
from mmcv.runner import RUNNERS, EpochBasedRunner, IterBasedRunner, LrUpdaterHook
from mmcv.runner.iter_based_runner import IterLoader
from mmcv.runner.utils import get_host_info

from dq.detector.step.supervision import LOADING
from dq.detector.training.exact_runner import Training

log = logging.getLogger(__name__)


@RUNNERS.register_module()
class DetectorEpochRunner(Training, EpochBasedRunner):  # type: ignore[misc]
    """mmcv's EpochBasedRunner with exact checkpoints, also within an epoch."""

    counts_epochs = True

    def train(self, data_loader: Any, **_: Any) -> None:
        """Train one epoch, or the rest of it."""
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        self._switch_what_switches_once()
        self.call_hook("before_train_epoch")
        self.put_back_losses()
        first = self.position
        for number, batches in enumerate(self._steps(first), start=first):
            self._inner_iter = number
            self.train_step_(batches, number)
            self._iter += 1
            self.end_step()
        self.call_hook("after_train_epoch")
        self._epoch += 1
        self.position = 0

    def _steps(self, first: int) -> Iterator[Any]:
        return self.supervision.waiting_for(LOADING, self.data_loader.steps(self.epoch, first))

    def _switch_what_switches_once(self) -> None:
        """Call hooks that act only at the start of a certain epoch if this epoch is over already.

        mmdet's YOLOX hook ends mosaic augmentation in a certain epoch. A training that is resumed
        after this epoch would otherwise continue with mosaic.
        """
        here = self._epoch
        for hook in self.hooks:
            if isinstance(hook, LrUpdaterHook) or not hasattr(hook, "num_last_epochs"):
                continue
            then = self._max_epochs - hook.num_last_epochs - 1
            if 0 <= then < here and not getattr(hook, "has_switched", False):
                self._epoch = then
                hook.before_train_epoch(self)
                self._epoch = here
            hook.has_switched = here >= then

    @torch.no_grad()
    def val(self, data_loader: Any, **_: Any) -> None:
        """Compute the losses on validation images."""
        self.model.eval()
        self.mode = "val"
        self.data_loader = data_loader
        self.call_hook("before_val_epoch")
        batches = (batch for step in data_loader.steps(0) for batch in step)
        for number, batch in enumerate(batches):
            self._inner_iter = number
            self.validation_losses(batch)
        self.call_hook("after_val_epoch")


class Stream(IterLoader):  # type: ignore[misc]
    """A training loader in the form of mmcv's endless loader for iterations.

    ``next`` returns the ``data_batch`` of the runner. As in mmcv, the epoch is counted by the first
    step after its end.

    Args:
        loader: The training loader.
        done: Number of finished steps.
    """

    def __init__(self, loader: Any, done: int) -> None:
        self._dataloader = loader
        self._epoch, first = divmod(max(0, done - 1), len(loader))
        self.iter_loader = loader.steps(self._epoch, first + min(done, 1))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "_dataloader":
            raise AttributeError(name)
        return getattr(self._dataloader, name)

    def step(self) -> list[Any]:
        """Return the next step's micro-batches."""
        try:
            batches: list[Any] = next(self.iter_loader)
        except StopIteration:
            self._epoch += 1
            self.iter_loader = self._dataloader.steps(self._epoch, 0)
            batches = next(self.iter_loader)
        return batches

    def __next__(self) -> Any:
        batches = self.step()
        return batches[0] if len(batches) == 1 else batches


@RUNNERS.register_module()
class DetectorIterRunner(Training, IterBasedRunner):  # type: ignore[misc]
    """mmcv's IterBasedRunner with exact checkpoints after any step."""

    counts_epochs = False

    def run(self, data_loaders: Any, workflow: Any, **ignored: Any) -> None:
        """Run the workflow until all iterations are done."""
        log.info("Start running, host: %s, work_dir: %s", get_host_info(), self.work_dir)
        log.info("Hooks will be executed in the following order:\n%s", self.get_hook_info())
        log.info("workflow: %s, max: %d iters", workflow, self._max_iters)
        self.data_loader = data_loaders[0]
        self.call_hook("before_run")
        streams = [
            Stream(loader, self.iter if mode == "train" else 0)
            for loader, (mode, _) in zip(data_loaders, workflow, strict=True)
        ]
        self.call_hook("before_epoch")
        self.put_back_losses()
        while self.iter < self._max_iters:
            for stream, (mode, count) in zip(streams, workflow, strict=True):
                self._inner_iter = 0
                for _ in range(count):
                    if mode == "train" and self.iter >= self._max_iters:
                        break
                    getattr(self, mode)(stream)
        self.call_hook("after_epoch")
        self.call_hook("after_run")

    def train(self, data_loader: Any, **_: Any) -> None:
        """Train one step."""
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._epoch = data_loader.epoch
        with self.supervision.clock.phase(LOADING):
            batches = data_loader.step()
        self.train_step_(batches, self.iter % len(data_loader))
        self._inner_iter += 1
        self._iter += 1
        self.end_step()

    @torch.no_grad()
    def val(self, data_loader: Any, **_: Any) -> None:
        """Compute the losses of one step's validation images."""
        self.model.eval()
        self.mode = "val"
        self.data_loader = data_loader
        for batch in data_loader.step():
            self.validation_losses(batch)
            self._inner_iter += 1


RUNNER_OF = {
    "EpochBasedRunner": "DetectorEpochRunner",
    "IterBasedRunner": "DetectorIterRunner",
}
