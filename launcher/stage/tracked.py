"""Track a stage as one run, from its start to its exit code."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dq.detector.config.registry_errors import explain
from dq.detector.data.datasets import dataset_digest
from dq.detector.training.assignment import Resume
from dq.dist.errors.lost import explain_lost_rank
from dq.dist.exchange import collectives
from dq.dist.watch.signals import Stopped
from dq.dist.work.on_main_rank import on_main_rank
from dq.tracking.record.run import Run, flattened, new_run_id, read_run, source
from dq.tracking.tracker import FolderTracker, Resumed, Tracker
from dq.tracking.wandb_copy.variables import project_of
from launcher.failure import STOPPED, WORLD_ERROR, exit_code
from launcher.stage.stage import Stage


@contextmanager
def tracked(stage: Stage, resume: Resume | None = None) -> Iterator[Stage]:
    """Track the body as one run; only the main rank records, but every rank must call it.

    Args:
        stage: The stage that runs in the body.
        resume: The checkpoint that a training resumes from; the run is then the same.

    Yields:
        The stage with its tracker.

    Raises:
        ValueError: On all ranks, if the stage's folder cannot be written.
        Stopped: A signal has stopped the command.
    """
    plan, place = stage.plan, stage.place
    place.signals.raise_if_stopped()
    tracker = Tracker()

    def begin() -> None:
        nonlocal tracker
        run = _run(stage, resume)
        goes_on = None
        if resume is not None and run.id == resume.content.get("meta", {}).get("run_id"):
            training = resume.content.get("training", {})
            by_epoch = plan.config.runner.type == "EpochBasedRunner"
            goes_on = Resumed(
                step=int(training.get("iteration", 0)),
                inside_epoch=by_epoch and training.get("position", 0) > 0,
            )
        relay = place.relay(plan.tracking.init_s, plan.tracking.finish_s)
        tracker = FolderTracker(stage.folder, run, resumed=goes_on, relay=relay)

    on_main_rank(begin)
    code, reason = WORLD_ERROR, None
    try:
        yield replace(stage, tracker=tracker)
        code = 0
    except Stopped:
        code = STOPPED
        raise
    except Exception as error:
        code = exit_code(error)
        reason = explain_lost_rank(error) or explain(error)
        raise
    finally:
        tracker.finish(code, reason)


def _run(stage: Stage, resume: Resume | None) -> Run:
    plan, place = stage.plan, stage.place
    settings = plan.tracking
    kept = None if resume is None else resume.content.get("meta", {}).get("run_id")
    before = read_run(stage.folder)
    mine = before if before is not None and before.id == kept else None
    values = flattened(plan.config._cfg_dict.to_dict())
    more = {
        "world_size": collectives.world_size(),
        "device": place.device.type,
        "seed": plan.seed,
        "dataset_sha256": dataset_digest(plan.config),
        "test_sha256": dataset_digest(plan.config, "test"),
        "bits": plan.bits if stage.name != "float" else "float32",
        "resumed_at": None if resume is None else resume.content.get("meta", {}).get("iter"),
    }
    return Run(
        id=kept or new_run_id(),
        experiment=settings.experiment or place.experiment.resolve().name,
        stage=stage.name,
        config=values,
        source={**source(Path(os.getcwd())), **more},
        parent=None if stage.parent is None else stage.parent.run_id,
        parent_sha256=stage.parent_sha256,
        tags=settings.tags,
        project=project_of(settings.project, os.environ),
        entity=settings.entity,
        started=time.time() if mine is None else mine.started,
    )
