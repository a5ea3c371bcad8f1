"""Read an mmdet config file, with overrides, and refuse what is mistyped."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
from mmcv import Config
from mmdet.utils import compat_cfg, replace_cfg_vals, update_data_root

# What mmdet 2.28 and this launcher read at the top level of a config.
TOP_LEVEL_KEYS = (
    "model",
    "data",
    "optimizer",
    "optimizer_config",
    "lr_config",
    "momentum_config",
    "runner",
    "total_epochs",
    "evaluation",
    "checkpoint_config",
    "log_config",
    "custom_hooks",
    "custom_imports",
    "load_from",
    "resume_from",
    "workflow",
    "fp16",
    "log_level",
    "auto_scale_lr",
    "find_unused_parameters",
    "quantize",
    "quant",
    "accumulate",
    "guards",
    "tracking",
    "compile",
)


def read_config(path: str | Path, options: Sequence[str] = ()) -> Config:
    """Return the config in ``path`` with ``options`` laid over it.

    Args:
        path: An mmdet 2.x Python config.
        options: ``key=value`` overrides in mmdet's syntax (``optimizer.lr=0.01``).

    Raises:
        ValueError: The file is missing or broken, or a name is mistyped; the message says which.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"config {path} does not exist; {_nearest_file(path)}")
    try:
        config = Config.fromfile(str(path))
    except (SyntaxError, KeyError, TypeError, NameError, AttributeError, OSError, ImportError) as e:
        reason = " ".join(str(e).split())
        raise ValueError(f"config {path} cannot be read: {type(e).__name__}: {reason}") from e
    apply_options(config, parse_options(options))
    check_top_level(config, path)
    config = replace_cfg_vals(config)
    update_data_root(config)
    return config


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Parse ``key=value`` strings as mmdet's ``--cfg-options`` does.

    Raises:
        ValueError: A string has no ``=``.
    """
    for option in options:
        if "=" not in option:
            raise ValueError(f"--cfg-options {option!r} is not of the form key=value")
    if not options:
        return {}
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=mmcv.DictAction)
    values: dict[str, Any] = parser.parse_args(["--cfg-options", *options]).cfg_options
    return values


def apply_options(config: Config, options: Mapping[str, Any]) -> None:
    """Lay dotted overrides over ``config``, in place.

    Raises:
        ValueError: A part of a key does not exist and looks like one that does.
    """
    for key in options:
        _check_path(config._cfg_dict, key)
    try:
        config.merge_from_dict(dict(options))
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise ValueError(f"an override does not fit the config: {error}") from error


def check_top_level(config: Config, path: Path) -> None:
    """Raise ValueError for a top-level name that is a misspelt key."""
    for name in config:
        if name in TOP_LEVEL_KEYS:
            continue
        near = difflib.get_close_matches(name, TOP_LEVEL_KEYS, n=1, cutoff=0.85)
        if near:
            raise ValueError(f"{path}: {name} is not a setting; did you mean {near[0]}?")
    for key in ("model", "data"):
        if key not in config:
            raise ValueError(f"{path} has no '{key}' section; it is not an mmdet config")


def finish(config: Config) -> Config:
    """Return the config with mmdet's defaults for what it leaves out."""
    defaults: dict[str, Any] = {
        "optimizer_config": {},
        "lr_config": None,
        "checkpoint_config": {"interval": 1},
        "log_config": {"interval": 50, "hooks": [{"type": "TextLoggerHook"}]},
        "log_level": "INFO",
        "load_from": None,
        "resume_from": None,
        "workflow": [("train", 1)],
        "evaluation": {},
    }
    for key, value in defaults.items():
        if config.get(key) is None and value is not None:
            config[key] = value
    if "runner" not in config:
        if "total_epochs" not in config:
            raise ValueError("the config has neither runner nor total_epochs; add runner=dict(...)")
        config.runner = {"type": "EpochBasedRunner", "max_epochs": config.total_epochs}
    return _modern(config)


def _modern(config: Config) -> Config:
    """Return the config with what older versions of mmdet called otherwise in its new place.

    mmdet's own function for it asks for every section of data, and fails on what is named twice.
    """
    data = config.data
    absent = [split for split in ("val", "test") if not data.get(split)]
    for split in absent:
        data[split] = {}
    try:
        found: Config = compat_cfg(config)
    except AssertionError as error:
        raise ValueError(f"the data section says a thing twice: {error}") from error
    finally:
        for split in absent:
            del data[split]
    for split in absent:
        del found.data[split]
    return found


def config_text(config: Config) -> str:
    """Return the config as Python, for those who read a checkpoint.

    mmcv's own way sets strings between quotes that it does not escape, so a path with a quote in it
    is none of Python's to its formatter; such a config is written plainly.
    """
    try:
        text: str = config.pretty_text
    except Exception:  # of whatever kind the formatter's parser raises
        text = "".join(f"{name} = {value!r}\n" for name, value in config._cfg_dict.items())
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean X?`` for the nearest known name, else a list of them all."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(names)}"


def _check_path(config: Mapping[str, Any], key: str) -> None:
    here: Any = config
    for part in key.split("."):
        if not isinstance(here, Mapping):
            return
        if part not in here:
            near = difflib.get_close_matches(part, [str(k) for k in here], n=1, cutoff=0.8)
            if near:
                raise ValueError(
                    f"--cfg-options {key}: {part} is not there; did you mean {near[0]}?"
                )
            return
        here = here[part]


def _nearest_file(path: Path) -> str:
    parent = path.parent
    if not parent.is_dir():
        return f"nor does its folder {parent}"
    near = difflib.get_close_matches(path.name, [p.name for p in parent.glob("*.py")], n=1)
    return f"did you mean {parent / near[0]}?" if near else f"{parent} has no config of such a name"
