"""The classes of an exported file, and those of the data set it is to be evaluated on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def refuse_other_classes(path: Path, metadata: Mapping[str, str], classes: tuple[str, ...]) -> None:
    """Refuse a file that does not detect these classes.

    Args:
        path: Of the file, for messages.
        metadata: As `dq.detector.export.metadata_of` makes it.
        classes: Of the data set.

    Raises:
        ValueError: It detects others, or does not say which.
    """
    if "classes" not in metadata:
        raise ValueError(f"{path} was not written by `launcher export`; export the checkpoint")
    own = tuple(json.loads(metadata["classes"]))
    if own != classes:
        raise ValueError(
            f"{path} detects {_few(own)} and data.test has {_few(classes)}; use the config it was"
            " exported with"
        )


def _few(classes: tuple[str, ...]) -> str:
    return f"{len(classes)} classes ({', '.join(classes[:3])}{', ...' if len(classes) > 3 else ''})"
