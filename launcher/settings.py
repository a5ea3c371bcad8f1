"""What a training is made of, kept in its checkpoints and compared where one goes on.

Each setting of the config is in one of four classes. What decides nothing of what is learned is
applied, and so is the length: both are said in a line. What a checkpoint cannot go on with is
refused. All else is refused unless ``--resume-with`` names it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from dq.detector.config.mmdet_keys import TOP_LEVEL_KEYS
from dq.quant.recipes.recipe import Recipe
from dq.tracking.record.run import flattened
from dq.tracking.record.secrets import hide
from launcher.config import QuantSettings

Settings = Mapping[str, str]
SETTINGS, NOT_SET = "settings", "not set"
# Beside the config's own: what else decides a training.
SEED, SYNC_BN, DEVICE, TORCH = "seed", "sync_bn", "device", "torch"
START, IMAGES = "checkpoint", "data.images"

# How a training is watched, kept and evaluated, where it runs, and what it has begun with.
_HARMLESS = (
    *("log_config", "log_level", "checkpoint_config", "tracking", "guards", "evaluation"),
    *("data.val", "data.test", "data.val_dataloader", "data.test_dataloader", "test_cfg"),
    *("model.test_cfg", "data_root", "data.workers_per_gpu", "data.persistent_workers"),
    *(f"data.train_dataloader.{n}" for n in ("workers_per_gpu", "persistent_workers")),
    *("data.train_dataloader.pin_memory", "data.train_dataloader.prefetch_factor"),
    *("custom_imports", "quantize"),
    *("gpu_ids", "dist_params", "mp_start_method", "opencv_num_threads", "cudnn_benchmark"),
    *("deterministic", "find_unused_parameters", "compile", DEVICE, TORCH, START),
    *("model.pretrained", "model.backbone.pretrained", "quant.repair"),
    *(f"quant.schedule.calibration_{n}" for n in ("batches", "batch_size")),
)
# Described elsewhere, or no setting of a training: where it is and where it comes from.
_APART = ("quant", "seed", "work_dir", "load_from", "resume_from", "auto_resume")
_INITIAL = re.compile(r"(?:^|\.)init_cfg(?:\.|$)")
_LENGTH = ("runner.max_epochs", "runner.max_iters", "total_epochs")
# The quantizers in the checkpoint are of this recipe, and its place is counted in this unit.
_FIXED = ("runner.type", *(f"quant.{f.name}" for f in fields(Recipe)))
# Where images lie; the same images may lie elsewhere.
_PLACES = re.compile(r"^data\.train\..*(?:ann_file|img_prefix|data_root|seg_prefix|img_root)")
_TEACHER = "quant.distill"
_OPTIMIZER = ("optimizer", "auto_scale_lr", "quant.learned_lr")
_STEPS = ("accumulate",)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SHOWN, _LONGEST = 4, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that is not what it was when a checkpoint was written.

    Attributes:
        name: Dotted, as in the config.
        before: As it was, as text.
        now: As it is.
    """

    name: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} {_short(self.before)} -> {_short(self.now)}"

    def is_below(self, names: Iterable[str]) -> bool:
        """Whether one of these names is the setting's, or that of a section it is in."""
        return any(self.name == name or self.name.startswith(f"{name}.") for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What changes where a training goes on.

    Attributes:
        optimizer: The optimizer's settings are the config's, not the checkpoint's.
        micro_batches: So are the micro-batches of a step.
    """

    optimizer: bool = False
    micro_batches: bool = False


def described(config: Any) -> dict[str, str]:
    """Return each setting of a complete config as text by its dotted name, without secrets.

    Variables of the config's own, which nobody reads, and its ``quant`` section are left out.
    """
    values = hide(config._cfg_dict.to_dict())
    read = {k: v for k, v in values.items() if k in TOP_LEVEL_KEYS and k not in _APART}
    return _texts(flattened(read))


def described_quantization(settings: QuantSettings) -> dict[str, str]:
    """Return what decides a quantized training besides its config, as `described` does."""
    parts: dict[str, Any] = {
        "quant": asdict(settings.recipe) | asdict(settings.refinements),
        "quant.schedule": asdict(settings.schedule),
        "quant.repair": asdict(settings.repair),
    }
    return _texts({k: v for name, part in parts.items() for k, v in flattened(part, name).items()})


def changes_of(before: Settings, now: Settings) -> list[Change]:
    """Return the settings that differ, in the config's order.

    A setting of an images' place is no change where the images are known to be the same.
    """
    images = before.get(IMAGES)
    same_images = images is not None and images == now.get(IMAGES) != repr(None)
    found = []
    for name in {**now, **before}:
        change = Change(name=name, before=before.get(name, NOT_SET), now=now.get(name, NOT_SET))
        if change.before != change.now and not (same_images and _PLACES.match(name)):
            found.append(change)
    return found


def applied(
    changes: Sequence[Change], consented: Collection[str], source: str, now: Settings
) -> Applied:
    """Return what is to change as a training goes on.

    Args:
        changes: Of the settings.
        consented: What ``--resume-with`` names.
        source: The checkpoint's name, for the message.
        now: All settings.

    Raises:
        ValueError: Something has changed that a checkpoint cannot go on with, or that nobody has
            asked to apply; the line says what, from what to what, and the mend.
    """
    fixed = [change for change in changes if change.is_below(_FIXED)]
    if fixed:
        raise ValueError(
            f"{source} was made with other settings: {shown(fixed)}; no training can go on with"
            " these: set them back, or begin anew without --resume"
        )
    refused = [change for change in changes if not _is_free(change, now)]
    refused = [change for change in refused if not change.is_below(consented)]
    if refused:
        raise ValueError(
            f"{source} was made with other settings: {shown(refused)}; set them back, apply them"
            f" with --resume-with {','.join(_to_consent(refused))}, or begin anew without --resume"
        )
    return Applied(
        optimizer=any(change.is_below(_OPTIMIZER) for change in changes),
        micro_batches=any(change.is_below(_STEPS) for change in changes),
    )


def shown(changes: Sequence[Change]) -> str:
    """Return changes as a line, the first few of many."""
    more = len(changes) - _SHOWN
    words = ", ".join(map(str, changes[:_SHOWN]))
    return f"{words} and {more} more" if more > 0 else words


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """Return the settings that ``--resume-with KEY[,KEY]`` names.

    Raises:
        ValueError: One of them is no setting.
    """
    names = tuple(name.strip() for word in given for name in word.split(",") if name.strip())
    known = sorted({*TOP_LEVEL_KEYS, SYNC_BN})
    for name in names:
        top = name.partition(".")[0]
        if top not in known:
            near = difflib.get_close_matches(top, known, n=1, cutoff=0.6)
            raise ValueError(
                f"--resume-with {name} is not a setting"
                + (f"; did you mean {near[0]}?" if near else "; give a key of the config")
            )
    return names


def _is_free(change: Change, now: Settings) -> bool:
    """Whether a change needs nobody's consent: it decides nothing, or the length alone."""
    if change.name == START and any(name.startswith(f"{_TEACHER}.") for name in now):
        return False  # A training learns from what it began with.
    return change.is_below((*_HARMLESS, *_LENGTH)) or bool(_INITIAL.search(change.name))


def _to_consent(changes: Sequence[Change]) -> list[str]:
    names = [change.name for change in changes]
    if len(names) > _SHOWN:
        names = [".".join(name.split(".")[:2]) for name in names]
    if len(set(names)) > _SHOWN:
        names = [name.partition(".")[0] for name in names]
    return list(dict.fromkeys(names))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _ADDRESS.sub("", repr(value)) for name, value in values.items()}


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
