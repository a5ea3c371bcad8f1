"""What a recipe's ``learned`` stands for: which quantizers, how they begin and are trained."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.optim import Optimizer

from dq.quant.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.layers import QuantizedLayer
from dq.quant.learned_step import LsqActivationQuantizer, LsqWeightQuantizer
from dq.quant.observer import MinMaxObserver
from dq.quant.pact import PactActivationQuantizer
from dq.quant.spec import QuantSpec

LEARNED = ("lsq", "lsq+", "pact")


def activation_quantizer(
    learned: str | None, spec: QuantSpec, observer: MinMaxObserver
) -> ActivationQuantizer:
    """Return a new activation quantizer of this kind; None for ranges that are only observed."""
    if learned == "pact":
        return PactActivationQuantizer(spec, observer)
    if learned in ("lsq", "lsq+"):
        return LsqActivationQuantizer(spec, observer, learn_offset=learned == "lsq+")
    return ActivationQuantizer(spec, observer)


def weight_quantizer(learned: str | None, spec: QuantSpec, *, num_channels: int) -> WeightQuantizer:
    """Return a new weight quantizer of this kind; PACT leaves the weights' ranges alone.

    Args:
        learned: As in the recipe.
        spec: The integers.
        num_channels: Length of the weight's channel axis.
    """
    if learned in ("lsq", "lsq+"):
        return LsqWeightQuantizer(spec, num_channels=num_channels)
    return WeightQuantizer(spec)


def initialise_weights_(
    layers: Iterable[tuple[object, QuantizedLayer, nn.Module, nn.Module | None]],
) -> None:
    """Begin every learned weight scale anew from the weight as it is now.

    To be called when the float weights are in place: after calibration.

    Args:
        layers: As `dq.quant.quantized_graph.QuantizedGraph.layers` yields them.
    """
    for _, quantized, layer, norm in layers:
        if isinstance(quantized.weight, LsqWeightQuantizer):
            quantized.weight.initialise_(quantized.folded(layer, norm)[0].detach())


def learned_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return every learned scale, offset and clipping value below ``module`` by name."""
    kinds = (LsqActivationQuantizer, LsqWeightQuantizer, PactActivationQuantizer)
    found: dict[str, nn.Parameter] = {}
    for prefix, child in module.named_modules():
        if isinstance(child, kinds):
            for name, parameter in child.named_parameters(recurse=False):
                found[f"{prefix}.{name}" if prefix else name] = parameter
    return found


def regroup_(optimizer: Optimizer, module: nn.Module, *, lr_factor: float = 1.0) -> int:
    """Move the learned quantizer parameters into groups of their own, at the end of the list.

    Scales and offsets get no weight decay, which would pull them to zero; PACT's clipping values
    keep it, as their paper wants. The result depends on the model alone, so that an optimizer's
    state loads again.

    Args:
        optimizer: Holds the module's parameters; changed in place.
        module: The model.
        lr_factor: Learning rate of these groups in terms of the group they come from.

    Returns:
        How many parameters were moved.
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
    # mmcv's constructor with paramwise settings makes one group a parameter.
    optimizer.param_groups[:] = [g for g in optimizer.param_groups if g["params"]]
    return moved


def forget_momentum_(optimizer: Optimizer, module: nn.Module) -> None:
    """Drop the optimizer's memory of the learned parameters, so that none of them moves on.

    For the phase in which ranges are frozen: their gradients are zero then, and without decay
    only momentum would still move them.
    """
    for group in optimizer.param_groups:
        frozen = {id(p) for p in learned_parameters(module).values()}
        for parameter in group["params"]:
            if id(parameter) in frozen:
                optimizer.state.pop(parameter, None)
