"""Where data sets keep their files, beside the disk: data bases, servers, archives."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv

# What mmcv's storages need, and import only when they are used.
PACKAGES = {"lmdb": "lmdb", "petrel": "petrel_client", "ceph": "ceph", "memcached": "mc"}
GIVEN = "file_client_args"


def check_storage(section: Mapping[str, Any], split: str) -> None:
    """Raise ValueError where a storage that an innermost section names cannot be used.

    mmcv would say so in a loader process, image by image.

    Args:
        section: As `dq.detector.data.data_section.innermost` yields it.
        split: Its name in the config, for messages.
    """
    for given in _storages(section):
        package = PACKAGES.get(str(given.get("backend")))
        reason = ""
        # Asked first: a storage that fails half-made complains once more when it is thrown away.
        if package is not None and importlib.util.find_spec(package) is None:
            reason = f"it needs the package {package}, which is not installed"
        else:
            try:
                mmcv.FileClient(**given)
            except Exception as error:  # of whatever kind that package raises
                reason = " ".join(str(error).split())[:200]
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
