"""The hook for mmcv's runner that logs a training to a tracker."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mmcv.runner import LoggerHook
from torch import Tensor, nn

from dq.detector.calibration.calibrate import run_network
from dq.detector.config.registry_errors import explain
from dq.detector.step.rank_state import generators, set_generators
from dq.detector.step.supervision import LOADING
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.analysis.statistics import Integers, quantizer_figures
from dq.quant.graph.quantized_graph import QuantizedGraph

log = logging.getLogger(__name__)
# Number of tables of quantizers for a training without epochs.
NUM_TABLES = 10
# mmcv's names for the seconds of a step, and the seconds of waiting for data in it.
NAMES = {"time": "step_s", "data_time": "loading_s"}


class TrackingHook(LoggerHook):  # type: ignore[misc]
    """Log losses, learning rate, gradient norm, speed, data time, memory, phase, metrics, ranges.

    It is registered on every rank, because averaging losses needs all ranks. Only the main rank's
    tracker stores anything.

    Args:
        interval: Steps between rows.
        by_epoch: Whether the runner counts epochs.
        figures: Measures all quantizers; None for a float training, or if turned off.
    """

    def __init__(self, interval: int, *, by_epoch: bool, figures: Figures | None = None) -> None:
        super().__init__(interval=interval, by_epoch=by_epoch)
        self.figures = figures
        self.waited = 0.0

    def log(self, runner: Any) -> None:
        """Log the same values as mmcv's other loggers: steps of training, metrics of validation."""
        if not collectives.is_main_rank():
            return
        buffer = runner.log_buffer
        numbers = {k: v for k, v in buffer.output.items() if isinstance(v, int | float)}
        steps = {NAMES.get(k, k): v for k, v in numbers.items() if k in buffer.val_history}
        rest = {k: v for k, v in numbers.items() if k not in buffer.val_history}
        done = runner.iter + (1 if "step_s" in steps else 0)
        epoch = round(done / max(1, len(runner.data_loader)), 4)
        if steps:
            kind = "train" if "step_s" in steps else "val"
            more = self._of_training(runner, steps) if kind == "train" else {}
            runner.tracker.log(kind, done, {"epoch": epoch, **steps, **more})
        if rest:
            runner.tracker.log("val", done, {"epoch": epoch, **rest})

    def after_train_epoch(self, runner: Any) -> None:
        """Log the metrics, then the statistics of all quantizers."""
        super().after_train_epoch(runner)
        self._measure(runner, runner.epoch + 1)

    def after_train_iter(self, runner: Any) -> None:
        """Log a row if it is time; without epochs, a table of quantizers too."""
        super().after_train_iter(runner)
        if not self.by_epoch and self.every_n_iters(runner, max(1, runner.max_iters // NUM_TABLES)):
            self._measure(runner, runner.epoch)

    def _of_training(self, runner: Any, steps: dict[str, float]) -> dict[str, Any]:
        loader, seconds = runner.data_loader, steps["step_s"]
        images = loader.chunks_per_step * loader.samples_per_chunk
        waited = runner.supervision.clock.totals.get(LOADING, 0.0)
        share = (waited - self.waited) / max(1e-9, seconds * self.interval)
        self.waited = waited
        rates = runner.current_lr()
        first = next(iter(rates.values())) if isinstance(rates, dict) else rates
        found = {
            "lr": first[0],
            "images_per_s": images / max(1e-9, seconds),
            "loading_share": min(1.0, share),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "phase": runner.phase.value,
        }
        if torch.cuda.is_available() and next(runner.model.parameters()).is_cuda:
            found["gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
        if runner.optimizer_step is not None:
            found["skipped_steps"] = runner.optimizer_step.skipped
        found["bad_images"] = loader.num_bad_images
        return found

    def _measure(self, runner: Any, epoch: int) -> None:
        """Measure all quantizers on the main rank; the others wait outside of any collective."""
        figures = self.figures
        if figures is None:
            return

        def work() -> None:
            watched = runner.companions.get("oscillation")
            rows = figures.measure(unwrap(runner.model), oscillation=watched)
            done = runner.iter if self.by_epoch else runner.iter + 1
            runner.tracker.table(done, epoch, "epoch", rows)

        run_on_rank(work)


class Figures:
    """Measures all quantizers of a detector on a few images; an error never ends the training.

    Args:
        graph: The detector's quantized graph.
        images: Returns batches ``(N, C, H, W)`` on the CPU; called once.
        device: Device of the detector.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        images: Callable[[], Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        self.graph, self.images, self.device = graph, images, device
        self.batches: Sequence[Tensor] | None = None
        self.integers: Integers = {}
        self.is_on = True

    def measure(self, detector: nn.Module, *, oscillation: Any = None) -> list[dict[str, Any]]:
        """Return a dict per quantizer, none after a failure; random generators do not change."""
        if not self.is_on:
            return []
        state = generators()
        try:
            if self.batches is None:
                self.batches = list(self.images())
            rows, self.integers = quantizer_figures(
                self.graph,
                [batch.to(self.device) for batch in self.batches],
                lambda batch: run_network(detector, self.graph, batch),
                oscillation=oscillation,
                before=self.integers,
            )
            return rows
        except Exception as error:
            self.is_on = False
            log.warning("quantizers are not measured any more: %s", explain(error))
            return []
        finally:
            set_generators(state)
