"""The origin's three modules as thin wrappers: train, calibrate and test a quantized detector.

For users of TI's edgeai-torchvision (``torchvision.edgeailite.xnn``): the same names, and the same
arguments if they still have a meaning. The implementation is this project's own. New code should
use `dq.quant.graph.prepare` and the launcher. ``docs/origin.md`` maps the names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dq.detector.model.build import load_float_state
from dq.detector.model.checkpoint_content import (
    QUANTIZATION,
    compose,
    load_quantization,
    repaired_state,
    weights_of,
)
from dq.detector.model.graph import quantize_detector
from dq.dist.exchange.data_parallel import sync_buffers_
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MovingAverageObserver
from dq.quant.ptq.float_layout import to_float
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe, Rule
from dq.sync import merge_ranges_


def origin_recipe(
    *,
    bitwidth_weights: int = 8,
    bitwidth_activations: int = 8,
    per_channel_q: bool = False,
    power2_weight_range: bool | None = None,
    power2_activation_range: bool | None = None,
    quantize_in: bool = True,
    quantize_out: bool = True,
) -> Recipe:
    """Return the recipe for the origin's arguments.

    Args:
        bitwidth_weights: 2 to 16.
        bitwidth_activations: 2 to 16.
        per_channel_q: One scale per output channel of a weight; otherwise one per tensor.
        power2_weight_range: Scales of weights are powers of two; None means: if not per channel.
        power2_activation_range: The same for activations.
        quantize_in: Quantize the network's input.
        quantize_out: Quantize the outputs of its last layers.
    """
    power2 = not per_channel_q
    return Recipe(
        weight=QuantSpec(
            bits=bitwidth_weights,
            signed=True,
            symmetric=True,
            narrow=True,
            channel_axis=0 if per_channel_q else None,
            power_of_two=power2 if power2_weight_range is None else power2_weight_range,
        ),
        activation=QuantSpec(
            bits=bitwidth_activations,
            power_of_two=power2 if power2_activation_range is None else power2_activation_range,
        ),
        outputs=quantize_out,
        rules=() if quantize_in else (Rule(module="x", quantize=False),),
    )


class QuantBaseModule(nn.Module):
    """A detector with quantizers, at ``module`` as in the origin.

    Args:
        module: A float detector of mmdet, on its device; it is changed in place.
        dummy_input: Accepted as in the origin, but not needed.
        recipe: The recipe, instead of the origin's arguments.
        origin: The origin's arguments; see `origin_recipe`.

    Raises:
        ValueError: The detector cannot be traced or is quantized already.
    """

    def __init__(
        self,
        module: nn.Module,
        dummy_input: object = None,
        *,
        recipe: Recipe | None = None,
        **origin: Any,
    ) -> None:
        super().__init__()
        self.recipe = recipe or origin_recipe(**origin)
        self.module = module
        self.graph = quantize_detector(module, self.recipe)
        self.graph.quantizers.to(next(module.parameters()).device)
        self.quantizers = list(self.graph.activations().values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector as mmdet does; for a single tensor, return the head's outputs."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            return self.graph(args[0])
        return self.module(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the float detector's own state dict: mmdet's keys, without quantizer state."""
        prefix = str(kwargs.get("prefix", ""))
        state = self.module.state_dict(*args, **kwargs)
        own = {k.removeprefix(prefix): v for k, v in state.items()}
        own = {k: v for k, v in own.items() if not k.startswith(f"{CONTAINER}.")}
        return {f"{prefix}{k}": v for k, v in to_float(self.graph, own).items()}

    def checkpoint(self) -> dict[str, Any]:
        """Return the weights and all quantizer state, for torch.save."""
        return compose(self.module, graph=self.graph, recipe=self.recipe, meta={})

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> None:
        """Load a float state dict or checkpoint, or the result of `checkpoint`.

        Raises:
            ValueError: It belongs to another model or recipe.
        """
        source = "the state dict"
        if QUANTIZATION in state_dict:
            load_float_state(self.module, repaired_state(state_dict, source), source)
            load_quantization(self.graph, state_dict, source)
        else:
            load_float_state(self.module, weights_of(self.graph, state_dict, source), source)
            initialise_weights_(self.graph.all_layers())

    @property
    def calibrated(self) -> bool:
        """Return whether every quantizer has a range; synchronizes with the device."""
        return all(quantizer.has_range for quantizer in self.quantizers)


class QuantTrainModule(QuantBaseModule):
    """Train quantization-aware: ``loss = model(img=..., img_metas=..., gt_bboxes=..., ...)``.

    Without calibrated ranges, the first batch is only observed. As in the origin, batch norms are
    frozen one epoch before the middle of the training, and ranges one epoch after it. An epoch is a
    call of ``train()``. On several ranks, each forward pass in training has one small collective.

    Args:
        module: As for `QuantBaseModule`.
        dummy_input: As for `QuantBaseModule`.
        total_epochs: Length of the training.
        kwargs: As for `QuantBaseModule`.

    Raises:
        ValueError: As for `QuantBaseModule`, or ``total_epochs`` is less than 1.
    """

    def __init__(
        self, module: nn.Module, dummy_input: object = None, *, total_epochs: int, **kwargs: Any
    ) -> None:
        super().__init__(module, dummy_input, **kwargs)
        if total_epochs < 1:
            raise ValueError(
                f"total_epochs is {total_epochs}; give the training's length, 1 or more"
            )
        self.total_epochs = total_epochs
        self.num_epochs_tracked = 0
        self.begun = False

    def train(self, mode: bool = True) -> QuantTrainModule:
        """Begin an epoch, or switch to quantized evaluation."""
        super().train(mode)
        if mode:
            middle = self.total_epochs // 2
            frozen = self.num_epochs_tracked >= middle + 1
            set_phase(self.module, Phase.FROZEN if frozen else Phase.TRAIN)
            if self.num_epochs_tracked >= middle - 1:
                self.freeze_bn()
            self.num_epochs_tracked += 1
        else:
            set_phase(self.module, Phase.FROZEN)
        return self

    def freeze_bn(self) -> None:
        """Make batch norms use their running statistics until the next epoch begins."""
        for child in self.module.modules():
            if isinstance(child, _BatchNorm):
                child.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector, then update the ranges of the next step on all ranks."""
        if not self.training:
            return super().forward(*args, **kwargs)
        if not self.begun and not self.calibrated:
            set_phase(self.module, Phase.OBSERVE)
            result = super().forward(*args, **kwargs)
            merge_ranges_(self.quantizers)
            # Scales of weights depend on folded running statistics, which may differ between ranks.
            sync_buffers_(self.module)
            initialise_weights_(self.graph.all_layers())
            set_phase(self.module, Phase.TRAIN)
        else:
            result = super().forward(*args, **kwargs)
            merge_ranges_(self.quantizers)
        self.begun = True
        return result


class QuantCalibrateModule(QuantBaseModule):
    """Calibrate on the batches in training mode; fake-quantize in evaluation mode.

    Use ``model.train()``, some batches, ``model.eval()``. The detector itself stays in evaluation
    mode and gets no gradients, so it does not change. All batches have equal weight.
    """

    def __init__(self, module: nn.Module, dummy_input: object = None, **kwargs: Any) -> None:
        super().__init__(module, dummy_input, **kwargs)
        self.num_batches = 0
        self.train()

    def train(self, mode: bool = True) -> QuantCalibrateModule:
        """Begin or end calibration."""
        super().train(mode)
        self.module.eval()
        set_phase(self.module, Phase.CALIBRATE if mode else Phase.FROZEN)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector and, in training mode, update the ranges with the batch.

        In evaluation mode it is the float detector until ranges are calibrated or loaded.
        """
        if not self.training:
            set_phase(self.module, Phase.FROZEN if self.calibrated else Phase.OFF)
            return super().forward(*args, **kwargs)
        self.num_batches += 1
        result = super().forward(*args, **kwargs)
        with self._equal_weights():
            merge_ranges_(self.quantizers)
        return result

    @contextmanager
    def _equal_weights(self) -> Iterator[None]:
        observers = [q.observer for q in self.quantizers]
        averages = [o for o in observers if isinstance(o, MovingAverageObserver)]
        momenta = [observer.momentum for observer in averages]
        for observer in averages:
            observer.momentum = 1.0 / self.num_batches
        try:
            yield
        finally:
            for observer, momentum in zip(averages, momenta, strict=True):
                observer.momentum = momentum


class QuantTestModule(QuantBaseModule):
    """Quantized test: always in evaluation mode, with ranges from a quantized checkpoint."""

    def __init__(self, module: nn.Module, dummy_input: object = None, **kwargs: Any) -> None:
        super().__init__(module, dummy_input, **kwargs)
        self.eval()
        set_phase(self.module, Phase.FROZEN)

    def train(self, mode: bool = True) -> QuantTestModule:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the detector.

        Raises:
            ValueError: No calibrated ranges were loaded.
        """
        if not self.calibrated:
            raise ValueError(
                "the quantizers have no ranges; load what QuantCalibrateModule.checkpoint() or"
                " QuantTrainModule.checkpoint() returned"
            )
        return super().forward(*args, **kwargs)
