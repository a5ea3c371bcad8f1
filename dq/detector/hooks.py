"""Hooks of mmcv's runner: phases and ranges, sharded evaluation, checkpoints without leftovers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from mmcv.runner import HOOKS, CheckpointHook, Hook, IterBasedRunner
from mmdet.core import EvalHook
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.evaluate import detect
from dq.dist import collectives
from dq.dist.data_parallel import sync_buffers_, unwrap
from dq.quant.phase import Phase, set_phase
from dq.quant.prepare import QuantizedGraph
from dq.quant.schedule import Schedule
from dq.sync import agree_, prove_equal

log = logging.getLogger(__name__)


class QuantizationHook(Hook):  # type: ignore[misc]
    """Lead the quantizers through a training: observe and agree, then freeze norms and ranges.

    Args:
        graph: The detector's quantized graph, with ranges.
        schedule: When to freeze.
    """

    def __init__(self, graph: QuantizedGraph, schedule: Schedule) -> None:
        self.graph = graph
        self.schedule = schedule
        self.quantizers = list(graph.activations().values())
        self.phase = Phase.OFF
        self.norms: list[nn.Module] = []

    def before_train_iter(self, runner: Any) -> None:
        """Enter the phase that this step belongs to; a resumed run enters it likewise."""
        done = runner.iter / max(1, runner.max_iters)
        frozen = done >= self.schedule.freeze_ranges_after < 1.0
        phase = Phase.FROZEN if frozen else Phase.TRAIN
        if phase is not self.phase:
            set_phase(self.graph.quantizers, phase)
            self.phase = phase
            proof = prove_equal(self.graph, f"entering phase {phase.value}")
            log.info("phase %s from iteration %d, digest %s", phase.value, runner.iter, proof[:16])
        if done >= self.schedule.freeze_norm_after < 1.0:
            if not self.norms:
                found = unwrap(runner.model).modules()
                self.norms = [m for m in found if isinstance(m, _BatchNorm)]
                log.info("batch norms are frozen from iteration %d", runner.iter)
            # mmcv's runners put the whole model into training mode again and again.
            for norm in self.norms:
                norm.eval()

    def after_train_iter(self, runner: Any) -> None:
        """Give all ranks the same new ranges: one collective a step."""
        if self.phase is Phase.TRAIN:
            agree_(self.quantizers)

    def after_train_epoch(self, runner: Any) -> None:
        """Prove that all ranks still round alike."""
        proof = prove_equal(self.graph, f"after epoch {runner.epoch + 1}")
        log.info("ranges are equal on all ranks, digest %s", proof[:16])


class SyncBuffersHook(Hook):  # type: ignore[misc]
    """Average running statistics over ranks before anything reads them from one.

    Args:
        interval: For runners that count iterations: how often.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_epoch(self, runner: Any) -> None:
        """Average once an epoch."""
        sync_buffers_(unwrap(runner.model))

    def after_train_iter(self, runner: Any) -> None:
        """Average every ``interval`` iterations where there are no epochs."""
        if isinstance(runner, IterBasedRunner) and self.every_n_iters(runner, self.interval):
            sync_buffers_(unwrap(runner.model))


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

    def _do_evaluate(self, runner: Any) -> None:
        if not self._should_evaluate(runner):
            return
        detector = unwrap(runner.model)
        device = next(detector.parameters()).device
        results = detect(detector, self.dataloader.dataset, device=device, workers=self.workers)
        if results is not None:
            runner.log_buffer.output["eval_iter_num"] = len(results)
            self.latest_results = results
            score = self.evaluate(runner, results)
            if self.save_best and score is not None:
                self._save_ckpt(runner, score)
        # The others must know the best checkpoint too, and must not run ahead while it is written.
        runner.meta["hook_msgs"] = collectives.broadcast_object(runner.meta.get("hook_msgs", {}))


@HOOKS.register_module()
class TidyCheckpointHook(CheckpointHook):  # type: ignore[misc]
    """mmcv's checkpoint hook that removes a checkpoint's checksum with the checkpoint."""

    def _save_checkpoint(self, runner: Any) -> None:
        super()._save_checkpoint(runner)
        if collectives.is_main_rank():
            for sidecar in Path(self.out_dir).glob("*.pth.sha256"):
                if not sidecar.with_suffix("").exists():
                    sidecar.unlink(missing_ok=True)
