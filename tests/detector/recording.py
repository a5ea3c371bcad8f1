"""A hook that records the state of a runner at every stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmcv.parallel import DataContainer, is_module_wrapper
from mmcv.runner import HOOKS, Hook
from torch import Tensor

# Attributes of mmcv's runners; a runner with all hooks of a training has more.
PLAIN = (
    "mode", "epoch", "iter", "inner_iter", "max_epochs", "max_iters", "rank", "world_size",
    "_epoch", "_iter", "_inner_iter", "_max_epochs", "_max_iters", "model_name",
)  # fmt: skip
RECORDS: list[dict[str, Any]] = []


def shape_of(value: Any) -> Any:
    """Return a value's structure, and its content if that is plain."""
    if isinstance(value, DataContainer):
        return "container", shape_of(value.data), value.stack, value.cpu_only
    if isinstance(value, Tensor):
        return "tensor", tuple(value.shape), str(value.dtype), float(value.double().sum())
    if isinstance(value, Mapping):
        return {k: shape_of(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value).__name__, [shape_of(v) for v in value]
    return type(value).__name__ if not isinstance(value, str | int | float) else value


@HOOKS.register_module(force=True)
class RecordingHook(Hook):  # type: ignore[misc]
    """Appends a dict per call to `RECORDS`.

    Args:
        name: Name in the records, to distinguish several hooks.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name

    def record(self, stage: str, runner: Any) -> None:
        """Record everything that hooks commonly read."""
        found: dict[str, Any] = {"stage": stage, "hook": self.name}
        for attribute in PLAIN:
            found[attribute] = getattr(runner, attribute)
        found["wrapped"] = is_module_wrapper(runner.model), runner.model.training
        found["module"] = runner.model.module.__class__.__name__, runner.model.module.training
        found["optimizer"] = type(runner.optimizer).__name__
        found["rates"] = runner.current_lr(), runner.current_momentum()
        if stage != "after_train_iter" or self.name in ("usual", "low"):
            # Before the backward pass, mmcv still has the gradients of the previous step.
            gradients = [p.grad for p in runner.model.parameters() if p.requires_grad]
            found["gradients"] = sum(g is not None for g in gradients)
        found["meta"] = sorted(
            set(runner.meta) & {"env_info", "config", "seed", "exp_name", "hook_msgs"}
        )
        if stage not in ("before_run", "before_epoch"):
            loader = runner.data_loader
            found["loader"] = len(loader), hasattr(loader, "_dataloader")
            inner = getattr(loader, "_dataloader", loader)
            found["inner"] = isinstance(inner, torch.utils.data.DataLoader), len(inner.dataset)
            found["sampler"] = hasattr(inner, "sampler"), hasattr(inner.batch_sampler, "sampler")
        found["has_batch"] = hasattr(runner, "data_batch")
        if found["has_batch"]:
            found["batch"] = shape_of(runner.data_batch)
        outputs = getattr(runner, "outputs", None)
        if outputs is not None and stage.startswith("after"):
            loss = outputs["loss"]
            found["outputs"] = sorted(outputs), loss.requires_grad, loss.shape, loss.item()
            found["log_vars"] = list(outputs["log_vars"].items())
            found["num_samples"] = outputs["num_samples"]
        buffer = runner.log_buffer
        found["buffer"] = {
            name: ([float(v) for v in values], list(buffer.n_history[name]))
            for name, values in buffer.val_history.items()
            if name not in ("time", "data_time")
        }
        found["order"] = list(buffer.val_history)
        found["output"] = {k: v for k, v in buffer.output.items() if k not in ("time", "data_time")}
        found["ready"] = buffer.ready
        RECORDS.append(found)

    def __getattribute__(self, name: str) -> Any:
        if name in Hook.stages or name in ("before_epoch", "after_epoch"):
            return lambda runner: self.record(name, runner)
        return super().__getattribute__(name)
