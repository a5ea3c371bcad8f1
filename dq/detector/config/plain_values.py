"""Settings that must be whole numbers, texts or sections: others would fail deep in mmcv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmcv import Config

from dq.detector.config.training_values.optimizer_values import check_optimizer_values
from dq.detector.config.training_values.schedule_values import check_schedule
from dq.field_types import check_value

_SPLITS = ("train", "val", "test")
# The least value of settings that are whole numbers.
_NUMBERS: Mapping[str, int] = {
    "accumulate": 1,
    "data.workers_per_gpu": 0,
    **{f"data.{s}_dataloader.workers_per_gpu": 0 for s in _SPLITS},
    "log_config.interval": -1,
}
# The same, and None is as if they were left out.
_NUMBERS_OR_NONE: Mapping[str, int] = {
    "runner.max_epochs": 0,
    "runner.max_iters": 0,
    "total_epochs": 0,
    "auto_scale_lr.base_batch_size": 0,
}
_TEXTS = ("data_root", "load_from", "resume_from", "work_dir")
# Lists are joined, and may contain lists.
_LIST = tuple[Mapping[str, Any] | tuple[Any, ...], ...]
_DATASETS = Mapping[str, Any] | tuple[Mapping[str, Any] | _LIST, ...]
_TYPES: Mapping[str, Any] = {
    "data": Mapping,
    **{f"data.{split}": _DATASETS | None for split in _SPLITS},
    **{f"data.{split}_dataloader": Mapping for split in _SPLITS},
    **dict.fromkeys(("data.samples_per_gpu", "data.imgs_per_gpu"), int),
    "data.persistent_workers": bool,
    "channels_last": bool,
    **dict.fromkeys(("auto_resume", "cudnn_benchmark", "deterministic"), bool | None),
    **dict.fromkeys(("allow_tf32", "find_unused_parameters"), bool | None),
    "compile": bool | Mapping | None,
    "device": str | None,
    **dict.fromkeys(("seed", "opencv_num_threads"), int | None),
    "auto_scale_lr": Mapping | None,
    "auto_scale_lr.enable": bool,
    "runner.type": str,
    "evaluation.interval": int,
    "evaluation.start": int | None,
    **dict.fromkeys(("evaluation.save_best", "evaluation.rule"), str | None),
    "evaluation.dynamic_intervals": tuple[Any, ...] | None,
    "log_config.hooks": tuple[Any, ...] | None,
    "custom_hooks": tuple[Any, ...] | Mapping | None,
}
_ABSENT = object()


def check_values(config: Config) -> None:
    """Raise ValueError for the first setting whose value is of another type, or too small."""
    for key, least in _NUMBERS.items():
        if (given := _value(config, key)) is not _ABSENT:
            _check_number(key, given, least)
    for key, least in _NUMBERS_OR_NONE.items():
        if (given := _value(config, key)) not in (_ABSENT, None):
            _check_number(key, given, least)
    for key, section in _wrappers("data", config.get("data")):
        if section.get("times") is not None:
            _check_number(f"{key}.times", section["times"], 1)
    for key in _TEXTS:
        given = config.get(key)
        if given is not None and not isinstance(given, str):
            raise ValueError(f"{key} is {given!r}; give a path as text")
    for key, annotation in _TYPES.items():
        if (given := _value(config, key)) is not _ABSENT:
            check_value(key, given, annotation)
    check_schedule(config.get("lr_config"))
    check_optimizer_values(config.get("optimizer_config") or {}, config.get("fp16"))


def _check_number(key: str, given: Any, least: int) -> None:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if not (whole and given >= least):
        raise ValueError(f"{key} is {given!r}; give a whole number from {least} up")


def _value(config: Config, key: str) -> Any:
    """Return a setting's value; `_ABSENT` without it."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping | Config) or part not in value:
            return _ABSENT
        value = value[part]
    return value


def _wrappers(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the sections that repeat a data set, with their names."""
    if isinstance(value, Mapping):
        if value.get("type") == "RepeatDataset":
            yield key, value
        for name, inner in value.items():
            yield from _wrappers(f"{key}.{name}", inner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _wrappers(f"{key}.{number}", inner)
