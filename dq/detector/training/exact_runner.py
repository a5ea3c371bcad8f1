"""The common part of both runners: steps, exact checkpoints, resuming, stopping on request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dq.counted import counted
from dq.detector.config.registry_errors import explain
from dq.detector.hooks.quantization import averaged
from dq.detector.model.checkpoint_content import compose, weights_of
from dq.detector.step.losses import LOSSES, SAME_LOSSES, LossLog, LossValues
from dq.detector.step.optimizer_step import OptimizerStep
from dq.detector.step.rank_state import Plain, plain_attributes, set_pending_logs
from dq.detector.step.supervision import Supervision
from dq.detector.training.checkpoint_order import ATTEMPT, Place
from dq.detector.training.checkpoint_plan import Age, CheckpointPlan, remove_old
from dq.detector.training.resume_state import compare_weights, load_training_state, training_state
from dq.dist.exchange import collectives
from dq.dist.exchange.agreed_names import agreed_names
from dq.dist.exchange.data_parallel import unused_parameters_named, unwrap
from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.watch.signals import Stopped
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.weight_average import WeightAverage
from dq.tracking.tracker import Tracker
from dq.whole_file import link_whole

log = logging.getLogger(__name__)
CHECKPOINT, STOP = "checkpoint", "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class Equipment:
    """The objects that a training's runner needs besides the arguments of mmcv's runners.

    Attributes:
        graph: The detector's quantized graph; None in float training.
        recipe: The recipe that the graph was prepared with.
        average: Average of the weights, or None. Checkpoints have it as the detector's weights.
        companions: Further objects with state to resume, by name; with ``state_dict()`` and
            ``load_state_dict(state)``.
        optimizer_step: Runs the optimizer's steps; None if a hook of the config does.
        plan: When checkpoints are written.
        supervision: Watches the training: signals, guards, clocks.
        tracker: Records the training.
        steps_per_epoch: Number of steps of the training loader.
    """

    graph: QuantizedGraph | None = None
    recipe: Recipe | None = None
    average: WeightAverage | None = None
    companions: Mapping[str, Any] = field(default_factory=dict)
    optimizer_step: OptimizerStep | None = None
    plan: CheckpointPlan = field(default_factory=CheckpointPlan)
    supervision: Supervision = field(default_factory=Supervision)
    tracker: Tracker = field(default_factory=Tracker)
    steps_per_epoch: int = 1


class Training:
    """A mixin for mmcv's runners.

    Args:
        equipment: Its attributes become attributes of the runner.
        given: Arguments of mmcv's runners.

    Attributes:
        phase: Phase of the quantizers.
        position: Number of finished steps in this epoch.
        pending: Losses of a resumed training that are not logged yet.
    """

    phase: Phase = Phase.OFF
    position: int = 0
    pending: Mapping[str, Any] | None = None
    counts_epochs: bool
    model: nn.Module
    optimizer: Any
    meta: dict[str, Any]
    work_dir: str
    data_loader: Any
    hooks: Any
    mode: str
    epoch: int
    iter: int
    max_epochs: int
    max_iters: int

    def __init__(self, *, equipment: Equipment, **given: Any) -> None:
        super().__init__(**given)
        self.graph, self.recipe = equipment.graph, equipment.recipe
        self.average, self.companions = equipment.average, equipment.companions
        self.optimizer_step = equipment.optimizer_step
        self.plan, self.age = equipment.plan, Age(60 * equipment.plan.minutes)
        self.supervision, self.tracker = equipment.supervision, equipment.tracker
        self.steps_per_epoch = equipment.steps_per_epoch
        self.log_buffer = LossLog()
        self.attributes: Plain = plain_attributes(unwrap(self.model))

    def call_hook(self, fn_name: str) -> None:
        """Call all hooks in the order of their priorities.

        Raises:
            ValueError: A hook of the user, mmcv or mmdet lacks a package or fails an assertion.
            RuntimeError: Another error in such a hook; the message names the hook.
        """
        for hook in self.hooks:
            try:
                getattr(hook, fn_name)(self)
            except (ImportError, AssertionError) as error:
                if is_own(hook):
                    raise
                raise ValueError(failure(hook, fn_name, error)) from error
            except (AttributeError, TypeError, LookupError) as error:
                if is_own(hook):
                    raise
                raise RuntimeError(failure(hook, fn_name, error)) from error

    def run_iter(self, data_batch: Any, train_mode: bool, **_: Any) -> None:
        """Run one step forward on this rank's batch, or on a list of micro-batches."""
        model: Any = self.model
        batches = data_batch if isinstance(data_batch, list) else [data_batch]
        device = next(model.parameters()).device
        with self.supervision.clock.work("computing", device), unused_parameters_named(model):
            if not train_mode:
                outputs = model.val_step(batches[0], self.optimizer)
            elif self.optimizer_step is None:
                outputs = model.train_step(batches[0], self.optimizer)
            else:
                outputs = self.optimizer_step.forward(self, batches)
        if collectives.world_size() > 1 and any(map(may_read_losses, self.hooks)):
            outputs["log_vars"] = _of_all_ranks(outputs["log_vars"])
        self.log_buffer.update(outputs["log_vars"], outputs["num_samples"])
        self.outputs = outputs

    def train_step_(self, batches: list[Any], number: int) -> None:
        """Do one step with all its hooks; ``number`` counts from the start of the epoch.

        ``data_batch`` is the batch, as in mmcv. If ``accumulate`` is more than 1, it is a list of
        this rank's micro-batches.
        """
        self.data_batch = batches[0] if len(batches) == 1 else batches
        with self.supervision.clock.phase("preparing a step"):
            self.call_hook("before_train_iter")
        self.run_iter(batches, train_mode=True)
        self.call_hook("after_train_iter")
        del self.data_batch
        self.position = number + 1

    def end_step(self) -> None:
        """Write a checkpoint or stop if it is due; called after the step has been counted."""
        done, watch = self.iter, self.supervision
        watch.alive(f"step {done}")
        guards = watch.guards
        if guards.compare_every and done % guards.compare_every == 0:
            compare_weights(unwrap(self.model))
        if collectives.is_main_rank() and self.age.is_too_old():
            watch.agreement.ask(CHECKPOINT)
            self.age.renew()
        due = watch.agreement.due(done)
        if self.plan.at_step(done, self.max_iters) or due or self._evaluation_follows():
            self.save_training()
        if STOP in due:
            raise Stopped(due[STOP])

    def _evaluation_follows(self) -> bool:
        """Whether this was the last step of an epoch, and an evaluation follows."""
        if not self.counts_epochs or self.position < len(self.data_loader):
            return False
        return any(getattr(hook, "is_due", lambda _: False)(self) for hook in self.hooks)

    def save_training(
        self, *, at_end_of_epoch: bool = False, after_this_step: bool = False
    ) -> None:
        """Write a resumable checkpoint, completely or not at all; every rank must call it.

        Its name is ``epoch_N.pth`` at the end of an epoch, ``iter_N.pth`` if the config asks for a
        checkpoint after this number of steps, and ``step_N.pth`` otherwise.

        Args:
            at_end_of_epoch: Called by a hook at the end of an epoch that is not counted yet.
            after_this_step: Called by a hook after a step that is not counted yet.

        Raises:
            RuntimeError: On all ranks, if it cannot be written or the ranks' weights differ.
        """
        epoch = self.epoch + 1 if at_end_of_epoch else self.epoch
        done = self.iter + 1 if after_this_step else self.iter
        if at_end_of_epoch:
            name = f"epoch_{epoch}.pth"
        else:
            is_asked_for = self.plan.counts_step(done, self.max_iters)
            name = f"{'iter' if is_asked_for else 'step'}_{done}.pth"
        training = {
            "epoch": epoch,
            "position": 0 if at_end_of_epoch else self.position,
            "iteration": done,
            "phase": self.phase.value,
            "chunks_per_step": getattr(self.data_loader, "chunks_per_step", 1),
            "steps_per_epoch": self.steps_per_epoch,
            "world_size": collectives.world_size(),
        }
        scaler = None if self.optimizer_step is None else self.optimizer_step.scaler
        if scaler is not None:
            training["scaler"] = scaler.state_dict()
        if self.optimizer_step is not None:
            training["skipped"] = [self.optimizer_step.skipped, self.optimizer_step.in_a_row]
        messages = {"hook_msgs": self._portable_messages()}
        meta = {**self.plan.meta, **self.meta, "epoch": epoch, "iter": done, **messages}
        path = self.plan.folder(Path(self.work_dir)) / name
        # The model's own tensors are written, so the average stays in the model until then.
        with averaged(self):
            content = training_state(self, meta, training)
            if not self.plan.save_optimizer and content is not None:
                del content["optimizer"]

            place = Place(attempt=self.meta.get(ATTEMPT, 0), step=done, epoch=epoch)

            def write() -> None:
                save_checkpoint(path, content, note=place.note)
                if self.plan.create_symlink:
                    link_whole(path.with_name("latest.pth"), name)
                remove_old(path.parent, self.plan)

            on_main_rank(write)
        self.age.renew()
        self.meta.setdefault("hook_msgs", {})["last_ckpt"] = str(path)
        log.info("checkpoint %s", path)

    def _portable_messages(self) -> dict[str, Any]:
        """Return the hooks' messages of ``meta`` without the folder, which may be moved."""
        messages = dict(self.meta.get("hook_msgs", {}))
        # It names the previous checkpoint, which is another one in a resumed training.
        messages.pop("last_ckpt", None)
        best = messages.get("best_ckpt")
        if best and Path(best).is_relative_to(self.work_dir):
            messages["best_ckpt"] = str(Path(best).relative_to(self.work_dir))
        return messages

    def save_checkpoint(
        self,
        out_dir: str,
        filename_tmpl: str | None = None,
        save_optimizer: bool = True,
        meta: Any = None,
        create_symlink: bool = True,
    ) -> None:
        """Write weights and optimizer, as mmcv's runners do for their hooks; one rank calls it.

        For an exact resume use `save_training`.
        """
        finished = self.epoch + 1 if self.counts_epochs else self.iter + 1
        default = "epoch_{}.pth" if self.counts_epochs else "iter_{}.pth"
        name = (filename_tmpl or default).format(finished)
        # A hook calls it at the end of an epoch that is not counted yet, or before the first step.
        epoch = self.epoch + 1 if self.iter else 0
        meta = {**(meta or {}), **self.meta, "epoch": epoch, "iter": self.iter}
        with averaged(self):
            content = compose(
                unwrap(self.model),
                graph=self.graph,
                recipe=self.recipe,
                meta=meta,
                optimizer=self.optimizer if save_optimizer else None,
            )
            save_checkpoint(Path(out_dir, name), content)
        if create_symlink:
            link_whole(Path(out_dir, "latest.pth"), name)

    def load_checkpoint(self, filename: str, *_: Any, **__: Any) -> dict[str, Any]:
        """Load the weights of a file as ``load_from`` does; for hooks that call it."""
        content: dict[str, Any] = load_checkpoint(Path(filename))
        self.load_weights(content, filename)
        return content

    def resume(self, checkpoint: str, *_: Any, **__: Any) -> None:
        """Resume from a file; for hooks that call it; every rank must call it."""
        content = on_main_rank(lambda: load_checkpoint(Path(checkpoint)))
        self.resume_training(content, checkpoint, self.steps_per_epoch)

    def load_weights(self, content: Mapping[str, Any], source: str) -> None:
        """Load the weights that fit, as mmdet's ``load_from`` does, and log how many do not."""
        detector = unwrap(self.model)
        own = detector.state_dict()
        state = weights_of(self.graph, content, source)
        fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        if not fitting:
            raise ValueError(f"load_from {source}: none of its weights fits this model")
        left_out = len(state) - len(fitting)
        if left_out:
            log.warning(
                "load_from %s: %s not fit, left out",
                source,
                counted(left_out, "entr[y does|ies do]"),
            )
        detector.load_state_dict(fitting, strict=False)

    def resume_training(
        self,
        content: Mapping[str, Any],
        source: str,
        steps: int,
        new_optimizer_settings: bool = False,
    ) -> None:
        """Restore a training from a checkpoint; every rank calls it, with all hooks registered.

        Args:
            content: Content of the checkpoint.
            source: Its name, for messages.
            steps: Number of steps of an epoch.
            new_optimizer_settings: Keep this optimizer's settings, not the checkpoint's.

        Raises:
            ValueError: The checkpoint is of another model, recipe or optimizer.
        """
        meta = content.get("meta", {})
        training = load_training_state(
            self, content, source, new_optimizer_settings=new_optimizer_settings
        )
        self._iter = int(training.get("iteration", meta.get("iter", 0)))
        self._epoch = int(training.get("epoch", meta.get("epoch", 0)))
        self.position = int(training.get("position", 0))
        if not self.counts_epochs:
            self._epoch, self.position = divmod(self._iter, steps)
        elif self.position and training.get("steps_per_epoch", steps) != steps:
            before = training["steps_per_epoch"]
            log.warning(
                "an epoch has %s, not %d: this one starts again",
                counted(steps, "step[s]"),
                before,
            )
            self.position = 0
        self.phase = Phase(training.get("phase", "off"))
        scaler = None if self.optimizer_step is None else self.optimizer_step.scaler
        if scaler is not None and training.get("scaler"):
            scaler.load_state_dict(training["scaler"])
        if self.optimizer_step is not None and "skipped" in training:
            self.optimizer_step.skipped, self.optimizer_step.in_a_row = training["skipped"]
        if self.counts_epochs and self.position == 0:
            self.pending = None  # The log of each epoch starts empty.
        self.meta["hook_msgs"] = dict(meta.get("hook_msgs", {}))
        if best := self.meta["hook_msgs"].get("best_ckpt"):
            self.meta["hook_msgs"]["best_ckpt"] = str(Path(self.work_dir, best))
        if "start" in meta:
            self.meta["start"] = meta["start"]
        log.info("resumed from %s: epoch %d, iteration %d", source, self._epoch, self._iter)

    def say_if_finished(self, source: str) -> None:
        """Log a warning if a resumed training has no steps left."""
        done, unit = (
            (self.epoch, "epoch[s] [is|are]")
            if self.counts_epochs
            else (self.iter, "iteration[s] [is|are]")
        )
        wanted = self.max_epochs if self.counts_epochs else self.max_iters
        if done >= wanted:
            name = "runner.max_epochs" if self.counts_epochs else "runner.max_iters"
            log.warning(
                "nothing is left to train: %s done in %s, and %s is %d; it is evaluated as it is",
                counted(done, unit), source, name, wanted,
            )  # fmt: skip

    def put_back_losses(self) -> None:
        """Put the losses that were not logged yet into the log of a resumed training."""
        if self.pending is not None:
            device = next(self.model.parameters()).device
            set_pending_logs(self.log_buffer, self.pending, device)
            self.pending = None

    @torch.no_grad()
    def validation_losses(self, batch: Any) -> None:
        """Compute the losses of a batch of validation images, with all hooks."""
        self.data_batch = batch
        self.call_hook("before_val_iter")
        self.run_iter(batch, train_mode=False)
        self.call_hook("after_val_iter")
        del self.data_batch
        # All batches together may take longer than the watchdog waits for one step.
        self.supervision.alive("a batch of validation losses")


def is_own(hook: Any) -> bool:
    """Whether a hook is part of this project."""
    return type(hook).__module__.partition(".")[0] == "dq"


def is_known(hook: Any) -> bool:
    """Whether a hook is of this project, mmcv or mmdet, none of which reads a step's losses."""
    return type(hook).__module__.partition(".")[0] in ("dq", "mmcv", "mmdet")


def may_read_losses(hook: Any) -> bool:
    """Whether a hook may read a step's losses."""
    return not is_known(hook) and "after_train_iter" in hook.get_triggered_stages()


def failure(hook: Any, stage: str, error: BaseException) -> str:
    """Return in one line which hook failed, where and why."""
    return f"{type(hook).__name__} fails in {stage}: {explain(error)}"


def _of_all_ranks(losses: LossValues) -> LossValues:
    """Return the means of losses over ranks, as in mmdet, with two small collectives.

    Only needed for custom hooks, which may read the losses in every step.
    """
    names = agreed_names(losses.tensors, LOSSES, SAME_LOSSES)
    if not names:
        return losses
    flat = torch.stack([losses.tensors[name].double() for name in names])
    collectives.all_reduce_(flat, "mean")
    means = dict(zip(names, flat.float(), strict=True))
    return LossValues({name: means[name] for name in losses.tensors})
