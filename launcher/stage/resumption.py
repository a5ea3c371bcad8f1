"""Choose the checkpoint that a training resumes from, and compare its settings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dq.detector.config.addresses import local_file
from dq.detector.data.datasets import dataset_digest
from dq.detector.model.checkpoint_content import QUANTIZATION
from dq.detector.training.assignment import Resume
from dq.detector.training.checkpoint_order import newest_training
from dq.detector.training.checkpoint_plan import checkpoint_folder
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import load_checkpoint
from dq.dist.rendezvous.restarts import is_known_agent, restart_counted, torchrun_agent
from dq.dist.work.on_main_rank import on_main_rank
from dq.tracking.record.stage_summary import read_summary
from dq.tracking.tracker import Tracker
from launcher.plan import Asked
from launcher.settings import (
    IMAGES,
    SETTINGS,
    START,
    Applied,
    Change,
    Settings,
    applied,
    changes_of,
    shown,
)
from launcher.stage.stage import Stage

log = logging.getLogger(__name__)
# The file of --resume FILE; a restarted job continues from a newer checkpoint instead.
ASKED_FILE = "asked_file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A training that is about to start or to resume.

    Attributes:
        stage: The training.
        checkpoints: The folder of its checkpoints.
        sync_bn: The ranks whose images batch norms share, as ``--sync-bn`` says.
        reuse: Whether it belongs to a chain, which repeats each stage whose settings have changed.
    """

    stage: Stage
    checkpoints: Path
    sync_bn: str
    reuse: bool

    @property
    def settings(self) -> Settings:
        """The settings that decide its result, as text by name, without the images."""
        stage = self.stage
        return stage.plan.training_settings(
            stage.name, stage.place.device.type, stage.parent_sha256, self.sync_bn
        )

    @property
    def images(self) -> str | None:
        """Digest of the training data; reads the annotations."""
        return dataset_digest(self.stage.plan.config)

    @property
    def quantized(self) -> bool:
        """Whether it is quantization-aware."""
        return self.stage.name == "qat"

    @property
    def command(self) -> str:
        """The command for this training alone."""
        return "qat" if self.quantized else "train"


def begun(stage: Stage, config: Any, *, sync_bn: str, reuse: bool) -> Begun:
    """Lock the folder of a training's checkpoints and return the training.

    Args:
        stage: The training.
        config: The config of this training, with the overrides of QAT if it is QAT.
        sync_bn: As ``--sync-bn`` says.
        reuse: Whether it belongs to a chain.
    """
    checkpoints = checkpoint_folder(config, stage.folder)
    stage.place.work_dir.hold(checkpoints)
    return Begun(stage=stage, checkpoints=checkpoints, sync_bn=sync_bn, reuse=reuse)


def resumption(asked: Asked, begun: Begun) -> Resume | None:
    """Return the checkpoint to resume from, or None to start a new training.

    Every rank must call it; the main rank reads for all. ``--resume FILE`` has priority over the
    stage's newest checkpoint, which has priority over the config's ``resume_from``. A restarted job
    always resumes from its newest checkpoint if all settings that decide its result are the same.

    Args:
        asked: What the command line and the config ask for.
        begun: The training.

    Raises:
        ValueError: The file is missing, damaged or of another training, or it was made with other
            settings that ``--resume-with`` does not name.
    """
    agents = collectives.all_gather_objects(torchrun_agent())

    def read() -> Resume | None:
        found = newest_training(begun.checkpoints) if _looks(asked, agents) else None
        if found is not None and _is_own(found[1], asked, begun, agents):
            log.info("the job was restarted and continues from its newest checkpoint")
            return _resume(asked, begun, *found)
        if asked.file is not None:
            return _from_file(asked, begun, Path(asked.file), shared=asked.is_shared)
        newest = None
        if found is None and asked.automatic:
            log.warning("no checkpoint in %s", begun.checkpoints)
        if found is not None:
            newest = _from_newest(asked, begun, *found)
        if newest is not None or asked.of_config is None:
            return newest
        return _from_file(asked, begun, local_file(asked.of_config), shared=True)

    return on_main_rank(read)


def _looks(asked: Asked, agents: list[str | None]) -> bool:
    return restart_counted() or any(agents) or (asked.automatic and asked.file is None)


def _is_own(
    content: Mapping[str, Any], asked: Asked, begun: Begun, agents: list[str | None]
) -> bool:
    """Whether a checkpoint was written by this same job before it was restarted."""
    meta = content["meta"]
    if not restart_counted() and not is_known_agent(agents, meta.get("agents", ())):
        return False
    return (meta.get("key"), meta.get(ASKED_FILE)) == (begun.stage.key, asked_file(asked))


def kept_meta(begun: Begun, asked: Asked, tracker: Tracker) -> dict[str, Any]:
    """Return the entries for ``meta`` of each checkpoint, which a resumed training reads."""
    run = tracker.run  # On the main rank, which writes.
    images = None if run is None else run.source.get("dataset_sha256")
    settings = {**begun.settings, IMAGES: repr(images)}
    return {SETTINGS: settings, ASKED_FILE: asked_file(asked)}


def asked_file(asked: Asked) -> str | None:
    """Return the absolute path of the file in ``--resume FILE``, or None."""
    return None if asked.file is None else str(Path(asked.file).resolve())


def _from_file(asked: Asked, begun: Begun, path: Path, *, shared: bool) -> Resume | None:
    content = load_checkpoint(path, trusted=asked.trusted)
    if (QUANTIZATION in content) is begun.quantized:
        return _resume(asked, begun, path, content)
    of, this = ("float", "quantized") if begun.quantized else ("quantized", "float")
    if shared:
        log.info("%s is of a %s training; the %s one does not resume from it", path, of, this)
        return None
    mend = (
        f"begin from its weights with --checkpoint {path}, or give --resume a file of a quantized"
        " training"
        if begun.quantized
        else f"resume it with `qat --resume {path}`, or give --resume a file of a float training"
    )
    raise ValueError(f"{path} is of a {of} training, which `{begun.command}` is not; {mend}")


def _from_newest(asked: Asked, begun: Begun, path: Path, content: dict[str, Any]) -> Resume | None:
    """Return the stage's newest checkpoint, or None if a chain must repeat the stage."""
    if not asked.automatic:
        if restart_counted():
            log.warning("%s is of another config, so a new training starts", path)
        return None
    changes = _changes(begun, content)
    if begun.reuse and content["meta"].get("key") != begun.stage.key:
        summary = read_summary(begun.stage.folder)
        run = content["meta"].get("run_id")
        is_finished = summary is not None and run is not None and summary.run_id == run
        begins_elsewhere = any(change.name == START for change in changes or ())
        if is_finished or begins_elsewhere or changes is None:
            said = f": {shown(changes)}" if changes else ""
            log.warning("%s is of another config, so a new training starts%s", path, said)
            return None
    return _resume(asked, begun, path, content)


def _changes(begun: Begun, content: Mapping[str, Any]) -> list[Change] | None:
    """Return the settings that differ from a checkpoint's; None if it has no settings."""
    before = content.get("meta", {}).get(SETTINGS)
    if before is None:
        return None
    images = {IMAGES: repr(begun.images)} if IMAGES in before else {}
    return changes_of(before, {**begun.settings, **images})


def _resume(asked: Asked, begun: Begun, path: Path, content: dict[str, Any]) -> Resume:
    if "optimizer" not in content:
        begin = "--checkpoint" if begun.quantized else "--cfg-options load_from=FILE.pth"
        raise ValueError(
            f"{path} has no optimizer's state, so no training can resume from it; give it with"
            f" {begin} to begin from its weights, or --resume an epoch_N.pth, step_N.pth"
            " or iter_N.pth"
        )
    changes = _changes(begun, content)
    apply = Applied()
    if changes is None:
        log.warning("%s does not contain its settings, so they are not compared", path)
    elif changes:
        apply = applied(changes, asked.changing, str(path), begun.settings)
        log.warning("continuing with other settings than %s: %s", path.name, shown(changes))
    return Resume(
        content=content,
        source=str(path),
        new_optimizer_settings=apply.optimizer,
        new_micro_batches=apply.micro_batches,
    )
