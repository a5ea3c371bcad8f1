"""Read ``--cfg-options`` and lay them over a config, as mmdet does."""

from __future__ import annotations

import argparse
import copy
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import mmcv
from mmcv import Config

from dq.counted import counted
from dq.detector.config.registry_errors import explain


def parse_options(options: Sequence[str], *, where: str = "--cfg-options") -> dict[str, Any]:
    """Parse ``key=value`` strings as mmdet's ``--cfg-options`` does.

    Args:
        options: The strings.
        where: The option in the message.

    Raises:
        ValueError: A string has no ``=``, or no key before it.
    """
    for option in options:
        key, equals, _ = option.partition("=")
        if not equals or not all(part.strip() for part in key.split(".")):
            raise ValueError(f"{where} {option!r} is not of the form key=value")
    if not options:
        return {}
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--cfg-options", nargs="+", action=mmcv.DictAction)
    try:
        values: dict[str, Any] = parser.parse_args(["--cfg-options", *options]).cfg_options
    except (AssertionError, IndexError, ValueError, argparse.ArgumentError) as error:
        raise ValueError(
            f"{where} {' '.join(options)} cannot be read: {error}; quote lists and tuples:"
            ' key="[(1,2),(3,4)]"'
        ) from error
    return values


def apply_options(
    config: Config, options: Mapping[str, Any], *, where: str = "--cfg-options"
) -> None:
    """Apply dotted overrides to ``config``, in place.

    Raises:
        ValueError: A part of a key does not exist, but is similar to one that exists; or it is none
            of the numbers of a list's parts.
    """
    for key in options:
        _check_path(config._cfg_dict, key, where)
    try:
        # mmcv removes `_delete_` from its argument, which may be needed again.
        config.merge_from_dict(copy.deepcopy(dict(options)))
    except (KeyError, TypeError, IndexError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{where}: an override does not fit the config: {explain(error)}"
        ) from error


def _check_path(config: Mapping[str, Any], key: str, where: str) -> None:
    here: Any = config
    parts = key.split(".")
    for number, part in enumerate(parts):
        if isinstance(here, list):
            _check_number(here, part, where=f"{where} {key}: {'.'.join(parts[:number])}")
            here = here[int(part)]
            continue
        if not isinstance(here, Mapping):
            return
        if part not in here:
            near = difflib.get_close_matches(part, [str(k) for k in here], n=1, cutoff=0.8)
            if near:
                raise ValueError(f"{where} {key}: {part} is not there; did you mean {near[0]}?")
            return
        here = here[part]


def _check_number(parts: Sequence[Any], part: str, *, where: str) -> None:
    """Raise ValueError if a part of a key is not the number of one of a list's parts."""
    if not part.isdigit() or int(part) >= len(parts):
        has = f"has {counted(len(parts), 'part[s]')}" + (", the first is 0" if parts else "")
        raise ValueError(f"{where} is a list, which {has}; {part} is none of them")
