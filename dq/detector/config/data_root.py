"""Change ``data_root`` of a config by the environment or the command line."""

from __future__ import annotations

import logging
from typing import Any

from mmcv import Config

log = logging.getLogger(__name__)


def move_data_root(
    config: Config, of_environment: str | None, of_options: str | None
) -> str | None:
    """Replace the folder ``data_root`` in every path in ``data`` by another folder.

    mmdet does this for ``MMDET_DATASETS``. Here ``data_root`` of the command line does it too, and
    has priority: configs write ``data_root + 'annotations/...'``, which is already one string when
    the command line is read. Unlike mmdet's function, it also changes lists and keeps the slash.

    Args:
        config: As read from its file; changed in place.
        of_environment: ``MMDET_DATASETS``.
        of_options: ``data_root`` of ``--cfg-options``.

    Returns:
        The folder, ending in a slash if the config's does; None if nothing changes.
    """
    goal = of_options or of_environment
    if not goal:
        return None
    name = "--cfg-options data_root" if of_options else "MMDET_DATASETS"
    root = config.get("data_root")
    if not isinstance(root, str) or not root:
        if not of_options:
            log.warning("MMDET_DATASETS has no effect: the config has no data_root")
        return of_options
    if root.endswith("/") and not goal.endswith("/"):
        goal += "/"
    if config.get("data"):
        config.data = _moved(config.data, root, goal)
    config.data_root = goal
    log.info("%s: data are in %s, not in %s", name, goal, root)
    return goal


def _moved(value: Any, root: str, goal: str) -> Any:
    if isinstance(value, str):
        folder = root.rstrip("/")
        if folder and value == folder != root:
            return goal.rstrip("/") or goal
        # A folder whose name only begins in the same way is another one.
        is_inside = value == root or value.startswith(f"{folder}/")
        return goal + value[len(root) :] if is_inside else value
    if isinstance(value, dict):
        return {key: _moved(item, root, goal) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, root, goal) for item in value)
    return value
