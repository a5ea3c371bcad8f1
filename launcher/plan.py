"""Read and check all settings of a command before it starts anything."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dq.detector.config.addresses import local_file
from dq.detector.config.known_types import check_dataset_types, check_training_types
from dq.detector.config.packages import check_packages
from dq.detector.config.process_settings import set_up_process
from dq.detector.config.read import CarriedConfig, finish, read_config, training_config
from dq.detector.data.class_names import class_list
from dq.detector.data.datasets import calibration_dataset, calibration_images
from dq.detector.evaluation.metric_settings import check_metric_settings
from dq.detector.step.guards import Guards
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.numerics.spec import name_of
from dq.tracking.record.settings import Tracking
from dq.tracking.record.stage_summary import key_of
from launcher.config import (
    command_for,
    guards,
    known_target,
    quant_settings,
    tracking,
)
from launcher.sections import QuantSettings
from launcher.settings import (
    DEVICE,
    SEED,
    START,
    SYNC_BN,
    TORCH,
    Settings,
    described,
    described_quantization,
    names_of,
)

log = logging.getLogger(__name__)
# Settings that do not change the result of float training.
APART = (
    *("quant", "quantize", "guards", "checkpoint_config", "log_config", "tracking", "work_dir"),
    *("log_level", "auto_resume", "gpu_ids", "device", "opencv_num_threads", "mp_start_method"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The checkpoint that the user wants a training to resume from.

    Attributes:
        file: ``--resume FILE``; it has priority over all others.
        automatic: ``--resume`` or ``auto_resume``: the stage's newest checkpoint.
        of_config: The config's ``resume_from``, for the training that wrote it.
        is_shared: Whether the command has several trainings; ``file`` is for the one that wrote it.
        changing: Settings named by ``--resume-with``, which may differ from the checkpoint's.
        trusted: Whether files that the user names, ``load_from`` too, may be unpickled.
    """

    file: str | None = None
    automatic: bool = False
    of_config: str | None = None
    is_shared: bool = False
    changing: tuple[str, ...] = ()
    trusted: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All settings of a command.

    Attributes:
        config: mmdet's config, complete.
        settings: The quantization settings.
        guards: What a training does if something goes wrong.
        tracking: What is recorded of a run.
        text: The config without its quantization, as it was read. It is kept because libraries
            change the config that they are given.
        seed: Of all random numbers; equal on all ranks.
        described: By stage (``float``, ``qat``, ``control``): each setting of the training as it
            was read.
    """

    config: Any
    settings: QuantSettings
    guards: Guards
    tracking: Tracking
    text: str
    seed: int
    described: Mapping[str, Settings]

    def key(self, stage: str, device: str, parent: str | None, *more: object) -> str:
        """Return a digest of everything that decides a stage's result.

        The number of ranks is not part of it, so that a chain may continue with another number.
        """
        # The quantization section does not change what float training does.
        quantized = () if stage == "float" else (self.settings,)
        return key_of(
            stage, self.text, self.seed, device, parent, torch.__version__, *quantized, *more
        )

    def training_settings(
        self, stage: str, device: str, parent: str | None, sync_bn: str
    ) -> Settings:
        """Return the settings that decide a training's result, as text by name, without images."""
        more = {SEED: self.seed, SYNC_BN: sync_bn, DEVICE: device, TORCH: torch.__version__}
        start = {} if parent is None else {START: parent[:12]}
        return {**self.described[stage], **{k: repr(v) for k, v in {**more, **start}.items()}}

    @property
    def bits(self) -> str:
        """The name of the integer formats: ``int8``, ``W4A8``."""
        return name_of(self.settings.recipe.weight.bits, self.settings.recipe.activation.bits)

    def calibration_batches(self) -> Iterator[Tensor]:
        """Yield the batches of calibration images, on the CPU."""
        schedule = self.settings.schedule
        return calibration_images(
            calibration_dataset(self.config),
            num_images=schedule.calibration_batches * schedule.calibration_batch_size,
            batch_size=schedule.calibration_batch_size,
            seed=self.seed,
        )


def read_plan(arguments: argparse.Namespace) -> Plan:
    """Read and check the command's config.

    Raises:
        ValueError: Something in the config is wrong.
    """
    config = finish(_config_of(arguments))
    _lay_flags_over(config, arguments)
    command_for(config.get("quantize", False))
    settings = quant_settings(config.get("quant"))
    # A wrong override should fail now and not after an hour of float training.
    quantized = training_config(config, settings.training)
    command = getattr(arguments, "command", None)
    check_packages(config, trains=command in ("train", "run"))
    check_packages(quantized, trains=command in ("qat", "run"))
    # The list of classes is read from the data sets of all splits.
    check_dataset_types(config)
    if command in ("train", "run", "qat"):
        for training in (config, quantized):
            check_training_types(training)
    check_metric_settings(config)
    if note := class_list(config).note:
        log.warning("%s", note)
    text = str({k: v for k, v in config.items() if k not in APART})
    kept = {
        "float": described(config),
        "qat": described(quantized) | described_quantization(settings),
    }
    kept["control"] = kept["qat"]
    seed = arguments.seed if arguments.seed is not None else config.get("seed") or 0
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed is {seed!r}; give a whole number")
    return Plan(
        config=config,
        settings=settings,
        guards=guards(config.get("guards")),
        tracking=tracking(config.get("tracking")),
        text=text,
        seed=seed,
        described=kept,
    )


def with_target(plan: Plan, name: str) -> Plan:
    """Return the plan for an engine.

    A config without a preset gets the engine's preset. A config with one keeps it and gets only
    the engine's rules.

    Raises:
        ValueError: There is no such target.
    """
    section = dict(plan.config.get("quant") or {})
    section["target" if section.get("preset") else "preset"] = known_target(name, "--target")
    plan.config.quant = section
    return replace(plan, settings=quant_settings(section))


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """The work dir and the device of a command.

    Attributes:
        experiment: ``--work-dir``, else the config's ``work_dir``, else ``runs/<config's name>``.
        device: ``--device``, else the config's ``device``.
    """

    experiment: Path
    device: str


def surroundings(arguments: argparse.Namespace) -> Surroundings:
    """Return the work dir and the device that the command line and the config ask for.

    A config that cannot be read is not an error here. `read_plan` reports it, after logging has
    started.
    """
    try:
        config: Any = _config_of(arguments)
    except ValueError:
        config = {}
    # `read_plan` reports a value of another type too.
    work_dir, device = (
        given if isinstance(given := config.get(key), str) else None
        for key in ("work_dir", "device")
    )
    default = Path("runs") / Path(arguments.config).stem
    if arguments.device != "auto":
        device = arguments.device
    return Surroundings(
        experiment=Path(arguments.work_dir or work_dir or default), device=device or "auto"
    )


def _config_of(arguments: argparse.Namespace) -> Any:
    carried: CarriedConfig | None = getattr(arguments, "carried", None)
    return read_config(arguments.config, arguments.cfg_options, carried)


def begin_plan(arguments: argparse.Namespace) -> Plan:
    """Return the plan of `read_plan`, and set up this process as its config says."""
    plan = read_plan(arguments)
    set_up_process(plan.config)
    return plan


def starting_point(arguments: argparse.Namespace, plan: Plan) -> Path:
    """Return the checkpoint that calibration or QAT starts from; every rank must call it.

    It is ``--checkpoint``, else the config's ``load_from``, else its ``resume_from``.

    Raises:
        ValueError: There is none, or it is a URL that cannot be reached.
    """
    config = plan.config
    given = arguments.checkpoint or config.load_from or config.resume_from
    if not given:
        raise ValueError(
            f"{arguments.command} begins with a checkpoint: give --checkpoint FILE.pth, or set"
            " load_from in the config"
        )
    path: Path = on_main_rank(lambda: local_file(str(given)))
    return path


def asked_to_resume(arguments: argparse.Namespace, plan: Plan) -> Asked:
    """Return the checkpoint that the command line and the config want to resume from.

    Raises:
        ValueError: ``--resume-with`` names something that is no setting, or nothing is resumed.
    """
    config = plan.config
    automatic = arguments.resume == "auto" or bool(config.get("auto_resume"))
    file = None if arguments.resume in (None, "auto") else arguments.resume
    changing = names_of(arguments.resume_with)
    if changing and not (file or automatic or config.resume_from):
        raise ValueError("--resume-with goes with --resume; give that too, or leave it out")
    return Asked(
        file=file,
        automatic=automatic,
        of_config=config.resume_from or None,
        is_shared=arguments.command == "run",
        changing=changing,
        trusted=arguments.trust_checkpoint,
    )


def _lay_flags_over(config: Any, arguments: argparse.Namespace) -> None:
    """Set the config keys that correspond to flags of mmdet's own tools."""
    if getattr(arguments, "deterministic", False):
        config.deterministic = True
    if getattr(arguments, "auto_scale_lr", False):
        config.auto_scale_lr = {**(config.get("auto_scale_lr") or {}), "enable": True}
