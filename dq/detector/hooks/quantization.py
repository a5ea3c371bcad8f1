"""Hooks for mmcv's runner that control quantizers, oscillating weights and running statistics."""

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
    """Return the progress of a runner."""
    epoch = runner.epoch
    if isinstance(runner, IterBasedRunner):
        # mmcv's runner counts an epoch one step late.
        epoch = runner.iter // len(runner.data_loader)
    return Progress(iteration=runner.iter, epoch=epoch, num_iterations=max(1, runner.max_iters))


@contextmanager
def averaged(runner: Any) -> Iterator[None]:
    """Put the average of the weights, if there is one, into the runner's model, in the body."""
    average = getattr(runner, "average", None)
    with nullcontext() if average is None else average.in_model():
        yield


class QuantizationHook(Hook):  # type: ignore[misc]
    """Switch the phases of the quantizers: observe, fake-quantize, freeze.

    Args:
        graph: The detector's quantized graph, with ranges.
        schedule: The steps at which phases begin.
    """

    def __init__(self, graph: QuantizedGraph, schedule: Schedule) -> None:
        self.graph = graph
        self.schedule = schedule
        self.phase = Phase.OFF

    def before_run(self, runner: Any) -> None:
        """Restore the phase of a resumed training."""
        self.phase = runner.phase
        set_phase(self.graph.quantizers, self.phase)

    def before_train_iter(self, runner: Any) -> None:
        """Enter the phase of this step."""
        progress = progress_of(runner)
        if not self.schedule.quantizes(progress):
            phase = Phase.OBSERVE
        elif self.schedule.freezes_ranges(progress):
            phase = Phase.FROZEN
        else:
            phase = Phase.TRAIN
        if phase is not self.phase:
            self._enter(phase, runner)

    def _enter(self, phase: Phase, runner: Any) -> None:
        if self.phase is Phase.OBSERVE:
            # The weights have changed since their scales were chosen. They are folded with running
            # statistics, which may differ between ranks.
            sync_buffers_(unwrap(runner.model))
            initialise_weights_(self.graph.all_layers())
        if phase is Phase.FROZEN:
            forget_momentum_(runner.optimizer, self.graph.quantizers)
        set_phase(self.graph.quantizers, phase)
        self.phase = runner.phase = phase
        proof = check_equal_on_ranks(self.graph, f"entering phase {phase.value}")
        log.info("phase %s from iteration %d, digest %s", phase.value, runner.iter, proof[:16])
        runner.tracker.log("phase", runner.iter + 1, {"phase": phase.value, "digest": proof})

    def after_train_epoch(self, runner: Any) -> None:
        """Check that all ranks have the same ranges."""
        proof = check_equal_on_ranks(self.graph, f"after epoch {runner.epoch + 1}")
        log.info("ranges are equal on all ranks, digest %s", proof[:16])
        runner.tracker.log("proof", runner.iter, {"epoch": runner.epoch + 1, "digest": proof})


class FrozenNormHook(Hook):  # type: ignore[misc]
    """Freeze the running statistics of batch norms from a certain step on.

    Args:
        schedule: Says from which step on.
    """

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self.norms: list[nn.Module] = []

    def before_train_iter(self, runner: Any) -> None:
        """Put the norms into evaluation mode if it is time."""
        if not self.schedule.freezes_norm(progress_of(runner)):
            return
        if not self.norms:
            found = unwrap(runner.model).modules()
            self.norms = [m for m in found if isinstance(m, _BatchNorm)]
            log.info("batch norms are frozen from iteration %d", runner.iter)
        # mmcv's runners repeatedly set the whole model to training mode.
        for norm in self.norms:
            norm.eval()


class AgreementHook(Hook):  # type: ignore[misc]
    """Give all ranks the same new ranges after each step: one collective.

    It must run after the optimizer's hook, whose backward pass needs this step's scales.

    Args:
        graph: The detector's quantized graph.
    """

    def __init__(self, graph: QuantizedGraph) -> None:
        self.quantizers = list(graph.activations().values())

    def after_train_iter(self, runner: Any) -> None:
        """Update the ranges with the values that all ranks observed in this step."""
        if runner.phase in (Phase.OBSERVE, Phase.TRAIN):
            merge_ranges_(self.quantizers)


class OscillationHook(Hook):  # type: ignore[misc]
    """Count oscillating weights after each fake-quantized step, and freeze or dampen them.

    It must run after the optimizer's step. If weights are frozen, the ranks first average the
    running statistics that are folded into them, because frozen weights must be equal on all ranks.
    This is one collective per step, which synchronized norms do not need.

    Args:
        tracker: Tracks the weights.
        schedule: Says when fake quantization starts.
    """

    def __init__(self, tracker: OscillationTracker, schedule: Schedule) -> None:
        self.tracker, self.schedule = tracker, schedule
        self.share = 0.0

    def before_train_iter(self, runner: Any) -> None:
        """Store the progress of the training; the dampening loss increases with it."""
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
        """Return the dampening loss, which is added to the detector's own losses."""
        weight = self.tracker.settings.dampening_at(self.share)
        return {"loss_dampening": weight * dampening_loss(self.tracker.graph)}


class QuantEMAHook(Hook):  # type: ignore[misc]
    """Update the average of a detector's weights after each step of the optimizer.

    It also replaces mmdet's EMA hooks. Those would average integer zero points and infinite ranges,
    and lose the training's own weights on resuming. `averaged` puts the runner's ``average`` into
    the model for evaluation and checkpoints.

    Args:
        average: Average of the unwrapped detector.
    """

    def __init__(self, average: WeightAverage) -> None:
        self.average = average

    def after_train_iter(self, runner: Any) -> None:
        """Add the weights of this step to the average."""
        self.average.update_(runner.iter)


class SyncBuffersHook(Hook):  # type: ignore[misc]
    """Average running statistics over ranks before each evaluation and at the end of each epoch.

    Checkpoints contain the average, but do not change the statistics of a rank (`training_state`),
    so that the training does not depend on when they are written.
    """

    def after_train_epoch(self, runner: Any) -> None:
        """Average once per epoch."""
        self._average(runner)

    def after_train_iter(self, runner: Any) -> None:
        """Average before an evaluation within an epoch."""
        hooks = [h for h in runner.hooks if isinstance(h, EvalHook) and not h.by_epoch]
        if any(hook._should_evaluate(runner) for hook in hooks):
            self._average(runner)

    def after_run(self, runner: Any) -> None:
        """Average at the end, because the last evaluation may be long ago."""
        self._average(runner)

    def _average(self, runner: Any) -> None:
        sync_buffers_(unwrap(runner.model))
        if getattr(runner, "average", None) is not None:
            with averaged(runner):
                sync_buffers_(unwrap(runner.model))


class StragglerHook(Hook):  # type: ignore[misc]
    """Log the slowest rank of each phase, at the logging interval of the losses.

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
