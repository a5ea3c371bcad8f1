"""Where a config's data lie: ``data_root`` moved by the environment or the command line."""

from __future__ import annotations

import logging
from typing import Any

from mmcv import Config

log = logging.getLogger(__name__)


def move_data_root(
    config: Config, of_environment: str | None, of_options: str | None
) -> str | None:
    """Let every path below ``data`` that begins in ``data_root`` begin in another folder.

    mmdet does so with ``MMDET_DATASETS``. Here the command line's ``data_root`` does it too, and
    goes first: configs write ``data_root + 'annotations/...'``, which is a finished string when
    the command line is read. Unlike mmdet's function it looks into lists, and keeps the slash.

    Args:
        config: As read from its file; changed.
        of_environment: ``MMDET_DATASETS``.
        of_options: ``data_root`` of ``--cfg-options``.

    Returns:
        The folder, with a slash at its end where the config's has one; None where nothing moves.
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
    log.info("%s: data lie in %s, not in %s", name, goal, root)
    return goal


def _moved(value: Any, root: str, goal: str) -> Any:
    if isinstance(value, str):
        return goal + value[len(root) :] if value.startswith(root) else value
    if isinstance(value, dict):
        return {key: _moved(item, root, goal) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_moved(item, root, goal) for item in value)
    return value
