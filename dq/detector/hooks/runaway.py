"""Check from time to time whether a quantized training diverges: loss, weights, learned scales."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from mmcv.runner import Hook
from torch import Tensor, nn

from dq.detector.step.guards import Guards
from dq.detector.step.large_updates import measure_of
from dq.detector.step.update_ratios import (
    is_learned,
    layer_weights,
    learned_sizes,
    relative,
)
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap
from dq.quant.graph.quantized_graph import CONTAINER

log = logging.getLogger(__name__)
# Number of initial losses to compare with the latest ones.
WINDOW = 8
# The first step at which losses are compared; one or two batches are not enough.
FIRST_JUDGED = 4
# Log the same problem again if it is this many times worse.
WORSE = 2.0
FIX = (
    "lower optimizer.lr (quant.training={'optimizer.lr': ...}), clip with optimizer_config=dict("
    "grad_clip=dict(max_norm=35, norm_type=2)), or begin with a warm-up"
)
FIX_SCALES = "lower the rate of what quantizers learn (quant.learned_lr, relative to this rate)"


class RunawayHook(Hook):  # type: ignore[misc]
    """Warn, or end the training, if it diverges.

    Checks at steps 1, 2, 4, 8, ... and then every ``guards.look_every`` steps. Between checks,
    nothing is copied from the device. Weights are compared with the initial ones; after resuming,
    with those of the checkpoint. The copy is in host memory.

    Args:
        guards: The limits and the action.
    """

    # After the optimizer (40) and the average of the weights (45).
    PRIORITY = 46
    FLOAT_TOO = False

    def __init__(self, guards: Guards) -> None:
        self.guards = guards
        self.before: dict[str, Tensor] = {}
        self.sizes: dict[str, Tensor] = {}
        self.first: list[Tensor] = []
        self.latest: deque[Tensor] = deque(maxlen=WINDOW)
        self.said: dict[str, float] = {}

    def before_run(self, runner: Any) -> None:
        """Store the initial weights and learned scales, and what changes are compared with."""
        detector = unwrap(runner.model)
        self.sizes = {
            name: size.to("cpu", copy=True) for name, size in learned_sizes(detector).items()
        }
        self.before = {
            name: detector.get_parameter(name).detach().to("cpu", copy=True)
            for name in (*layer_weights(detector), *self.sizes)
        }

    def after_train_iter(self, runner: Any) -> None:
        """Store the loss, and check if it is time."""
        loss = getattr(runner.outputs["log_vars"], "tensors", {}).get("loss")
        left_out = runner.optimizer_step is not None and runner.optimizer_step.leave_out
        if loss is not None and not left_out:
            if len(self.first) < WINDOW:
                self.first.append(loss)
            self.latest.append(loss)
        done = runner.iter + 1
        every = self.guards.look_every
        if done % every == 0 or done == runner.max_iters or (done < every and _power_of_two(done)):
            self._look_at_weights(runner, done)
            self._look_at_loss(runner, done)

    def _look_at_weights(self, runner: Any, done: int) -> None:
        moved = movements(unwrap(runner.model), self.before, self.sizes)
        if not moved:
            return
        name, most = max(moved.items(), key=lambda item: item[1])
        if most > self.guards.max_movement:
            self._report(
                "weights",
                most,
                f"step {done}: {_moved(name, most)} since the training began (guards.max_movement"
                f" is {self.guards.max_movement:g})",
                runner,
                FIX_SCALES if is_learned(name) else FIX,
            )

    def _look_at_loss(self, runner: Any, done: int) -> None:
        number = min(WINDOW, len(self.first), len(self.latest), done // 2)
        if done < FIRST_JUDGED or number == 0:
            return
        means = [torch.stack(list(x)).mean() for x in (self.first[:number], self.latest)]
        pair = collectives.all_reduce_(torch.stack(means).double(), "mean").tolist()
        growth = pair[1] / pair[0] if pair[0] > 0 else 1.0
        if not growth <= self.guards.max_loss_growth:
            self._report(
                "loss",
                growth,
                f"step {done}: the loss is {pair[1]:.4g}, {growth:.3g} times what it began with"
                f" (guards.max_loss_growth is {self.guards.max_loss_growth:g})",
                runner,
            )

    def _report(self, what: str, measure: float, text: str, runner: Any, fix: str = FIX) -> None:
        if measure <= WORSE * self.said.get(what, 0.0):
            return
        self.said[what] = measure
        rates = runner.current_lr()
        rate = rates[0] if isinstance(rates, list) else next(iter(rates.values()))[0]
        text = f"{text}; it runs away at a learning rate of {rate:g}: {fix}"
        if self.guards.runaway == "stop":
            raise RuntimeError(text)
        log.warning("%s", text)
        found = {"what": what, "measure": measure, "line": text}
        runner.tracker.log("runaway", runner.iter + 1, found)


def _moved(name: str, ratio: float) -> str:
    """Return a sentence about a layer's weights, or about what a quantizer learns."""
    what = f"the weights of {name.removesuffix('.weight')} have"
    if is_learned(name):
        quantizer, _, parameter = name.removeprefix(f"{CONTAINER}.").rpartition(".")
        what = f"{parameter} of quantizer {quantizer} has"
    return f"{what} moved by {ratio:.3g} times {measure_of(name)}"


def movements(
    detector: nn.Module, before: Mapping[str, Tensor], sizes: Mapping[str, Tensor]
) -> dict[str, float]:
    """Return how far each parameter is from ``before``, relative to its size.

    For weights that is the distance relative to their former norm, for learned scales the relative
    change, on average of their channels. One copy from the device for all. Infinite if a value is
    not finite.

    Args:
        detector: Unwrapped.
        before: Copies of its parameters by name, on the CPU.
        sizes: What changes of learned scales are compared with, by name, on the CPU.
    """
    ratios = {}
    for name, then in before.items():
        now = detector.get_parameter(name).detach()
        moved = now - then.to(now.device)
        if name in sizes:
            ratios[name] = relative(moved, sizes[name].to(now.device)).mean()
        else:
            ratios[name] = moved.norm().float() / then.to(now.device).norm().clamp_min(1e-12)
    if not ratios:
        return {}
    found = torch.stack(list(ratios.values())).tolist()
    return {n: r if math.isfinite(r) else math.inf for n, r in zip(ratios, found, strict=True)}


def _power_of_two(number: int) -> bool:
    return number & (number - 1) == 0
