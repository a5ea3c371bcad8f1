"""The control of a quantized training: the float detector, trained further by the same steps."""

from __future__ import annotations

import copy
from pathlib import Path

from dq.detector.config.read import training_config
from dq.detector.data.datasets import check_evaluation, dataset_of
from dq.detector.model.checkpoint_content import has_float_weights, recipe_of
from dq.detector.model.stored_detector import float_detector
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Continued
from dq.detector.training.train import train
from dq.dist.norm.sync_batch_norm import revert_sync_batch_norm
from dq.tracking.record.stage_summary import StageSummary
from launcher.plan import Asked, Plan
from launcher.session import Session
from launcher.stage.conclusion import conclude
from launcher.stage.resumption import begun, kept_meta, resumption
from launcher.stage.stage import read_checkpoint, reusable, stage_of
from launcher.stage.synchronized_norms import synchronize_norms
from launcher.stage.tracked import tracked
from launcher.stage.workplace import workplace
from launcher.stages.training_recipe import chosen


def train_control(
    plan: Plan,
    place: Session,
    checkpoint: Path,
    *,
    resume: Asked,
    sync_bn: str,
    validate: bool,
    trusted: bool,
    reuse: bool,
) -> StageSummary:
    """Train the float detector further with the steps, rates and norms of the quantized training.

    What the quantized detector gains beyond this is a gain of quantization-aware training. What
    both gain shows that the float detector was not trained to its end. The control uses none of
    QAT's own methods (learned scales, distillation, oscillation), but it averages the weights too.

    Args:
        plan: All settings of the command.
        place: The process.
        checkpoint: That of the quantized training: float or calibrated.
        resume: The checkpoint that the user wants to resume from; only ``--resume`` without a file
            applies here.
        sync_bn: ``auto``, ``on``, ``node`` or ``off``, as ``--sync-bn`` says.
        validate: Whether to evaluate on ``data.val`` during the training.
        trusted: Whether ``checkpoint`` may be unpickled.
        reuse: Whether a finished stage with the same settings is used instead.

    Raises:
        ValueError: The checkpoint's weights are no longer those of a float detector.
    """
    parent = read_checkpoint(checkpoint, trusted=trusted)
    stored = recipe_of(parent.content)
    if stored is not None and (stored.free_clips or not has_float_weights(parent.content)):
        raise ValueError(
            f"{checkpoint} was equalized, so it is not the float detector any more; give"
            " --checkpoint the float checkpoint for --control"
        )
    begins = stage_of(plan, place, "control", parent, sync_bn)
    if reuse and (done := reusable(begins)):
        return done
    asked = Asked(automatic=resume.automatic, trusted=resume.trusted)
    # With the data of the quantized training, which may differ from the float one's.
    config = training_config(plan.config, plan.settings.training)
    training = begun(begins, config, sync_bn=sync_bn, reuse=reuse)
    found = resumption(asked, training)
    with tracked(begins, found) as stage:
        seed_everything(plan.seed)
        dataset = dataset_of(config, "train")
        check_evaluation(config)
        detector = float_detector(plan.config, parent.content, parent.source, place.device)
        settings = chosen(plan, detector, dataset, parent, found)
        synchronize_norms(detector, place, "on" if sync_bn == "auto" else sync_bn)
        config = copy.deepcopy(settings.config)
        # The weights are in the detector already.
        config.load_from = None
        meta = {**kept_meta(training, asked, stage.tracker), **settings.meta}
        trained = train(
            config,
            detector,
            dataset,
            workplace(stage, meta=meta),
            seed=plan.seed,
            task=Continued(
                schedule=settings.schedule,
                ema=settings.refinements.ema,
                most_update=settings.most_update,
            ),
            resume=found,
            validate=validate,
        )
        revert_sync_batch_norm(trained.detector)
        return conclude(stage, trained.detector)
