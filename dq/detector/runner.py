"""mmcv's runners, writing and reading this project's checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import mmcv
from mmcv.runner import RUNNERS, EpochBasedRunner, IterBasedRunner
from torch import nn

from dq.detector.build import float_state
from dq.detector.checkpoint import compose, load_quantization
from dq.detector.hooks import averaged
from dq.detector.step import LossLog
from dq.dist.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.data_parallel import unwrap
from dq.quant.ema import WeightAverage
from dq.quant.quantized_graph import QuantizedGraph
from dq.quant.recipe import Recipe

log = logging.getLogger(__name__)
COMPANIONS = "companions"


class _Checkpointing:
    """What both runners share: whole checkpoints with quantizer state, losses kept on the device.

    Attributes:
        graph: The detector's quantized graph; None in float training.
        recipe: What it was prepared with.
        average: Of the weights; where there is one, checkpoints hold it as the detector's weights.
        companions: What else has state that resuming needs, by name: ``state_dict()`` and
            ``load_state_dict(state)``.
    """

    graph: QuantizedGraph | None = None
    recipe: Recipe | None = None
    average: WeightAverage | None = None
    companions: Mapping[str, Any] = MappingProxyType({})
    model: nn.Module
    optimizer: Any
    meta: dict[str, Any] | None
    epoch: int
    iter: int
    counts_epochs: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.log_buffer = LossLog()

    def save_checkpoint(
        self,
        out_dir: str,
        filename_tmpl: str = "",
        save_optimizer: bool = True,
        meta: dict[str, Any] | None = None,
        create_symlink: bool = True,
    ) -> None:
        """Write a checkpoint whole or not at all; arguments as for mmcv's runners."""
        finished = (self.epoch if self.counts_epochs else self.iter) + 1
        template = filename_tmpl or ("epoch_{}.pth" if self.counts_epochs else "iter_{}.pth")
        meta = {**(meta or {}), **(self.meta or {})}
        # An epoch's last step is counted already when its hooks run, an iteration's is not.
        meta.update(epoch=self.epoch + 1, iter=self.iter + (0 if self.counts_epochs else 1))
        path = Path(out_dir, template.format(finished))
        with averaged(self):
            content = compose(
                unwrap(self.model),
                graph=self.graph,
                recipe=self.recipe,
                meta=meta,
                optimizer=self.optimizer if save_optimizer else None,
            )
            if self.companions:
                content[COMPANIONS] = {k: c.state_dict() for k, c in self.companions.items()}
            save_checkpoint(path, content)
        if create_symlink:
            mmcv.symlink(path.name, str(path.parent / "latest.pth"))

    def load_checkpoint(
        self, filename: str, map_location: Any = "cpu", strict: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Load weights, tolerating differences as mmdet's ``load_from`` does, and name them."""
        content = load_checkpoint(Path(filename))
        detector = unwrap(self.model)
        own = detector.state_dict()
        state = float_state(content, filename)
        fitting = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
        if not fitting:
            raise ValueError(f"load_from {filename}: none of its weights fits this model")
        left_out = len(state) - len(fitting)
        if left_out:
            log.warning("load_from %s: %d entries do not fit and are left out", filename, left_out)
        detector.load_state_dict(fitting, strict=False)
        return content

    def resume(
        self, checkpoint: str, resume_optimizer: bool = True, map_location: Any = "cpu"
    ) -> None:
        """Continue after the epoch or iteration that a checkpoint was written at."""
        content = self.load_checkpoint(checkpoint)
        if self.graph is not None:
            load_quantization(self.graph, content, checkpoint)
        meta = content["meta"]
        self._epoch, self._iter = meta["epoch"], meta["iter"]
        self._inner_iter = 0 if self.counts_epochs else meta["iter"]
        self.meta = {**(self.meta or {}), "hook_msgs": meta.get("hook_msgs", {})}
        if resume_optimizer and "optimizer" in content:
            self.optimizer.load_state_dict(content["optimizer"])
        for name, companion in self.companions.items():
            state = content.get(COMPANIONS, {}).get(name)
            if state is not None:
                companion.load_state_dict(state)
            else:
                log.warning("%s has no state of %s, which begins anew", checkpoint, name)
                if companion is self.average and self.average is not None:
                    self.average.begin_()
        log.info("resumed from %s: epoch %d, iteration %d", checkpoint, self._epoch, self._iter)


@RUNNERS.register_module()
class DetectorEpochRunner(_Checkpointing, EpochBasedRunner):  # type: ignore[misc]
    """mmcv's EpochBasedRunner with this project's checkpoints."""

    counts_epochs = True

    def train(self, data_loader: Any, **kwargs: Any) -> None:
        """Train one epoch; mmcv's own loop less its two seconds of sleep."""
        self.model.train()
        self.mode = "train"
        self.data_loader = data_loader
        self._max_iters = self._max_epochs * len(data_loader)
        self.call_hook("before_train_epoch")
        for number, batch in enumerate(data_loader):
            self.data_batch = batch
            self._inner_iter = number
            self.call_hook("before_train_iter")
            self.run_iter(batch, train_mode=True, **kwargs)
            self.call_hook("after_train_iter")
            del self.data_batch
            self._iter += 1
        self.call_hook("after_train_epoch")
        self._epoch += 1


@RUNNERS.register_module()
class DetectorIterRunner(_Checkpointing, IterBasedRunner):  # type: ignore[misc]
    """mmcv's IterBasedRunner with this project's checkpoints."""

    counts_epochs = False


RUNNER_OF = {
    "EpochBasedRunner": "DetectorEpochRunner",
    "IterBasedRunner": "DetectorIterRunner",
}
