"""Hooks of mmcv's runner that evaluate over all ranks and end an epoch with a checkpoint."""

from __future__ import annotations

from typing import Any

from mmcv.runner import Hook
from mmdet.core import EvalHook

from dq.detector.evaluate import detect, quiet_metric
from dq.detector.hooks import averaged
from dq.dist import collectives
from dq.dist.data_parallel import unwrap


class ShardedEvalHook(EvalHook):  # type: ignore[misc]
    """mmdet's evaluation hook over all ranks, each image on one rank.

    Args:
        dataloader: Its ``dataset`` is evaluated.
        workers: Loader processes of each rank.
        kwargs: The config's ``evaluation`` section.
    """

    def __init__(self, dataloader: Any, *, workers: int = 1, **kwargs: Any) -> None:
        super().__init__(dataloader, **kwargs)
        self.workers = workers

    def is_due(self, runner: Any) -> bool:
        """Whether this epoch ends with an evaluation."""
        return bool(self.by_epoch and self._should_evaluate(runner))

    def _do_evaluate(self, runner: Any) -> None:
        if not self._should_evaluate(runner):
            return
        detector = unwrap(runner.model)
        device = next(detector.parameters()).device
        # At the end of an epoch a checkpoint of this very moment has been written.
        aside = runner.supervision.aside(may_stop=runner.counts_epochs)
        with aside, averaged(runner):
            results = detect(detector, self.dataloader.dataset, device=device, workers=self.workers)
        if results is not None:
            runner.log_buffer.output["eval_iter_num"] = len(results)
            self.latest_results = results
            with quiet_metric():
                score = self.evaluate(runner, results)
            if self.save_best and score is not None:
                self._save_ckpt(runner, score)
        # The others must know the best checkpoint too, and must not run ahead while it is written.
        runner.meta["hook_msgs"] = collectives.broadcast_object(runner.meta.get("hook_msgs", {}))


class EpochCheckpointHook(Hook):  # type: ignore[misc]
    """Write a checkpoint after an epoch, when all other hooks are done with it."""

    def after_train_epoch(self, runner: Any) -> None:
        """Write it where the runner's plan says so."""
        if runner.counts_epochs and runner.plan.at_epoch(runner.epoch + 1, runner.max_epochs):
            runner.save_training(at_end_of_epoch=True)
