"""mmcv's text logger on a disk that fills up: its JSON file is no reason to end a training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from mmcv.runner.hooks import Hook
from mmcv.runner.hooks.logger import TextLoggerHook

log = logging.getLogger(__name__)


def spare_training_(hooks: Iterable[Hook]) -> None:
    """Let text loggers report once, instead of raising, that their file cannot be written."""
    for hook in hooks:
        if isinstance(hook, TextLoggerHook):
            hook._dump_log = _spared(hook, hook._dump_log)


def _spared(hook: TextLoggerHook, dump: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
    said = False

    def write(rows: Any, runner: Any) -> None:
        nonlocal said
        try:
            dump(rows, runner)
        except OSError as error:
            if not said:
                said = True
                path, reason = hook.json_log_path, error.strerror
                log.warning("%s cannot be written: %s; continuing", path, reason)

    return write
