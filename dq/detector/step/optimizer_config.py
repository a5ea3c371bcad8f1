"""The config's ``optimizer_config``: which hook runs the optimizer."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from mmcv import Config

from dq.detector.config.training_values.optimizer_values import (
    CUMULATIVE,
    DYNAMIC,
    check_optimizer_values,
)
from dq.detector.step.optimizer_step import OptimizerStep, gradient_scaler
from dq.detector.step.supervision import Supervision
from dq.names import check_keys

log = logging.getLogger("dq.train")
# mmcv's options for averaging gradients over ranks have no effect: DDP does it here.
KNOWN = {
    "grad_clip",
    "detect_anomalous_params",
    "loss_scale",
    "coalesce",
    "bucket_size_mb",
    "distributed",
}


def optimizer_step(
    config: Config, supervision: Supervision, device: torch.device
) -> OptimizerStep | None:
    """Return the hook that runs the optimizer; None if the config names its own.

    Raises:
        ValueError: Such a hook conflicts with another setting, or a setting is invalid.
    """
    given = dict(config.optimizer_config or {})
    kind = given.pop("type", "OptimizerHook")
    fp16 = config.get("fp16")
    if fp16 and not isinstance(fp16, Mapping):
        raise ValueError(f"fp16 is {fp16!r}; use dict(loss_scale='dynamic')")
    check_optimizer_values(config.optimizer_config or {}, fp16)
    if kind in CUMULATIVE:
        config.accumulate = given.pop("cumulative_iters", 1)
        log.info("optimizer_config: %s is replaced by accumulate=%d", kind, config.accumulate)
        kind = kind.replace("GradientCumulative", "")
    if kind == "Fp16OptimizerHook":
        fp16 = config.fp16 = fp16 or {"loss_scale": given.pop("loss_scale", DYNAMIC)}
        kind = "OptimizerHook"
    if kind != "OptimizerHook":
        if config.get("accumulate", 1) > 1 or fp16:
            raise ValueError(
                f"optimizer_config.type={kind} steps in its own way and goes with neither"
                " accumulate nor fp16; leave the type out"
            )
        log.warning("guards against NaN are off: optimizer_config.type=%s steps by itself", kind)
        return None
    check_keys(given, KNOWN, "optimizer_config")
    return OptimizerStep(
        guards=supervision.guards,
        grad_clip=given.get("grad_clip"),
        detect_anomalous_params=bool(given.get("detect_anomalous_params", False)),
        scaler=gradient_scaler(fp16.get("loss_scale", DYNAMIC), device) if fp16 else None,
        clock=supervision.clock,
    )
