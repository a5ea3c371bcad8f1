"""Settings that must be whole numbers, texts or sections: others would fail deep in mmcv."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmcv import Config

# The least value of settings that are whole numbers.
_NUMBERS: Mapping[str, int] = {
    "runner.max_epochs": 0,
    "runner.max_iters": 0,
    "total_epochs": 0,
    "data.workers_per_gpu": 0,
    **{f"data.{s}_dataloader.workers_per_gpu": 0 for s in ("train", "val", "test")},
    "log_config.interval": -1,
}
_TEXTS = ("data_root", "load_from", "resume_from", "work_dir")
_SECTIONS = ("optimizer_config.grad_clip",)


def check_values(config: Config) -> None:
    """Raise ValueError for the first setting whose value is of another type, or too small."""
    for key, least in _NUMBERS.items():
        _check_number(key, _value(config, key), least)
    for key, section in _wrappers("data", config.get("data")):
        _check_number(f"{key}.times", section.get("times"), 1)
    for key in _TEXTS:
        given = config.get(key)
        if given is not None and not isinstance(given, str):
            raise ValueError(f"{key} is {given!r}; give a path as text")
    for key in _SECTIONS:
        given = _value(config, key)
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"{key} is {given!r}; give a dict, or None")


def _check_number(key: str, given: Any, least: int) -> None:
    whole = isinstance(given, int) and not isinstance(given, bool)
    if given is not None and not (whole and given >= least):
        raise ValueError(f"{key} is {given!r}; give a whole number from {least} up")


def _value(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping | Config) else None
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
