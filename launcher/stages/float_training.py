"""The stage that trains the float detector."""

from __future__ import annotations

import time
from functools import partial

from dq.detector.data.datasets import check_evaluation, dataset_digest, dataset_of
from dq.detector.data.leaves import classes_of
from dq.detector.model.build import build_model
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.checkpoint_plan import checkpoint_folder
from dq.detector.training.train import train
from dq.dist.norm.sync_batch_norm import revert_sync_batch_norm
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Asked, Plan
from launcher.session import Session
from launcher.stages.conclusion import conclude, reusable
from launcher.stages.resumption import Begun, kept_meta, resumption
from launcher.stages.synchronized_norms import synchronize_norms
from launcher.stages.tracked import tracked


def train_float(
    plan: Plan, place: Session, *, resume: Asked, sync_bn: str, validate: bool, reuse: bool
) -> StageSummary:
    """Train the float detector and evaluate it on ``data.test``."""
    folder = place.experiment / "float"
    key = plan.key("float", place.device.type, None, sync_bn)
    if reuse and (done := reusable(folder, key)):
        return done
    began = time.monotonic()
    checkpoints = checkpoint_folder(plan.config, folder)
    place.work_dir.hold(checkpoints)
    begun = Begun(
        folder=folder,
        checkpoints=checkpoints,
        key=key,
        settings=plan.training_settings("float", place.device.type, None, sync_bn),
        images=partial(dataset_digest, plan.config),
        quantized=False,
        reuse=reuse,
    )
    found = resumption(resume, begun)
    with tracked(plan, place, "float", resume=found) as tracker:
        seed_everything(plan.seed)
        dataset = dataset_of(plan.config, "train")
        check_evaluation(plan.config)
        detector = build_model(plan.config, classes_of(dataset, "train"), initialise=found is None)
        detector.to(place.device)
        if sync_bn != "auto":
            synchronize_norms(detector, place, sync_bn)
        detector = train(
            plan.config,
            detector,
            dataset,
            work_dir=folder,
            device=place.device,
            seed=plan.seed,
            resume=found,
            key=key,
            meta=kept_meta(begun, resume, tracker),
            validate=validate,
            supervision=place.supervision(plan.guards),
            tracker=tracker,
        )
        revert_sync_batch_norm(detector)
        return conclude(plan, place, detector, "float", key, began, tracker=tracker)
