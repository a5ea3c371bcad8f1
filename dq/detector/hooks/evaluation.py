"""Hooks of mmcv's runner that evaluate over all ranks and end an epoch with a checkpoint."""

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
    """mmdet's evaluation hook over all ranks, each image on one rank.

    What a metric raises is an error in the log, and the training goes on: its weights can be
    evaluated later, and an hour of training that ends for a table cannot be had back.

    Args:
        dataloader: Its ``dataset`` is evaluated.
        workers: Loader processes of each rank.
        kwargs: The config's ``evaluation`` section.

    Raises:
        ValueError: Such a section makes no sense.
    """

    # For ``save_best``: what is better when it is greater, by parts of a metric's name.
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
        """Refuse what would fail after the first epoch."""
        super().before_run(runner)
        detector = unwrap(runner.model)
        masks = getattr(detector, "with_mask", True) or hasattr(detector, "panoptic_head")
        if "segm" in metrics_of(self.eval_kwargs) and not masks:
            raise ValueError(
                f"evaluation.metric segm needs masks, and {type(detector).__name__} finds boxes"
                " alone; leave segm out"
            )

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

        def conclude() -> dict[str, Any]:
            assert results is not None
            runner.log_buffer.output["eval_iter_num"] = len(results)
            self.latest_results = results
            score = self.evaluate(runner, results)
            if self.save_best and score is not None:
                self._save_ckpt(runner, score)
            messages: dict[str, Any] = runner.meta.get("hook_msgs", {})
            return messages

        # The others must know the best checkpoint too, and must not run ahead while it is written.
        with runner.supervision.aside(may_stop=False):
            runner.meta["hook_msgs"] = on_main_rank(conclude)

    def evaluate(self, runner: Any, results: list[Any]) -> float | None:
        """Log the data set's metrics of these results; return the one that says what is best."""
        try:
            found = scores(self.dataloader.dataset, results, self.eval_kwargs)
        except Exception as error:
            # With its traceback in the file, on one line of the console.
            log.error("no evaluation, the training goes on: %s", explain(error))
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
    """Write a checkpoint after an epoch, when all other hooks are done with it."""

    def after_train_epoch(self, runner: Any) -> None:
        """Write it where the runner's plan says so."""
        if runner.counts_epochs and runner.plan.at_epoch(runner.epoch + 1, runner.max_epochs):
            runner.save_training(at_end_of_epoch=True)
