"""Hooks for mmcv's runner that evaluate on all ranks, and write a checkpoint after an epoch."""

from __future__ import annotations

import logging
from typing import Any

from mmcv.runner import Hook
from mmdet.core import EvalHook

from dq.detector.config.registry_errors import explain
from dq.detector.evaluation.evaluate import Scores, detect, scores
from dq.detector.evaluation.metric_settings import COLLECTING, metrics_of
from dq.detector.hooks.quantization import averaged
from dq.dist.exchange.data_parallel import unwrap
from dq.dist.work.on_main_rank import on_main_rank

log = logging.getLogger(__name__)


class ShardedEvalHook(EvalHook):  # type: ignore[misc]
    """mmdet's evaluation hook on all ranks, each image on one rank.

    An error of a metric is logged, and the training continues: the weights can still be evaluated
    later.

    Args:
        dataloader: Its ``dataset`` is evaluated.
        workers: Worker processes of each rank.
        kwargs: The config's ``evaluation`` section.

    Raises:
        ValueError: The section is invalid.
    """

    # For ``save_best``: a greater value is better if the metric's name contains one of these.
    _default_greater_keys = (
        *EvalHook._default_greater_keys,
        "AP",
        "AR",
        "PQ",
        "SQ",
        "RQ",
        "recall",
    )

    def __init__(self, dataloader: Any, *, workers: int = 1, **kwargs: Any) -> None:
        kwargs = {key: value for key, value in kwargs.items() if key not in COLLECTING}
        try:
            super().__init__(dataloader, **kwargs)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"evaluation: {explain(error)}") from error
        self.workers = workers

    def before_run(self, runner: Any) -> None:
        """Refuse settings that would fail after the first epoch."""
        super().before_run(runner)
        detector = unwrap(runner.model)
        masks = getattr(detector, "with_mask", True) or hasattr(detector, "panoptic_head")
        if "segm" in metrics_of(self.eval_kwargs) and not masks:
            raise ValueError(
                f"evaluation.metric segm needs masks, but {type(detector).__name__} finds only"
                " boxes; leave segm out"
            )

    def is_due(self, runner: Any) -> bool:
        """Return whether this epoch ends with an evaluation."""
        return bool(self.by_epoch and self._should_evaluate(runner))

    def _do_evaluate(self, runner: Any) -> None:
        if not self._should_evaluate(runner):
            return
        detector = unwrap(runner.model)
        device = next(detector.parameters()).device
        # At the end of an epoch, a checkpoint of the same step exists already.
        aside = runner.supervision.aside(may_stop=runner.counts_epochs)
        with aside, averaged(runner):
            results = detect(detector, self.dataloader.dataset, device=device, workers=self.workers)

        def conclude() -> dict[str, Any]:
            assert results is not None
            runner.log_buffer.output["eval_iter_num"] = len(results)
            self.latest_results = results
            score = self.evaluate(runner, results)
            if self.save_best and score is not None:
                self._save_ckpt(runner, score)
            messages: dict[str, Any] = runner.meta.get("hook_msgs", {})
            return messages

        # The other ranks must know the best checkpoint too, and must wait while it is written.
        with runner.supervision.aside(may_stop=False):
            runner.meta["hook_msgs"] = on_main_rank(conclude)

    def evaluate(self, runner: Any, results: list[Any]) -> float | None:
        """Log the data set's metrics of these results; return the one that ``save_best`` uses."""
        try:
            found = scores(self.dataloader.dataset, results, self.eval_kwargs)
        except Exception as error:
            # With the traceback in the log file, and one line on the console.
            log.error("no evaluation, the training continues: %s", explain(error))
            log.error("where it failed:\n", exc_info=error)
            return None
        if found.tables:
            log.info("\n%s", found.tables)
        for name, value in [*found.metrics.items(), *found.texts.items()]:
            runner.log_buffer.output[name] = value
        runner.log_buffer.ready = True
        return self._key_score(found) if self.save_best is not None else None

    def _key_score(self, found: Scores) -> float | None:
        if self.key_indicator == "auto":
            self._init_rule(self.rule, next(iter(found.metrics)))
        score = found.metrics.get(self.key_indicator)
        if score is None:
            log.warning(
                "no best checkpoint is kept: evaluation.save_best is %s, and there are %s",
                self.key_indicator,
                ", ".join(found.metrics),
            )
        return score


class EpochCheckpointHook(Hook):  # type: ignore[misc]
    """Write a checkpoint after an epoch, after all other hooks."""

    def after_train_epoch(self, runner: Any) -> None:
        """Write it if the runner's plan says so."""
        if runner.counts_epochs and runner.plan.at_epoch(runner.epoch + 1, runner.max_epochs):
            runner.save_training(at_end_of_epoch=True)
