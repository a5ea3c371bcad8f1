"""From which checkpoint a stage goes on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dq.detector.addresses import local_file
from dq.detector.checkpoint import QUANTIZATION
from dq.detector.checkpoint_order import newest_training
from dq.detector.loop import Resume
from dq.dist import collectives
from dq.dist.checkpoint import load_checkpoint
from dq.dist.one_reader import on_main_rank
from dq.dist.restarts import agent, is_one_of, restart_counted
from launcher.plan import Asked

log = logging.getLogger(__name__)


def resumption(
    asked: Asked, folder: Path, key: str, *, quantized: bool, any_config: bool = False
) -> Resume | None:
    """Return the checkpoint to continue from, None to begin anew; the main rank reads it for all.

    Every rank must call it.

    Args:
        asked: By the command line and the config. A job that was started again goes on from its
            newest checkpoint whatever they say.
        folder: Of the stage's checkpoints.
        key: What the newest checkpoint must have been made with.
        quantized: Whether the training is; a checkpoint that ``resume_from`` names is the other
            training's where it is otherwise.
        any_config: Take it whatever it was made with when the user asks for it: he may change a
            training on purpose, to make it longer say. A job that was started again never does,
            for it may have been stopped before its first checkpoint, and find another training's.

    Raises:
        ValueError: The file is missing or damaged.
    """
    agents = collectives.all_gather_objects(agent())

    def read() -> Resume | None:
        if asked.file is not None:
            return _from(Path(asked.file))
        newest = _newest(folder, key, asked, agents, any_config=any_config)
        if newest is not None or asked.of_config is None:
            return newest
        source = local_file(asked.of_config)
        found = _from(source)
        if (QUANTIZATION in found.content) is not quantized:
            of, this = ("float", "quantized") if quantized else ("quantized", "float")
            log.info("resume_from %s is of a %s training; the %s one begins anew", source, of, this)
            return None
        return found

    return on_main_rank(read)


def _newest(
    folder: Path, key: str, asked: Asked, agents: Sequence[str | None], *, any_config: bool
) -> Resume | None:
    """Return the newest whole checkpoint of the stage where it is to be taken."""
    if not asked.automatic and not restart_counted() and not any(agents):
        return None
    found = newest_training(folder)
    if found is None:
        log.info("no checkpoint in %s", folder)
        return None
    path, content = found
    if not asked.automatic:
        known = content["meta"].get("agents", ())
        if not restart_counted() and not is_one_of(agents, known):
            return None
        log.info("the job was started again and goes on from its newest checkpoint")
    strict = not asked.automatic or not any_config
    if strict and content["meta"].get("key") != key:
        log.info("%s is of another config, beginning anew", path)
        return None
    return _checked(content, path)


def _from(path: Path) -> Resume:
    return _checked(load_checkpoint(path), path)


def _checked(content: dict[str, Any], path: Path) -> Resume:
    if "optimizer" not in content:
        raise ValueError(
            f"{path} has no optimizer's state, so no training can go on from it; give it with"
            " --checkpoint to begin from its weights, or --resume an epoch_N.pth, step_N.pth"
            " or iter_N.pth"
        )
    return Resume(content=content, source=str(path))
