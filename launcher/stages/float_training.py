"""The stage that trains the float detector."""

from __future__ import annotations

from pathlib import Path

from dq.detector.data.datasets import check_evaluation, dataset_of
from dq.detector.data.leaves import classes_of
from dq.detector.model.build import build_model
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.train import train
from dq.dist.norm.sync_batch_norm import revert_sync_batch_norm
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Asked, Plan
from launcher.session import Session
from launcher.stage.conclusion import conclude
from launcher.stage.resumption import begun, kept_meta, resumption
from launcher.stage.stage import check_start, reusable, stage_of
from launcher.stage.synchronized_norms import synchronize_norms
from launcher.stage.tracked import tracked
from launcher.stage.workplace import workplace


def train_float(
    plan: Plan, place: Session, *, resume: Asked, sync_bn: str, validate: bool, reuse: bool
) -> StageSummary:
    """Train the float detector and evaluate it on ``data.test``.

    Args:
        plan: All settings of the command.
        place: The process.
        resume: The checkpoint that the user wants to resume from.
        sync_bn: ``auto``, ``on``, ``node`` or ``off``, as ``--sync-bn`` says.
        validate: Whether to evaluate on ``data.val`` during the training.
        reuse: Whether a finished stage with the same settings is used instead.
    """
    begins = stage_of(plan, place, "float", None, sync_bn)
    if reuse and (done := reusable(begins)):
        return done
    if plan.config.load_from:
        check_start(place, Path(plan.config.load_from), begins.name)
    training = begun(begins, plan.config, sync_bn=sync_bn, reuse=reuse)
    found = resumption(resume, training)
    with tracked(begins, found) as stage:
        seed_everything(plan.seed)
        dataset = dataset_of(plan.config, "train")
        check_evaluation(plan.config)
        detector = build_model(plan.config, classes_of(dataset, "train"), initialise=found is None)
        detector.to(place.device)
        if sync_bn != "auto":
            synchronize_norms(detector, place, sync_bn)
        trained = train(
            plan.config,
            detector,
            dataset,
            workplace(
                stage,
                meta=kept_meta(training, resume, stage.tracker),
                trusted=resume.trusted,
            ),
            seed=plan.seed,
            resume=found,
            validate=validate,
        )
        detector = trained.detector
        revert_sync_batch_norm(detector)
        return conclude(stage, detector)
