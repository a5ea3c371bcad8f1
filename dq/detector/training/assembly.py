"""Build a training's optimizer and runner."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mmdet
from mmcv import Config
from mmcv.runner import build_runner
from mmcv.utils import collect_env
from mmdet.core import build_optimizer
from torch import nn

from dq.counted import counted
from dq.detector.config.config_text import config_text
from dq.detector.config.registry_errors import explain
from dq.detector.data.leaves import classes_of
from dq.detector.loading.training_loader import TrainingLoader
from dq.detector.training.assignment import Quantization, Workplace
from dq.detector.training.checkpoint_order import ATTEMPT, next_attempt
from dq.detector.training.checkpoint_plan import CheckpointPlan
from dq.detector.training.exact_runner import Equipment
from dq.detector.training.runners import RUNNER_OF
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import unwrap
from dq.dist.rendezvous.restarts import torchrun_agent
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.quantizers.factory import regroup_

log = logging.getLogger("dq.train")


def scale_learning_rate(config: Config, loader: TrainingLoader) -> None:
    """Scale the learning rate by the images of a step on all ranks, as mmdet's ``auto_scale_lr``.

    Unlike in mmdet, it does not change if a training is resumed on another number of ranks.
    """
    settings = config.get("auto_scale_lr") or {}
    if not settings.get("enable", False):
        return
    images = loader.chunks_per_step * loader.samples_per_chunk
    base = settings.get("base_batch_size")
    if not base:
        log.warning("auto_scale_lr has no base_batch_size, so the learning rate is not scaled")
        return
    if not isinstance(config.optimizer.get("lr"), int | float):
        raise ValueError("auto_scale_lr scales optimizer.lr, which the config does not have")
    config.optimizer.lr *= images / base
    log.info(
        "learning rate scaled to %g: %s a step, not %d",
        config.optimizer.lr,
        counted(images, "image[s]"),
        base,
    )


def optimizer_of(config: Config, model: nn.Module, quantization: Quantization | None) -> Any:
    """Return the config's optimizer, with separate groups for parameters of quantizers.

    Raises:
        ValueError: The optimizer cannot be built.
    """
    try:
        optimizer = build_optimizer(model, config.optimizer)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"optimizer cannot be built: {explain(error)}") from error
    if quantization is not None:
        factor = quantization.refinements.learned_lr
        learned = regroup_(optimizer, unwrap(model), lr_factor=factor)
        if learned:
            log.info(
                "%s learned, at %g times the rate",
                counted(learned, "quantizer parameter[s] [is|are]"),
                factor,
            )
    return optimizer


def meta_of(
    config: Config, dataset: Any, seed: int, place: Workplace, plan: CheckpointPlan
) -> dict[str, Any]:
    """Return the content of each checkpoint's ``meta``; every rank must call it."""
    agents = collectives.all_gather_objects(torchrun_agent())
    meta = {
        "config": config_text(config),
        "CLASSES": classes_of(dataset, "train"),
        "seed": seed,
        "world_size": collectives.world_size(),
        "exp_name": Path(config.filename or place.work_dir).name,
        "env_info": "\n".join(f"{name}: {value}" for name, value in _environment().items()),
        "mmdet_version": mmdet.__version__,
        "hook_msgs": {},
        **place.meta,
        "key": place.key,
        "agents": sorted({name for name in agents if name}),
        ATTEMPT: on_main_rank(lambda: next_attempt(plan.folder(place.work_dir))),
    }
    if place.tracker is not None:
        meta["run_id"] = None if place.tracker.run is None else place.tracker.run.id
    return meta


def _environment() -> dict[str, Any]:
    """Describe the machine and the versions, as mmdet does.

    mmdet's function also asks git for the commit of the present folder, which is not mmdet's; git
    complains on the terminal if the folder is no repository.
    """
    return {**collect_env(), "MMDetection": mmdet.__version__}


def runner_of(
    config: Config,
    model: nn.Module,
    optimizer: Any,
    equipment: Equipment,
    work_dir: Path,
    meta: dict[str, Any],
) -> Any:
    """Return the runner of the config's type.

    Args:
        config: Of the training.
        model: Result of `dq.detector.training.network.on_all_ranks`.
        optimizer: Of the model's parameters.
        equipment: The objects that hooks and checkpoints need.
        work_dir: Folder for checkpoints and logs.
        meta: Result of `meta_of`.
    """
    settings = {**config.runner, "type": RUNNER_OF[config.runner.type]}
    defaults = {
        "model": model,
        "optimizer": optimizer,
        "work_dir": str(work_dir),
        "logger": log,
        "meta": meta,
        "equipment": equipment,
    }
    return build_runner(settings, default_args=defaults)
