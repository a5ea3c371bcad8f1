"""Hooks of mmcv's runner that lead quantizers, oscillating weights and running statistics."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from mmcv.runner import EvalHook, Hook, IterBasedRunner
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.dist.exchange.data_parallel import sync_buffers_, unwrap
from dq.dist.watch.straggler import slow_rank_message
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.factory import forget_momentum_, initialise_weights_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.training.oscillation import OscillationTracker, dampening_loss
from dq.quant.training.schedule import Progress, Schedule
from dq.quant.training.weight_average import WeightAverage
from dq.sync import check_equal_on_ranks, merge_ranges_

log = logging.getLogger(__name__)


def progress_of(runner: Any) -> Progress:
    """Return how far a runner is."""
    epoch = runner.epoch
    if isinstance(runner, IterBasedRunner):
        # mmcv's runner notices one step late that an epoch is over.
        epoch = runner.iter // len(runner.data_loader)
    return Progress(iteration=runner.iter, epoch=epoch, num_iterations=max(1, runner.max_iters))


@contextmanager
def averaged(runner: Any) -> Iterator[None]:
    """Let the runner's model be the average of its weights, where one is kept, in the body."""
    average = getattr(runner, "average", None)
    with nullcontext() if average is None else average.in_model():
        yield


class QuantizationHook(Hook):  # type: ignore[misc]
    """Lead the quantizers through a training: observe, round, then freeze.

    Args:
        graph: The detector's quantized graph, with ranges.
        schedule: When to do what.
    """

    def __init__(self, graph: QuantizedGraph, schedule: Schedule) -> None:
        self.graph = graph
        self.schedule = schedule
        self.phase = Phase.OFF
        self.norms: list[nn.Module] = []

    def before_run(self, runner: Any) -> None:
        """Go on in the phase that a resumed training was in."""
        self.phase = runner.phase
        set_phase(self.graph.quantizers, self.phase)

    def before_train_iter(self, runner: Any) -> None:
        """Enter the phase that this step belongs to."""
        progress = progress_of(runner)
        if not self.schedule.quantizes(progress):
            phase = Phase.OBSERVE
        elif self.schedule.freezes_ranges(progress):
            phase = Phase.FROZEN
        else:
            phase = Phase.TRAIN
        if phase is not self.phase:
            self._enter(phase, runner)
        if self.schedule.freezes_norm(progress):
            if not self.norms:
                found = unwrap(runner.model).modules()
                self.norms = [m for m in found if isinstance(m, _BatchNorm)]
                log.info("batch norms are frozen from iteration %d", runner.iter)
            # mmcv's runners put the whole model into training mode again and again.
            for norm in self.norms:
                norm.eval()

    def _enter(self, phase: Phase, runner: Any) -> None:
        if self.phase is Phase.OBSERVE:
            # The weights have moved since their scales were first chosen. They are folded with
            # statistics that each rank may have of its own.
            sync_buffers_(unwrap(runner.model))
            initialise_weights_(self.graph.layers())
        if phase is Phase.FROZEN:
            forget_momentum_(runner.optimizer, self.graph.quantizers)
        set_phase(self.graph.quantizers, phase)
        self.phase = runner.phase = phase
        proof = check_equal_on_ranks(self.graph, f"entering phase {phase.value}")
        log.info("phase %s from iteration %d, digest %s", phase.value, runner.iter, proof[:16])
        runner.tracker.log("phase", runner.iter + 1, {"phase": phase.value, "digest": proof})

    def after_train_epoch(self, runner: Any) -> None:
        """Prove that all ranks still round alike."""
        proof = check_equal_on_ranks(self.graph, f"after epoch {runner.epoch + 1}")
        log.info("ranges are equal on all ranks, digest %s", proof[:16])
        runner.tracker.log("proof", runner.iter, {"epoch": runner.epoch + 1, "digest": proof})


class AgreementHook(Hook):  # type: ignore[misc]
    """Give all ranks the same new ranges after each step: one collective.

    It has to come after the optimizer's hook, which goes backward through this step's scales.

    Args:
        graph: The detector's quantized graph.
    """

    def __init__(self, graph: QuantizedGraph) -> None:
        self.quantizers = list(graph.activations().values())

    def after_train_iter(self, runner: Any) -> None:
        """Take what all ranks observed in this step into the ranges."""
        if runner.phase in (Phase.OBSERVE, Phase.TRAIN):
            merge_ranges_(self.quantizers)


class OscillationHook(Hook):  # type: ignore[misc]
    """Count oscillating weights after each step that rounds, and freeze or dampen them.

    To run after the optimizer's step. Where weights are frozen, ranks first agree on the running
    statistics that are folded into them (one collective a step, needless but harmless with
    synchronized norms), since frozen weights must be the same on all.

    Args:
        tracker: Watches the weights.
        schedule: Says from when on they are rounded.
    """

    def __init__(self, tracker: OscillationTracker, schedule: Schedule) -> None:
        self.tracker, self.schedule = tracker, schedule
        self.share = 0.0

    def before_train_iter(self, runner: Any) -> None:
        """Note how far the training is; the dampening loss rises with it."""
        self.share = progress_of(runner).share

    def after_train_iter(self, runner: Any) -> None:
        """Compare the weights' integers with those of the step before."""
        if self.schedule.quantizes(progress_of(runner)):
            if self.tracker.settings.freeze_above is not None:
                sync_buffers_(unwrap(runner.model))
            self.tracker.update_()

    def after_train_epoch(self, runner: Any) -> None:
        """Log how many weights oscillate and how many are frozen."""
        oscillating, frozen = self.tracker.share_oscillating(), self.tracker.share_frozen()
        log.info(
            "%.3f %% of the weights oscillate, %.3f %% are frozen",
            *(100 * share for share in (oscillating, frozen)),
        )
        runner.log_buffer.output["oscillating"] = oscillating

    def losses(self) -> dict[str, Tensor]:
        """Return the dampening loss as a term beside the detector's own."""
        weight = self.tracker.settings.dampening_at(self.share)
        return {"loss_dampening": weight * dampening_loss(self.tracker.graph)}


class QuantEMAHook(Hook):  # type: ignore[misc]
    """Keep the average of a detector's weights, after each step of the optimizer.

    It does the work of mmdet's EMA hooks too: theirs would average integer zero points and infinite
    ranges, and lose the training's own weights when it is resumed. The runner's ``average`` is what
    `averaged` puts into the model for evaluation and checkpoints.

    Args:
        average: Of the unwrapped detector.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_train_iter(self, runner: Any) -> None:
        """Take the step's weights into the average."""
        self.average.update_(runner.iter)


class SyncBuffersHook(Hook):  # type: ignore[misc]
    """Average running statistics over ranks before each evaluation and at the end of each epoch.

    Checkpoints hold the average without it, and leave each rank its own (`training_state`): when
    they are written is for the disk's sake, and must not change what is learned.
    """

    def after_train_epoch(self, runner: Any) -> None:
        """Average once an epoch."""
        self._average(runner)

    def after_train_iter(self, runner: Any) -> None:
        """Average where an evaluation follows in the middle of an epoch."""
        hooks = [h for h in runner.hooks if isinstance(h, EvalHook) and not h.by_epoch]
        if any(hook._should_evaluate(runner) for hook in hooks):
            self._average(runner)

    def after_run(self, runner: Any) -> None:
        """Average once more: the last evaluation may be long past."""
        self._average(runner)

    def _average(self, runner: Any) -> None:
        sync_buffers_(unwrap(runner.model))
        if getattr(runner, "average", None) is not None:
            with averaged(runner):
                sync_buffers_(unwrap(runner.model))


class StragglerHook(Hook):  # type: ignore[misc]
    """Name the slowest rank of each phase, as often as losses are logged.

    Args:
        interval: Steps between two reports.
    """

    def __init__(self, interval: int) -> None:
        self.interval = interval

    def after_train_iter(self, runner: Any) -> None:
        """Compare the times of all ranks."""
        if not self.every_n_iters(runner, self.interval):
            return
        supervision = runner.supervision
        for slow in supervision.clock.report():
            text = slow_rank_message(slow, above=supervision.guards.straggler_above)
            if text:
                log.warning("%s", text)
                found = {"phase": slow.phase, "rank": slow.rank, "seconds": slow.seconds}
                runner.tracker.log("straggler", runner.iter + 1, {**found, "others": slow.others})
