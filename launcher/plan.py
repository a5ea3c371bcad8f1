"""What a command is to do, read and checked before anything is started."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dq.detector.config import apply_options, finish, read_config
from dq.detector.data import calibration_dataset, calibration_images
from dq.detector.guards import Guards
from dq.detector.packages import check_packages
from dq.tracking.settings import Tracking
from dq.tracking.summary import key_of
from launcher.config import QuantSettings, command_for, guards, quant_settings, tracking


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        config: mmdet's config, complete.
        settings: Its quantization.
        guards: What is done when something goes wrong in a training.
        tracking: What is kept of how it goes.
        text: The config without its quantization as it was read; libraries change what they are
            handed, so it is kept.
        seed: Of everything random, equal on all ranks.
    """

    config: Any
    settings: QuantSettings
    guards: Guards
    tracking: Tracking
    text: str
    seed: int

    def key(self, stage: str, device: str, parent: str | None, *more: object) -> str:
        """Return a digest of what decides a stage's result.

        The number of ranks is not part of it: a chain goes on with those it has.
        """
        # The quantization section does not change what float training does.
        quantized = () if stage == "float" else (self.settings,)
        return key_of(
            stage, self.text, self.seed, device, parent, torch.__version__, *quantized, *more
        )

    @property
    def bits(self) -> str:
        """How the integers are called: ``int8``, ``W4A8``."""
        weight, activation = self.settings.recipe.weight.bits, self.settings.recipe.activation.bits
        return f"int{activation}" if weight == activation else f"W{weight}A{activation}"

    def calibration_batches(self) -> Iterator[Tensor]:
        """Yield the batches of images that calibration looks at, on the CPU."""
        schedule = self.settings.schedule
        return calibration_images(
            calibration_dataset(self.config),
            num_images=schedule.calibration_batches * schedule.calibration_batch_size,
            batch_size=schedule.calibration_batch_size,
            seed=self.seed,
        )


def read_plan(arguments: argparse.Namespace) -> Plan:
    """Read the command's config; raise ValueError for whatever is mistyped in it."""
    config = finish(read_config(arguments.config, arguments.cfg_options))
    command_for(config.get("quantize", False))
    settings = quant_settings(config.get("quant"))
    # What does not fit should fail now and not after an hour of float training.
    quantized = copy.deepcopy(config)
    apply_options(quantized, settings.training)
    command = getattr(arguments, "command", None)
    check_packages(config, trains=command in ("train", "run"))
    check_packages(quantized, trains=command in ("qat", "run"))
    apart = ("quant", "quantize", "guards", "checkpoint_config", "log_config", "tracking")
    text = str({k: v for k, v in config.items() if k not in apart})
    seed = arguments.seed if arguments.seed is not None else config.get("seed") or 0
    return Plan(
        config=config,
        settings=settings,
        guards=guards(config.get("guards")),
        tracking=tracking(config.get("tracking")),
        text=text,
        seed=int(seed),
    )
