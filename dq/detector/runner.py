"""mmcv's runners: they go on exactly where a checkpoint was written, and stop when asked to."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmcv.runner import RUNNERS, EpochBasedRunner, IterBasedRunner, LrUpdaterHook

from dq.detector.training import Training

log = logging.getLogger(__name__)


@RUNNERS.register_module()
class DetectorEpochRunner(Training, EpochBasedRunner):  # type: ignore[misc]
    """mmcv's EpochBasedRunner with exact checkpoints in the middle of an epoch too."""

    counts_epochs = True

    def train(self, data_loader: Any, **_: Any) -> None:
        """Train one epoch, or what is left of it."""
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        self._switch_what_switches_once()
        self.call_hook("before_train_epoch")
        self.put_back_losses()
        first = self.position
        for number, batches in enumerate(self._steps(first), start=first):
            self.train_step_(batches, number)
        self.call_hook("after_train_epoch")
        self._epoch += 1
        self.position = 0

    def _steps(self, first: int) -> Iterator[Any]:
        return self.supervision.waiting_for(
            "loading data", self.data_loader.steps(self.epoch, first)
        )

    def _switch_what_switches_once(self) -> None:
        """Let hooks that act at the beginning of one epoch only act when it lies behind already.

        mmdet's YOLOX hook ends mosaic in one certain epoch, and a training resumed after it would
        go on with mosaic.
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

    def val(self, data_loader: Any, **_: Any) -> None:
        """Compute the losses on validation images."""
        self.model.eval()
        self.mode = "val"
        self.data_loader = data_loader
        self.call_hook("before_val_epoch")
        for number, batches in enumerate(data_loader.steps(0)):
            self.validation_losses(batches, number)
        self.call_hook("after_val_epoch")


class _Stream:
    """A loader as one endless sequence of steps.

    Args:
        loader: Of steps.
        done: Steps that were taken before.
    """

    def __init__(self, loader: Any, done: int) -> None:
        self.loader = loader
        self.epoch, self.first = divmod(done, len(loader))
        self.steps = loader.steps(self.epoch, self.first)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return next(self.steps)
        except StopIteration:
            self.epoch += 1
            self.steps = self.loader.steps(self.epoch, 0)
            return next(self.steps)


@RUNNERS.register_module()
class DetectorIterRunner(Training, IterBasedRunner):  # type: ignore[misc]
    """mmcv's IterBasedRunner with exact checkpoints after any step."""

    counts_epochs = False

    def run(self, data_loaders: Any, workflow: Any, **ignored: Any) -> None:
        """Run the workflow until all iterations are done."""
        log.info("workflow: %s, max: %d iters", workflow, self._max_iters)
        self.data_loader = data_loaders[0]
        self.call_hook("before_run")
        sources = [
            _Stream(loader, self.iter if mode == "train" else 0)
            for loader, (mode, _) in zip(data_loaders, workflow, strict=True)
        ]
        streams = [self.supervision.waiting_for("loading data", source) for source in sources]
        self.call_hook("before_epoch")
        self.put_back_losses()
        limit: int = self._max_iters
        while self.iter < limit:
            for source, stream, (mode, count) in zip(sources, streams, workflow, strict=True):
                self.data_loader, self.mode = source, mode
                for _ in range(count):
                    if mode == "train" and self.iter >= limit:
                        break
                    self.model.train(mode == "train")
                    batches = next(stream)
                    if mode == "train":
                        self._epoch = source.epoch
                        self.train_step_(batches, self.iter % len(source))
                    else:
                        self.validation_losses(batches, 0)
        self.call_hook("after_epoch")
        self.call_hook("after_run")


RUNNER_OF = {
    "EpochBasedRunner": "DetectorEpochRunner",
    "IterBasedRunner": "DetectorIterRunner",
}
