"""From which checkpoint a stage goes on."""

from __future__ import annotations

import logging
from pathlib import Path

from dq.detector.checkpoint_plan import RESUMABLE
from dq.detector.loop import Resume
from dq.dist import collectives
from dq.dist.checkpoint import latest_checkpoint, load_checkpoint
from dq.dist.one_reader import on_main_rank
from dq.dist.restarts import agent, is_one_of, restart_counted

log = logging.getLogger(__name__)


def resumption(
    resume: str | None, folder: Path, key: str, *, any_config: bool = False
) -> Resume | None:
    """Return the checkpoint to continue from, None to begin anew; the main rank reads it for all.

    Every rank must call it.

    Args:
        resume: ``auto`` or a file; None is ``auto`` in a job that was started again.
        folder: Of the stage.
        key: What the newest checkpoint must have been made with.
        any_config: Take it whatever it was made with when the user asks for it: he may change a
            training on purpose, to make it longer say. A job that was started again never does,
            for it may have been stopped before its first checkpoint, and find another training's.

    Raises:
        ValueError: The file is missing or damaged.
    """
    agents = collectives.all_gather_objects(agent())

    def read() -> Resume | None:
        if resume is None and not restart_counted() and not any(agents):
            return None
        automatic = resume in (None, "auto")
        path = latest_checkpoint(folder, *RESUMABLE) if automatic else Path(str(resume))
        if path is None:
            log.info("no checkpoint in %s, beginning anew", folder)
            return None
        content = load_checkpoint(path)
        if resume is None:
            known = content["meta"].get("agents", ())
            if not restart_counted() and not is_one_of(agents, known):
                return None
            log.info("the job was started again and goes on from its newest checkpoint")
        strict = resume is None or not any_config
        if automatic and strict and content["meta"].get("key") != key:
            log.info("%s is of another config, beginning anew", path)
            return None
        if "optimizer" not in content:
            raise ValueError(
                f"{path} has no optimizer's state, so no training can go on from it; give it with"
                " --checkpoint to begin from its weights, or --resume an epoch_N.pth, step_N.pth"
                " or iter_N.pth"
            )
        return Resume(content=content, source=str(path))

    return on_main_rank(read)
