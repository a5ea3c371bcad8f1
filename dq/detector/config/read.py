"""Read an mmdet config file, with overrides, and refuse misspelt keys."""

from __future__ import annotations

import copy
import difflib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmcv import Config
from mmdet.utils import compat_cfg, replace_cfg_vals

from dq.detector.config.config_file import WrongBaseError, load_config_file
from dq.detector.config.config_text import read_config_text, refuse_code
from dq.detector.config.custom_imports import import_modules
from dq.detector.config.data_root import move_data_root
from dq.detector.config.mmdet_keys import KEYS, REFUSED, TOP_LEVEL_KEYS
from dq.detector.config.options import apply_options, parse_options
from dq.detector.config.plain_values import check_values
from dq.error_text import error_text, typed_error_text
from dq.names import check_keys
from dq.whole_file import FULL

# Too short, or too similar to common variable names, to count as a misspelt key.
NOT_MISSPELT = ("seed", "device", "launcher", "gpu_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedConfig:
    """A config from inside a file of another kind, such as an exported model.

    Attributes:
        text: Result of `dq.detector.config.config_text.config_text`.
        trusted: Allow it to import modules and read pickles.
    """

    text: str
    trusted: bool = False


def read_config(
    path: str | Path, options: Sequence[str] = (), carried: CarriedConfig | None = None
) -> Config:
    """Return the config in ``path`` with the overrides in ``options`` applied.

    Overrides are applied before anything is read from the config. They work as if they were in the
    file, also for its imports, its ``${...}`` and its flags.

    Args:
        path: An mmdet 2.x config: Python, JSON or YAML.
        options: ``key=value`` overrides in mmdet's syntax (``optimizer.lr=0.01``).
        carried: The config, if ``path`` is a file that contains it. It is read as data.

    Raises:
        ValueError: The file is missing or broken, or a name is misspelt; the message says which.
    """
    path = Path(path)
    given = parse_options(options)
    if carried is None:
        config = _from_file(path)
    else:
        config = read_config_text(carried.text, path)
        if not carried.trusted:
            refuse_code(config, path)
    if not isinstance(given.get("data_root"), str | None):
        raise ValueError(f"data_root is {given['data_root']!r}; give a path as text")
    root = move_data_root(config, os.environ.get("MMDET_DATASETS"), given.get("data_root"))
    if "data_root" in given:
        given["data_root"] = root
    apply_options(config, given)
    check_top_level(config, path)
    try:
        config = replace_cfg_vals(config)
    except (KeyError, AttributeError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{path}: a ${{...}} in a string cannot be resolved: {error_text(error)}"
        ) from error
    import_modules(config.get("custom_imports"))
    return config


def _from_file(path: Path) -> Config:
    if not path.is_file():
        raise ValueError(f"config {path} does not exist; {_nearest_file(path)}")
    try:
        return load_config_file(path)
    except WrongBaseError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program and may raise anything
        if isinstance(error, OSError) and error.errno in FULL:
            raise RuntimeError(
                f"config {path} cannot be read, because it is first copied into the folder for"
                f" temporary files: {error.strerror}; make room in {tempfile.gettempdir()}, or let"
                " $TMPDIR name another folder"
            ) from error
        raise ValueError(f"config {path} cannot be read: {typed_error_text(error)}") from error


# Keys that ``quant.training`` must not have: a quantized training does not read them there.
_NOT_OF_TRAINING = (
    *("model", "train_cfg", "test_cfg", "data.test", "data.test_dataloader", "data_root"),
    *("load_from", "resume_from", "auto_resume", "seed", "deterministic", "device", "work_dir"),
    *("quantize", "quant", "guards", "tracking", "log_level", "dist_params", "custom_imports"),
    *("cudnn_benchmark", "allow_tf32", "opencv_num_threads", "mp_start_method"),
)
# mmdet's old names, and the keys that `finish` has moved their values to.
_PRESENT_NAMES = {
    "data.samples_per_gpu": ("data.train_dataloader.samples_per_gpu",),
    "data.imgs_per_gpu": ("data.train_dataloader.samples_per_gpu",),
    "data.persistent_workers": ("data.train_dataloader.persistent_workers",),
    "data.workers_per_gpu": tuple(
        f"data.{split}_dataloader.workers_per_gpu" for split in ("train", "val", "test")
    ),
    "data.val.samples_per_gpu": ("data.val_dataloader.samples_per_gpu",),
    "total_epochs": ("runner.max_epochs", "total_epochs"),
}


def training_config(config: Config, overrides: Mapping[str, Any]) -> Config:
    """Return a copy of a complete config with the overrides in ``quant.training`` applied.

    Args:
        config: Result of `finish`.
        overrides: Dotted keys, or whole sections, which may contain ``_delete_``.

    Raises:
        ValueError: A key does not fit, or a quantized training does not read it.
    """
    changed = copy.deepcopy(config)
    flat: dict[str, Any] = {}
    for key, value in overrides.items():
        is_data = key == "data" and isinstance(value, Mapping)
        flat |= {f"data.{k}": v for k, v in value.items()} if is_data else {key: value}
    present: dict[str, Any] = {}
    for key, value in flat.items():
        wrong = [n for n in _NOT_OF_TRAINING if key == n or key.startswith(f"{n}.")]
        if wrong:
            raise ValueError(
                f"quant.training: {key} is not read by a quantized training, which has the same"
                " detector as the float one; set it outside quant.training"
            )
        present |= dict.fromkeys(_PRESENT_NAMES.get(key, (key,)), value)
    apply_options(changed, present, where="quant.training")
    if changed.runner != config.runner:
        changed.pop("total_epochs", None)
    return finish(changed)


# A config may keep other things in `data`, so only names that are nearly one of these are refused.
_OF_DATA = [key.name.partition(".")[2] for key in KEYS if key.name.startswith("data.")]
# Sections of which mmdet and this package would silently ignore any other key.
_OF_SECTIONS = {
    "auto_scale_lr": ("enable", "base_batch_size"),
    "fp16": ("loss_scale", "coalesce", "bucket_size_mb"),
    "log_config": ("interval", "hooks"),
}


def check_top_level(config: Config, path: Path) -> None:
    """Raise ValueError for a misspelt key of the config, or one that nothing reads.

    Keys below the top level are checked where nothing that reads the section would refuse them.
    """
    for name in config:
        if name in REFUSED:
            raise ValueError(f"{path}: nothing reads {name}; {REFUSED[name]}")
        if name in TOP_LEVEL_KEYS:
            continue
        known = [key for key in TOP_LEVEL_KEYS if key not in NOT_MISSPELT]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.85)
        if near:
            raise ValueError(f"{path}: {name} is not a setting; did you mean {near[0]}?")
    for key in ("model", "data"):
        if not isinstance(config.get(key), Mapping):
            raise ValueError(f"{path} has no '{key}' section; it is not an mmdet config")
    for name in config.data:
        near = difflib.get_close_matches(name, _OF_DATA, n=1, cutoff=0.75)
        if name not in _OF_DATA and near:
            raise ValueError(f"{path}: data.{name} is not a setting; did you mean {near[0]}?")
    for section, keys in _OF_SECTIONS.items():
        given = config.get(section)
        if isinstance(given, Mapping):
            check_keys(given, keys, f"{path}: {section}")


# Defaults for a section that is missing, and for a section that is None.
_ABSENT: dict[str, Any] = {
    "optimizer_config": {},
    "lr_config": None,
    "checkpoint_config": {"interval": 1, "max_keep_ckpts": 3},
    "log_config": {"interval": 50, "hooks": [{"type": "TextLoggerHook"}]},
    "log_level": "INFO",
    "load_from": None,
    "resume_from": None,
    "workflow": [("train", 1)],
    "evaluation": {},
}
_NONE = {**_ABSENT, "checkpoint_config": None, "log_config": {"interval": 50, "hooks": []}}
_SECTIONS = ("optimizer_config", "lr_config", "checkpoint_config", "log_config", "evaluation")


def finish(config: Config) -> Config:
    """Return the config with mmdet's defaults for missing sections.

    Raises:
        ValueError: Two settings contradict each other, or a section is not a dict.
    """
    for key, value in _ABSENT.items():
        if key not in config:
            config[key] = copy.deepcopy(value)
        elif config[key] is None:
            config[key] = copy.deepcopy(_NONE[key])
    for key in _SECTIONS:
        if config[key] is not None and not isinstance(config[key], Mapping):
            raise ValueError(f"{key} must be a dict or None, not {config[key]!r}")
    check_values(config)
    config.log_config.setdefault("interval", 50)
    config.log_config.setdefault("hooks", [])
    _check_workflow(config.workflow)
    _merge_total_epochs(config)
    # mmdet's function needs both, but a config may lack them.
    absent = [split for split in ("val", "test") if config.data.get(split) is None]
    for split in absent:
        config.data[split] = {}
    try:
        complete = compat_cfg(config)
    except (AssertionError, AttributeError, TypeError) as error:
        raise ValueError(f"the config contradicts itself: {error_text(error)}") from error
    for split in absent:
        del config.data[split], complete.data[split]
    # This old name has been applied, and must not be applied twice.
    complete.data.pop("imgs_per_gpu", None)
    return complete


def _merge_total_epochs(config: Config) -> None:
    """Make ``total_epochs``, mmdet's old name, and ``runner`` agree."""
    epochs = config.get("total_epochs")
    if config.get("runner") is None:
        if epochs is None:
            raise ValueError("the config has neither runner nor total_epochs; add runner=dict(...)")
        config.runner = {"type": "EpochBasedRunner", "max_epochs": epochs}
    if not isinstance(config.runner, Mapping) or "type" not in config.runner:
        raise ValueError(
            f"runner is {config.runner!r}; use dict(type='EpochBasedRunner', max_epochs=12)"
        )
    if epochs is not None and epochs != config.runner.get("max_epochs"):
        raise ValueError(
            f"total_epochs is {epochs} but runner has"
            f" {', '.join(f'{k}={v}' for k, v in config.runner.items() if k != 'type')}; leave"
            " total_epochs out (it is mmdet's old name), or give both the same"
        )
    if epochs is None and "total_epochs" in config:
        config.pop("total_epochs")


def _check_workflow(workflow: Any) -> None:
    """Raise ValueError for a workflow for which mmdet's tools have no data."""
    flows = workflow if isinstance(workflow, list | tuple) else ()
    modes = [flow[0] if isinstance(flow, list | tuple) and len(flow) == 2 else None
             for flow in flows]  # fmt: skip
    counts = [flow[1] for flow in flows if isinstance(flow, list | tuple) and len(flow) == 2]
    right = modes in (["train"], ["train", "val"])
    if not right or not all(isinstance(n, int) and n is not True and n > 0 for n in counts):
        raise ValueError(
            f"workflow is {workflow!r}; use [('train', 1)], or [('train', 1), ('val', 1)] to see"
            " the losses on data.val as well"
        )


def _nearest_file(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"nor does its folder {parent}"
    near = difflib.get_close_matches(path.name, [p.name for p in parent.glob("*.py")], n=1)
    return f"did you mean {parent / near[0]}?" if near else f"{parent} has no config of such a name"
