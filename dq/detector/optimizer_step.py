"""One step of the optimizer: backward passes, a look at the gradients, clipping, the step."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import OptimizerHook
from torch import Tensor, nn

from dq.detector.guards import Guards
from dq.dist import collectives
from dq.dist.data_parallel import no_sync, unwrap

log = logging.getLogger(__name__)
CLIP_DEFAULT_NORM = 2.0


def gradient_scaler(
    loss_scale: float | str | Mapping[str, Any], device: torch.device
) -> torch.amp.GradScaler:
    """Return torch's gradient scaler for float16.

    Args:
        loss_scale: ``'dynamic'``, a number to begin with, or a dict of GradScaler's arguments, as
            in mmdet's ``fp16`` section.
        device: Where the model is; on a CPU nothing is scaled, bfloat16 has float32's range.
    """
    arguments: dict[str, Any] = {}
    if isinstance(loss_scale, Mapping):
        arguments = dict(loss_scale)
    elif not isinstance(loss_scale, str):
        arguments = {"init_scale": float(loss_scale)}
    return torch.amp.GradScaler(device.type, enabled=device.type == "cuda", **arguments)


class OptimizerStep(OptimizerHook):  # type: ignore[misc]
    """mmcv's optimizer hook in two parts: `backward` inside the step, the rest after it.

    A step may take several micro-batches, whose gradients accumulate and are exchanged once. A
    NaN on one rank is in everybody's gradients after that exchange, so all ranks see it in the
    same step, and act alike, without asking each other.

    Args:
        guards: What to do about a NaN.
        grad_clip: As for mmcv's hook.
        scaler: For float16.

    Attributes:
        skipped: Steps left out so far.
    """

    def __init__(
        self,
        *,
        guards: Guards,
        grad_clip: Mapping[str, Any] | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__(grad_clip=None if grad_clip is None else dict(grad_clip))
        self.guards, self.scaler = guards, scaler
        self.skipped = self.in_a_row = 0
        self.norm: Tensor | None = None
        self.leave_out = False
        self.buffers: list[Tensor] = []
        self.before: list[Tensor] = []

    @property
    def scales(self) -> bool:
        """Whether losses are scaled."""
        return self.scaler is not None and self.scaler.is_enabled()

    def backward(self, runner: Any, batches: Sequence[Any]) -> dict[str, Any]:
        """Run all micro-batches of this step forward and backward; their mean counts.

        Returns:
            ``log_vars`` (means), ``num_samples`` and ``loss``, without gradients.

        Raises:
            RuntimeError: On all ranks alike when a gradient is not finite and ``guards`` say so.
        """
        runner.optimizer.zero_grad()
        self._remember(runner)
        outputs = []
        for batch in batches[:-1]:
            with no_sync(runner.model):
                outputs.append(self._one(runner, batch, len(batches)))
        outputs.append(self._one(runner, batches[-1], len(batches)))
        if self.scales:
            assert self.scaler is not None
            self.scaler.unscale_(runner.optimizer)
        gradients = [p.grad for p in runner.model.parameters() if p.grad is not None]
        self.norm = torch.nn.utils.get_total_norm(gradients, CLIP_DEFAULT_NORM)
        self.leave_out = False
        if not bool(torch.isfinite(self.norm)):
            self._judge(runner, outputs, batches)
        self.in_a_row = self.in_a_row + 1 if self.leave_out else 0
        parts = {k: [o["log_vars"][k] for o in outputs] for k in outputs[0]["log_vars"]}
        means = {k: v[0] if len(v) == 1 else torch.stack(v).mean() for k, v in parts.items()}
        return {
            "loss": means["loss"],
            "log_vars": {} if self.leave_out else means,
            "num_samples": sum(o["num_samples"] for o in outputs),
        }

    def after_train_iter(self, runner: Any) -> None:
        """Clip and step, unless the step is left out."""
        if self.leave_out or self.norm is None:
            return
        if self.grad_clip is not None:
            self._clip(list(runner.model.parameters()))
        if bool(torch.isfinite(self.norm)):
            runner.log_buffer.update({"grad_norm": self.norm}, runner.outputs["num_samples"])
        if self.scaler is None:
            runner.optimizer.step()
        else:
            self.scaler.step(runner.optimizer)
            self.scaler.update()

    def _one(self, runner: Any, batch: Any, count: int) -> dict[str, Any]:
        outputs: dict[str, Any] = runner.model.train_step(batch, runner.optimizer)
        loss = outputs.pop("loss")
        loss = loss if count == 1 else loss / count
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

    def _remember(self, runner: Any) -> None:
        """Keep the buffers, which the forward pass of a step that is left out has changed."""
        if self.guards.nonfinite != "skip":
            return
        if not self.buffers:
            self.buffers = [b.detach() for b in unwrap(runner.model).buffers()]
            self.before = [torch.empty_like(b) for b in self.buffers]
        torch._foreach_copy_(self.before, self.buffers)

    def _judge(self, runner: Any, outputs: list[dict[str, Any]], batches: Sequence[Any]) -> None:
        """Find whose loss it was; every rank is here, for all have the same gradients."""
        bad = {k: float(v) for o in outputs for k, v in _not_finite(o["log_vars"]).items()}
        reports = collectives.all_gather_objects((bad, _images(batches) if bad else []))
        if self.scales and not any(found for found, _ in reports):
            return  # An overflow of float16: the scaler leaves the step out and scales less.
        what = _describe(reports) or "a gradient is not finite though every loss is"
        number = runner.iter + 1
        if self.guards.nonfinite == "stop":
            raise RuntimeError(
                f"step {number}: {what}; lower optimizer.lr, clip with optimizer_config=dict("
                "grad_clip=dict(max_norm=35, norm_type=2)), or leave such steps out with"
                " guards=dict(nonfinite='skip')"
            )
        if self.in_a_row >= self.guards.max_skipped:
            raise RuntimeError(
                f"step {number}: {what}; {self.in_a_row} steps in a row were left out for such a"
                " reason, the training has diverged: go on from an earlier checkpoint with a lower"
                " optimizer.lr"
            )
        self.leave_out = True
        self.skipped += 1
        torch._foreach_copy_(self.buffers, self.before)
        log.warning("step %d is left out, the %d. so far: %s", number, self.skipped, what)


def _not_finite(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {k: v for k, v in values.items() if not bool(torch.isfinite(v).all())}
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
