"""Check the storage backends of data sets other than the disk: databases, servers, archives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import mmcv

from dq.detector.config.packages import BACKENDS
from dq.error_text import error_text

GIVEN = "file_client_args"


def check_storage(section: Mapping[str, Any], split: str) -> None:
    """Raise ValueError if the storage backend of an innermost section cannot be used.

    mmcv would fail only in a worker process, for each image.

    Args:
        section: A section from `dq.detector.config.nested_sections.innermost`.
        split: Its name in the config, for messages.
    """
    for given in _storages(section):
        package = BACKENDS.get(str(given.get("backend")))
        reason = ""
        # Check this first: a backend whose constructor fails prints another error when it is
        # deleted.
        if package is not None and package.is_missing:
            reason = f"it needs the package {package.module}, which is not installed"
        else:
            try:
                mmcv.FileClient(**given)
            except Exception as error:  # that package may raise anything
                reason = error_text(error)[:200]
        if reason:
            raise ValueError(f"data.{split}: {GIVEN} {dict(given)} cannot be used: {reason}")


def _storages(section: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(section, Mapping):
        if isinstance(section.get(GIVEN), Mapping):
            yield section[GIVEN]
        for value in section.values():
            yield from _storages(value)
    elif isinstance(section, list | tuple):
        for value in section:
            yield from _storages(value)
