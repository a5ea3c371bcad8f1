"""The steps of quantization, one function each: prepare, calibrate, train, export."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.error_text import error_text
from dq.quant.graph.comparison import tried
from dq.quant.graph.per_channel.channel_scales import scaled_names
from dq.quant.graph.prepare import prepare as prepare_graph
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.graph.trace_with_fallback import trace_tolerantly
from dq.quant.integer.bias_overflow import network_for_engines
from dq.quant.model.inputs import Batch, Inputs
from dq.quant.model.quantized_model import QuantizedModel, refuse_export
from dq.quant.ptq.repairs import calibrate_and_repair_
from dq.quant.ptq.settings import Repair
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, Phased
from dq.quant.quantizers.phase import set_phase as set_phase_below
from dq.quant.recipes.recipe import Recipe
from dq.whole_file import write_whole

log = logging.getLogger(__name__)


def prepare(
    model: nn.Module, recipe: Recipe, *examples: Tensor, **named_examples: Tensor
) -> QuantizedModel:
    """Trace a model and insert quantizers as the recipe says.

    The model's parameters and state-dict keys do not change. All quantizers start in phase OFF, in
    which the result computes exactly the same as the model; this is checked once. Modules that
    cannot be traced stay in float, and a warning names them.

    Args:
        model: Any module; it gets a child ``quantizers``.
        recipe: The integer format of each tensor, for example ``preset("int8")``.
        examples: One tensor for each input that the model gets by position.
        named_examples: One tensor for each input that it gets by name.

    Raises:
        ValueError: The model is prepared already, a rule of the recipe names a module that does not
            exist, or the model does not run on the examples.
        dq.quant.TraceError: The model has no static graph; the place is named.
    """
    if hasattr(model, CONTAINER):
        raise ValueError(f"{type(model).__name__} is prepared already; prepare a fresh model")
    inputs = Inputs.of_examples(model, examples, named_examples)
    values = (*examples, *named_examples.values())
    forward = inputs.caller(model.forward)
    _require_run(model, forward, values)
    traced = trace_tolerantly(model, forward, *values, names=inputs.names)
    graph = prepare_graph(model, recipe, traced)
    if traced.left_float:
        log.warning(
            "left in float are %s that cannot be traced: %s",
            counted(len(traced.left_float), "module[s]"),
            ", ".join(f"{name or 'the model'} ({why})" for name, why in traced.left_float.items()),
        )
    model.register_forward_pre_hook(refuse_export)
    return QuantizedModel(graph, recipe, inputs)


def _require_run(
    model: nn.Module, forward: Callable[..., object], values: tuple[Tensor, ...]
) -> None:
    """Raise ValueError if the model does not run on the examples, in evaluation mode."""
    try:
        with tried(model, values):
            forward(*values)
    except Exception as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        reason = error_text(error)
        raise ValueError(
            f"{type(model).__name__} does not run on the examples, of shape {shapes}: {reason};"
            " give examples that it runs on"
        ) from error


def calibrate(
    model: QuantizedModel, batches: Iterable[Batch], *, repair: Repair | None = None
) -> int:
    """Find the ranges of all quantizers on batches of the float model, and freeze them.

    Args:
        model: Result of `prepare`; in evaluation mode afterwards, with all quantizers FROZEN.
        batches: Inputs: tensors, tuples that begin with the inputs, or mappings; on any device.
        repair: Repairs to apply afterwards, for example ``Repair(steps=("bias",))``; only for
            models with one input.

    Returns:
        Number of examples: the sum of the first dimensions of the first input.

    Raises:
        ValueError: There was no example, a quantizer has no finite range afterwards, or ``repair``
            is given for a model with several inputs.
    """
    several = len(model.inputs.names) > 1
    if several and repair is not None and (repair.steps or repair.mixed):
        raise ValueError("repairs are only for models with one input; leave repair out")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0

    def run(values: tuple[Tensor, ...] | Tensor) -> int:
        nonlocal seen
        values = values if isinstance(values, tuple) else (values,)
        model.graph(*(value.to(device) for value in values))
        seen += len(values[0])
        return len(values[0])

    # Repairs read the batches too, and need tensors.
    found = (model.inputs.of_batch(batch) for batch in batches)
    given = found if several else (values[0] for values in found)
    calibrate_and_repair_(
        model.graph, given, run, device, weight_range=model.recipe.weight_range, repair=repair
    )
    model.recipe = replace(model.recipe, scaled=scaled_names(model.graph))
    model.eval()
    return seen


def set_phase(model: QuantizedModel, phase: Phase) -> None:
    """Put all quantizers of a model into a phase.

    Args:
        model: Result of `prepare`.
        phase: OFF computes in float. OBSERVE computes in float and records ranges in training mode.
            TRAIN fake-quantizes and records ranges in training mode. FROZEN fake-quantizes with
            fixed ranges, for evaluation and for the end of a training.
    """
    quantizers = model.graph.quantizers
    observed = any(isinstance(q, Phased) and q.phase is Phase.OBSERVE for q in quantizers.modules())
    if observed and phase.quantizes:
        # The weights have changed since their learned scales were initialised.
        initialise_weights_(model.graph.layers())
    set_phase_below(quantizers, phase)


def update_ranges(model: QuantizedModel) -> None:
    """Update the ranges with the values recorded in this step; call it after the optimizer's step.

    Ranges and scales change only here, never in a forward pass. Ranges that calibration searched
    for (all observers but ``min_max`` and ``moving_average``) stay as they are in the phase TRAIN.
    On several ranks use `dq.sync.merge_ranges_`, which uses the records of all ranks.

    Args:
        model: Result of `prepare`.
    """
    update_scales_(list(model.graph.activations().values()))


def export_onnx(
    model: QuantizedModel,
    path: str | os.PathLike[str],
    *examples: Tensor,
    opset: int | None = None,
    **named_examples: Tensor,
) -> Path:
    """Write the quantized network as an ONNX file with QuantizeLinear and DequantizeLinear.

    Weights are stored as integers, and batch norms are folded. The first dimension of the first
    input, and of each input with the same first dimension, is free. All other sizes are fixed to
    those of the examples.

    Args:
        model: Calibrated; it is not changed.
        path: The file; it is written completely or not at all.
        examples: The model's inputs by position, as for `prepare`.
        opset: Version of ONNX's operators; None for the lowest that has all needed operators.
        named_examples: The model's inputs by name.

    Returns:
        The path.

    Raises:
        ValueError: A quantizer has no range yet, an operator has no ONNX form, or the opset is too
            low.
    """
    # Imported here because importing ONNX takes long, and training does not need it.
    from dq.quant.export.assemble import assembled
    from dq.quant.export.onnx_graph import checked

    values = model.inputs.in_order(examples, named_examples)
    network = network_for_engines(model.graph)
    onnx_model = assembled(network, values, opset=opset, input_names=model.inputs.names)
    content = checked(onnx_model).SerializeToString()
    write_whole(Path(path), content)
    return Path(path)
