"""The quantizers for a recipe's ``learned`` setting, and how their parameters are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import nn
from torch.optim import Optimizer

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.layers import QuantizedLayer
from dq.quant.quantizers.learned_step import LsqActivationQuantizer, LsqWeightQuantizer
from dq.quant.quantizers.learner import Learner
from dq.quant.quantizers.pact import PactActivationQuantizer


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """The quantizers for one ``learned`` setting; by default those of observed ranges.

    Attributes:
        activation: Given the integer format and the observer of the initial range.
        weight: Given the integer format and ``num_channels``, the length of its channel axis.
    """

    activation: Callable[[QuantSpec, MinMaxObserver], ActivationQuantizer] = ActivationQuantizer
    weight: Callable[..., WeightQuantizer] = lambda spec, num_channels: WeightQuantizer(spec)


LEARNED: Mapping[str, Learned] = {
    "lsq": Learned(activation=LsqActivationQuantizer, weight=LsqWeightQuantizer),
    "lsq+": Learned(
        activation=partial(LsqActivationQuantizer, learn_offset=True), weight=LsqWeightQuantizer
    ),
    "pact": Learned(activation=PactActivationQuantizer),
}


def activation_quantizer(
    learned: str | None, spec: QuantSpec, observer: MinMaxObserver
) -> ActivationQuantizer:
    """Return a new activation quantizer; with ``learned=None`` its range is only observed."""
    kind = Learned() if learned is None else LEARNED[learned]
    return kind.activation(spec, observer)


def weight_quantizer(learned: str | None, spec: QuantSpec, *, num_channels: int) -> WeightQuantizer:
    """Return a new weight quantizer; PACT does not learn weight ranges.

    Args:
        learned: As in the recipe.
        spec: The integer format.
        num_channels: Length of the weight's channel axis.
    """
    kind = Learned() if learned is None else LEARNED[learned]
    return kind.weight(spec, num_channels=num_channels)


def initialise_weights_(
    layers: Iterable[tuple[object, QuantizedLayer, nn.Module, nn.Module | None]],
) -> None:
    """Initialise every learned weight scale from the present weight.

    Call it when the float weights are final: after calibration.

    Args:
        layers: As `dq.quant.graph.quantized_graph.QuantizedGraph.layers` yields them.
    """
    for _, quantized, layer, norm in layers:
        if quantized.weight.stored_scale is not None:
            quantized.weight.initialise_(quantized.folded(layer, norm)[0].detach())


def learned_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every learned scale, offset and clipping value below ``module`` by name."""
    found: dict[str, nn.Parameter] = {}
    for prefix, child in module.named_modules():
        if isinstance(child, Learner):
            for name, parameter in child.named_parameters(recurse=False):
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found


def regroup_(optimizer: Optimizer, module: nn.Module, *, lr_factor: float = 1.0) -> int:
    """Move the learned quantizer parameters into parameter groups of their own, at the end.

    Scales and offsets get no weight decay, which would pull them to zero. PACT's clipping values
    keep it, as in the paper. The result depends only on the model, so an optimizer state can be
    loaded again.

    Args:
        optimizer: Holds the module's parameters; changed in place.
        module: The model.
        lr_factor: Learning rate of these groups, relative to the group they come from.

    Returns:
        The number of moved parameters.
    """
    learned = {id(p): name for name, p in learned_parameters(module).items()}
    moved = 0
    for group in list(optimizer.param_groups):
        mine = [p for p in group["params"] if id(p) in learned]
        if not mine:
            continue
        moved += len(mine)
        group["params"] = [p for p in group["params"] if id(p) not in learned]
        settings = {k: v for k, v in group.items() if k not in ("params", "lr")}
        for decays in (False, True):
            chosen = [p for p in mine if (".clip_" in learned[id(p)]) == decays]
            if chosen:
                own = {**settings, "params": chosen, "lr": group["lr"] * lr_factor}
                if not decays:
                    own["weight_decay"] = 0.0
                optimizer.add_param_group(own)
    # mmcv's constructor with paramwise settings makes one group per parameter.
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
    return moved


def forget_momentum_(optimizer: Optimizer, module: nn.Module) -> None:
    """Drop the optimizer state of the learned parameters.

    For the phase in which ranges are frozen. There every optimizer skips these parameters, see
    `dq.quant.quantizers.learner`.
    """
    frozen = {id(p) for p in learned_parameters(module).values()}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if id(parameter) in frozen:
                optimizer.state.pop(parameter, None)
