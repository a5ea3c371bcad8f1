"""One optimizer step: backward passes, check of the gradients, clipping, the step."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import OptimizerHook
from torch import Tensor, nn

from dq.detector.step.guards import Guards
from dq.detector.step.losses import LOSSES, SAME_LOSSES, LossValues
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import no_sync, unwrap
from dq.dist.watch.straggler import PhaseClock

log = logging.getLogger(__name__)
CLIP_DEFAULT_NORM = 2.0


def gradient_scaler(
    loss_scale: float | str | Mapping[str, Any], device: torch.device
) -> torch.amp.GradScaler:
    """Return torch's gradient scaler for float16.

    Args:
        loss_scale: ``'dynamic'``, an initial scale, or a dict of GradScaler's arguments, as in
            mmdet's ``fp16`` section.
        device: Device of the model; on a CPU nothing is scaled, because bfloat16 has float32's
            range.
    """
    arguments: dict[str, Any] = {}
    if isinstance(loss_scale, Mapping):
        arguments = dict(loss_scale)
    elif not isinstance(loss_scale, str):
        arguments = {"init_scale": float(loss_scale)}
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda", **arguments)


class OptimizerStep(OptimizerHook):  # type: ignore[misc]
    """mmcv's optimizer hook: backward passes, check of the gradients, clipping, the step.

    A step of one micro-batch works as in mmcv: hooks of higher priority may change its loss, and
    its backward pass runs here. With several micro-batches, each backward pass follows its forward
    pass; gradients accumulate and are exchanged once. After that exchange, a NaN of one rank is in
    the gradients of all ranks. So all ranks see it in the same step and react in the same way,
    without communication.

    Args:
        guards: What to do about a NaN.
        grad_clip: As for mmcv's hook.
        detect_anomalous_params: As for mmcv's hook.
        scaler: For float16.
        clock: Measures the time of the backward pass.

    Attributes:
        skipped: Number of skipped steps.
    """

    def __init__(
        self,
        *,
        guards: Guards,
        grad_clip: Mapping[str, Any] | None = None,
        detect_anomalous_params: bool = False,
        scaler: torch.amp.GradScaler | None = None,
        clock: PhaseClock | None = None,
    ) -> None:
        super().__init__(None if grad_clip is None else dict(grad_clip), detect_anomalous_params)
        self.guards, self.scaler, self.clock = guards, scaler, clock or PhaseClock()
        self.skipped = self.in_a_row = 0
        self.norm: Tensor | None = None
        self.leave_out = False
        self.buffers: list[Tensor] = []
        self.before: list[Tensor] = []
        self._outputs: list[dict[str, Any]] = []
        self._batches: Sequence[Any] = ()

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return self.scaler is not None and self.scaler.is_enabled()

    def forward(self, runner: Any, batches: Sequence[Any]) -> dict[str, Any]:
        """Run the forward passes of all micro-batches of this step, and average their losses.

        Returns:
            ``loss``, ``log_vars`` and ``num_samples``, as a detector's ``train_step``. The backward
            pass of a single micro-batch is still to come; those of several ones are done.
        """
        runner.optimizer.zero_grad()
        self._save_buffers(runner)
        self._batches, self._outputs = batches, []
        if len(batches) == 1:
            outputs: dict[str, Any] = runner.model.train_step(batches[0], runner.optimizer)
            self._outputs = [outputs]
            return outputs
        for number, batch in enumerate(batches, start=1):
            with nullcontext() if number == len(batches) else no_sync(runner.model):
                self._outputs.append(self._one(runner, batch, len(batches)))
        logged = [outputs["log_vars"].tensors for outputs in self._outputs]
        differing = {name for part in logged for name in part.keys() ^ logged[0].keys()}
        if differing:
            raise ValueError(
                f"{LOSSES} differ between the micro-batches of a step:"
                f" {', '.join(sorted(differing))}; {SAME_LOSSES}"
            )
        means = {k: torch.stack([part[k] for part in logged]).mean() for k in logged[0]}
        return {
            "loss": means["loss"],
            "log_vars": LossValues(means),
            "num_samples": sum(outputs["num_samples"] for outputs in self._outputs),
        }

    def after_train_iter(self, runner: Any) -> None:
        """Run a missing backward pass, clip and step, unless the step is skipped.

        Raises:
            RuntimeError: On all ranks, if a gradient is not finite and ``guards`` say so.
        """
        device = next(runner.model.parameters()).device
        with self.clock.work("computing", device):
            if len(self._batches) == 1:
                loss = runner.outputs["loss"]
                if self.detect_anomalous_params:
                    self.detect_anomalous_parameters(loss, runner)
                (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            if self.scales:
                assert self.scaler is not None
                self.scaler.unscale_(runner.optimizer)
            gradients = [p.grad for p in runner.model.parameters() if p.grad is not None]
            self.norm = torch.nn.utils.get_total_norm(gradients, CLIP_DEFAULT_NORM)
            finite = bool(torch.isfinite(self.norm))
        self.leave_out = False
        if not finite:
            self._find_cause(runner)
        self.in_a_row = self.in_a_row + 1 if self.leave_out else 0
        batches, self._outputs, self._batches = self._batches, [], ()
        if self.leave_out:
            if self.scales:
                assert self.scaler is not None
                # End the scaler's step. The scale does not change: the loss caused it, not a
                # float16 overflow.
                self.scaler.update(self.scaler.get_scale())
            runner.log_buffer.remove_last(runner.outputs["log_vars"])
            return
        assert batches, "the step has had no forward pass"
        if self.grad_clip is not None:
            self._clip(list(runner.model.parameters()))
        if finite:
            norm = LossValues({"grad_norm": self.norm})
            runner.log_buffer.update(norm, runner.outputs["num_samples"])
        if self.scaler is None:
            runner.optimizer.step()
        else:
            self.scaler.step(runner.optimizer)
            self.scaler.update()

    def _one(self, runner: Any, batch: Any, count: int) -> dict[str, Any]:
        outputs: dict[str, Any] = runner.model.train_step(batch, runner.optimizer)
        loss = outputs.pop("loss") / count
        (loss if self.scaler is None else self.scaler.scale(loss)).backward()
        return outputs

    def _clip(self, parameters: list[nn.Parameter]) -> None:
        assert self.grad_clip is not None
        assert self.norm is not None
        if self.grad_clip.get("norm_type", CLIP_DEFAULT_NORM) == CLIP_DEFAULT_NORM:
            with_gradient = [p for p in parameters if p.grad is not None]
            torch.nn.utils.clip_grads_with_norm_(
                with_gradient, self.grad_clip["max_norm"], self.norm
            )
        else:
            self.clip_grads(parameters)

    def _save_buffers(self, runner: Any) -> None:
        """Save the buffers, because the forward pass of a skipped step changes them too."""
        if self.guards.nonfinite != "skip":
            return
        if not self.buffers:
            self.buffers = [b.detach() for b in unwrap(runner.model).buffers()]
            self.before = [torch.empty_like(b) for b in self.buffers]
        torch._foreach_copy_(self.before, self.buffers)

    def _find_cause(self, runner: Any) -> None:
        """Find the cause of the NaN; all ranks call this, because all have the same gradients."""
        logged = [outputs["log_vars"] for outputs in self._outputs]
        bad = {k: v for losses in logged for k, v in _not_finite(losses).items()}
        reports = collectives.all_gather_objects((bad, _images(self._batches) if bad else []))
        if self.scales and not any(found for found, _ in reports):
            return  # A float16 overflow: the scaler skips the step and lowers its scale.
        what = _describe(reports) or "a gradient is not finite, but every loss is"
        number = runner.iter + 1
        if self.guards.nonfinite == "stop":
            raise RuntimeError(
                f"step {number}: {what}; lower optimizer.lr, clip with optimizer_config=dict("
                "grad_clip=dict(max_norm=35, norm_type=2)), or skip such steps with"
                " guards=dict(nonfinite='skip')"
            )
        if self.in_a_row >= self.guards.max_skipped:
            raise RuntimeError(
                f"step {number}: {what}; {self.in_a_row} steps in a row were skipped for such a"
                " reason, the training has diverged: resume from an earlier checkpoint with a lower"
                " optimizer.lr"
            )
        self.leave_out = True
        self.skipped += 1
        torch._foreach_copy_(self.buffers, self.before)
        log.warning("step %d is skipped, number %d so far: %s", number, self.skipped, what)


def _not_finite(values: Mapping[str, float]) -> dict[str, float]:
    found = {k: v for k, v in values.items() if not math.isfinite(v)}
    parts = {k: v for k, v in found.items() if k != "loss"}
    return parts or found


def _images(batches: Sequence[Any]) -> list[str]:
    """Return the file names of a step's images on this rank."""
    names = []
    for batch in batches:
        metas = batch["img_metas"].data[0]
        names += [
            Path(meta.get("ori_filename") or meta.get("filename") or "?").name for meta in metas
        ]
    return names


def _describe(reports: Sequence[tuple[Mapping[str, float], Sequence[str]]]) -> str:
    parts = []
    for rank, (bad, images) in enumerate(reports):
        if bad:
            losses = ", ".join(f"{name} is {value}" for name, value in bad.items())
            parts.append(f"{losses} on rank {rank} (images {', '.join(images[:4])})")
    return "; ".join(parts)
