"""Walk through nested data sections.

A wrapper has one section inside (``dataset``) or several (``datasets``). A section without either
is innermost: its data set reads images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmcv import ConfigDict

Section = Mapping[str, Any]


def parts_of(section: Section) -> list[Any]:
    """Return the sections directly inside a wrapper; empty for an innermost section."""
    if isinstance(section.get("datasets"), list | tuple):
        return list(section["datasets"])
    return [section["dataset"]] if isinstance(section.get("dataset"), Mapping) else []


def with_parts(section: Section, change: Callable[[Any], Any]) -> ConfigDict:
    """Return a shallow copy of the section with ``change`` applied to each of its `parts_of`."""
    found = ConfigDict(section)
    if isinstance(section.get("datasets"), list | tuple):
        found["datasets"] = [change(part) for part in section["datasets"]]
    elif isinstance(section.get("dataset"), Mapping):
        found["dataset"] = change(section["dataset"])
    return found


def innermost(section: Section) -> Iterator[Any]:
    """Yield the innermost sections, in order."""
    parts = parts_of(section)
    for part in parts:
        yield from innermost(part)
    if not parts:
        yield section


def with_innermost(section: Section, change: Callable[[Any], ConfigDict]) -> ConfigDict:
    """Return the section with ``change`` applied to each innermost section."""
    if not parts_of(section):
        return change(section)
    return with_parts(section, lambda part: with_innermost(part, change))


def dicts_in(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every dict in nested settings of any kind, outer ones first."""
    if isinstance(value, dict):
        yield value
        for item in list(value.values()):
            yield from dicts_in(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from dicts_in(item)


def from_outside_in(section: Section) -> Iterator[Any]:
    """Yield the section and the first section inside each, down to an innermost one."""
    yield section
    while parts := parts_of(section):
        section = parts[0]
        yield section
