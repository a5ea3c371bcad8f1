"""Compare the settings of a training with those in the checkpoint that it resumes from.

A changed setting is handled by its kind:

- If it does not change what is learned, it is applied, and a line says so.
- The length of the training is applied in the same way.
- If the checkpoint cannot be used with it, it is refused.
- Any other change is refused unless ``--resume-with`` names it.
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
from launcher.sections import QuantSettings

Settings = Mapping[str, str]
SETTINGS, NOT_SET = "settings", "not set"
# Names of what decides a training's result besides the config.
SEED, SYNC_BN, DEVICE, TORCH = "seed", "sync_bn", "device", "torch"
START, IMAGES = "checkpoint", "data.images"

# Logging, checkpoints, evaluation, device, and the weights that the training started from.
_HARMLESS = (
    *("log_config", "log_level", "checkpoint_config", "tracking", "guards", "evaluation"),
    *("data.val", "data.test", "data.val_dataloader", "data.test_dataloader", "test_cfg"),
    *("model.test_cfg", "data_root", "data.workers_per_gpu", "data.persistent_workers"),
    *(f"data.train_dataloader.{n}" for n in ("workers_per_gpu", "persistent_workers")),
    *("data.train_dataloader.pin_memory", "data.train_dataloader.prefetch_factor"),
    *("custom_imports", "quantize"),
    *("gpu_ids", "dist_params", "mp_start_method", "opencv_num_threads", "cudnn_benchmark"),
    *("allow_tf32", "channels_last"),
    *("deterministic", "find_unused_parameters", "compile", DEVICE, TORCH, START),
    *("model.pretrained", "model.backbone.pretrained", "quant.repair"),
    *(f"quant.schedule.calibration_{n}" for n in ("batches", "batch_size")),
)
# Described elsewhere, or not a setting of the training itself.
_APART = ("quant", "seed", "work_dir", "load_from", "resume_from", "auto_resume")
_INITIAL = re.compile(r"(?:^|\.)init_cfg(?:\.|$)")
_LENGTH = ("runner.max_epochs", "runner.max_iters", "total_epochs")
# The checkpoint's quantizers were made with this recipe. The runner's type is the unit (epochs or
# iterations) in which its position in the training is counted.
_FIXED = ("runner.type", *(f"quant.{f.name}" for f in fields(Recipe)))
# Paths of images; the same images may have been moved.
_PLACES = re.compile(r"^data\.train\..*(?:ann_file|img_prefix|data_root|seg_prefix|img_root)")
_TEACHER = "quant.distill"
_OPTIMIZER = ("optimizer", "auto_scale_lr", "quant.learned_lr")
_STEPS = ("accumulate",)
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
_SHOWN, _LONGEST = 4, 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A setting that differs from the one in a checkpoint.

    Attributes:
        name: Dotted, as in the config.
        before: Its value in the checkpoint, as text.
        now: Its value now, as text.
    """

    name: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.name} {_short(self.before)} -> {_short(self.now)}"

    def is_below(self, names: Iterable[str]) -> bool:
        """Whether one of these names is this setting, or a section that contains it."""
        return any(self.name == name or self.name.startswith(f"{name}.") for name in names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What a resumed training takes from the config instead of the checkpoint.

    Attributes:
        optimizer: The optimizer's settings.
        micro_batches: The number of micro-batches of a step.
    """

    optimizer: bool = False
    micro_batches: bool = False


def described(config: Any) -> dict[str, str]:
    """Return each setting of a complete config as text by its dotted name, without secrets.

    The config's own variables, which nothing reads, and its ``quant`` section are left out.
    """
    values = hide(config._cfg_dict.to_dict())
    read = {k: v for k, v in values.items() if k in TOP_LEVEL_KEYS and k not in _APART}
    return _texts(flattened(read))


def described_quantization(settings: QuantSettings) -> dict[str, str]:
    """Return the quantization settings as text by name, as `described` does for the config."""
    parts: dict[str, Any] = {
        "quant": asdict(settings.recipe) | asdict(settings.refinements),
        "quant.schedule": asdict(settings.schedule),
        "quant.repair": asdict(settings.repair),
    }
    if settings.training_recipe is not None:
        parts["quant.recipe"] = asdict(settings.training_recipe)
    return _texts({k: v for name, part in parts.items() for k, v in flattened(part, name).items()})


def changes_of(before: Settings, now: Settings) -> list[Change]:
    """Return the settings that differ, in the config's order.

    A changed path of images does not count if the images are known to be the same. If a checkpoint
    is older than a setting of the recipe, it counts as made with that setting's default.
    """
    is_quantized = "quant.observer" in before
    defaults = _texts(flattened(asdict(Recipe()), "quant")) if is_quantized else {}
    images = before.get(IMAGES)
    same_images = images is not None and images == now.get(IMAGES) != repr(None)
    found = []
    for name in {**now, **before}:
        stored = before.get(name, defaults.get(name, NOT_SET))
        change = Change(name=name, before=stored, now=now.get(name, NOT_SET))
        if change.before != change.now and not (same_images and _PLACES.match(name)):
            found.append(change)
    return found


def applied(
    changes: Sequence[Change], consented: Collection[str], source: str, now: Settings
) -> Applied:
    """Return what a resumed training takes from the config instead of the checkpoint.

    Args:
        changes: All changed settings.
        consented: The settings that ``--resume-with`` names.
        source: The checkpoint's name, for the message.
        now: All settings as they are now.

    Raises:
        ValueError: The checkpoint cannot be used with a changed setting, or ``--resume-with`` does
            not name it. The message has the old and the new value and what to do.
    """
    fixed = [change for change in changes if change.is_below(_FIXED)]
    if fixed:
        raise ValueError(
            f"{source} was made with other settings: {shown(fixed)}; it cannot be"
            " resumed with these: set them back, or start a new training without --resume"
        )
    refused = [change for change in changes if not _is_free(change, now)]
    refused = [change for change in refused if not change.is_below(consented)]
    if refused:
        raise ValueError(
            f"{source} was made with other settings: {shown(refused)}; set them back, apply them"
            f" with --resume-with {','.join(_to_consent(refused))}, or start a new training"
            " without --resume"
        )
    return Applied(
        optimizer=any(change.is_below(_OPTIMIZER) for change in changes),
        micro_batches=any(change.is_below(_STEPS) for change in changes),
    )


def shown(changes: Sequence[Change]) -> str:
    """Return the first few changes as one line."""
    more = len(changes) - _SHOWN
    words = ", ".join(map(str, changes[:_SHOWN]))
    return f"{words} and {more} more" if more > 0 else words


def names_of(given: Sequence[str]) -> tuple[str, ...]:
    """Return the settings that ``--resume-with KEY[,KEY]`` names.

    Raises:
        ValueError: One of the names is not a setting.
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
    """Whether a change is applied without ``--resume-with``: it does not change what is learned."""
    if change.name == START and any(name.startswith(f"{_TEACHER}.") for name in now):
        return False  # The training's teacher is the detector that it started from.
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
