"""Evaluate the start of a quantized training, save it as the best so far, compare with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmcv.runner import Hook

from dq.detector.evaluation.evaluate import as_share, evaluate, main_metric
from dq.detector.hooks.evaluation import ShardedEvalHook
from dq.detector.step.guards import Guards
from dq.detector.step.rank_state import generators, set_generators
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase

log = logging.getLogger(__name__)
# An entry of the runner's `meta`; and in this entry, the metric of the latest evaluation.
START, LATEST = "start", "latest"


class StartHook(Hook):  # type: ignore[misc]
    """Evaluate the calibrated detector before the first step, and compare later metrics with it.

    The best checkpoint is saved even if the config does not ask for it, and the start is the first
    one. Register this hook after the evaluation hook, with the same priority.

    Args:
        graph: The detector's quantized graph, with ranges.
        evaluation: The evaluation hook of this training.
        settings: The config's ``evaluation`` section.
        guards: What to do about a metric below that of the start.
        known: The start's metrics on ``data.val``, if they have just been measured.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        evaluation: ShardedEvalHook,
        settings: Mapping[str, Any],
        guards: Guards,
        known: Mapping[str, float] | None = None,
    ) -> None:
        self.graph, self.evaluation, self.settings = graph, evaluation, settings
        self.guards, self.known = guards, known

    def before_run(self, runner: Any) -> None:
        """Measure the start and save it, or take it from the resumed checkpoint."""
        if runner.iter:
            if START in runner.meta:
                self._keep_best(runner, runner.meta[START]["metric"])
            return
        metrics = dict(self.known or self._measure(runner))
        if not metrics:
            log.warning("the start has no metric, so later metrics cannot be compared with it")
            return
        name, value = main_metric(metrics)
        runner.meta[START] = {"metric": name, "value": value}
        log.info("the start, before the first step: %s %.2f %%", name, 100 * value)
        runner.tracker.log("val", 0, {"epoch": 0.0, **metrics})
        self._keep_best(runner, name)
        self._save(runner, metrics)

    def _measure(self, runner: Any) -> dict[str, float]:
        detector = unwrap(runner.model)
        state = generators()
        try:
            frozen = in_phase(self.graph.quantizers, Phase.FROZEN)
            with frozen, runner.supervision.aside(may_stop=True):
                return evaluate(
                    detector,
                    self.evaluation.dataloader.dataset,
                    self.settings,
                    device=next(detector.parameters()).device,
                    workers=self.evaluation.workers,
                )
        finally:
            set_generators(state)

    def _keep_best(self, runner: Any, name: str) -> None:
        hook = self.evaluation
        if hook.save_best is not None:
            return
        hook.save_best = name
        hook._init_rule("greater", name)
        hook.best_ckpt_path = runner.meta["hook_msgs"].get("best_ckpt")

    def _save(self, runner: Any, metrics: Mapping[str, float]) -> None:
        hook = self.evaluation
        if hook.key_indicator == "auto":
            hook._init_rule(hook.rule, next(iter(metrics)))
        if hook.key_indicator not in metrics:
            return
        unit = "epoch" if hook.by_epoch else "iter"
        file = f"best_{hook.key_indicator}_{unit}_0.pth"
        on_main_rank(
            lambda: runner.save_checkpoint(hook.out_dir, filename_tmpl=file, create_symlink=False)
        )
        hook.best_ckpt_path = str(Path(hook.out_dir, file))
        messages = {"best_score": metrics[hook.key_indicator], "best_ckpt": hook.best_ckpt_path}
        runner.meta["hook_msgs"].update(messages)

    def after_train_epoch(self, runner: Any) -> None:
        """Compare the metric of an epoch with the start's."""
        if self.evaluation.is_due(runner):
            self._compare(runner, f"epoch {runner.epoch + 1}")

    def after_train_iter(self, runner: Any) -> None:
        """Compare the metric after a step with the start's."""
        if not self.evaluation.by_epoch and self.evaluation._should_evaluate(runner):
            self._compare(runner, f"step {runner.iter + 1}")

    def _compare(self, runner: Any, when: str) -> None:
        if START not in runner.meta:
            return
        name, start = runner.meta[START]["metric"], runner.meta[START]["value"]
        found = collectives.broadcast_object(runner.log_buffer.output.get(name))
        if found is None:
            return
        value = as_share(name, found)
        runner.meta[START][LATEST] = value
        if start - value <= self.guards.max_drop:
            return
        kept = runner.meta["hook_msgs"].get("best_ckpt")
        text = (
            f"after {when} {name} is {100 * value:.2f} %, {100 * (start - value):.2f} points below"
            f" the start ({100 * start:.2f} %); if it does not recover, lower optimizer.lr"
            " (quant.training={'optimizer.lr': ...})"
        )
        if kept:
            text += f"; the best so far is {Path(kept).name}"
        if self.guards.worse == "stop":
            raise RuntimeError(text)
        log.warning("%s", text)
