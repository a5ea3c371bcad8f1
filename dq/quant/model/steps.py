"""The steps of quantization, one function each: prepare, calibrate, train, export."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

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

    The model's parameters and state-dict keys stay as they are. All quantizers begin in phase OFF,
    in which the result computes exactly what the model computes; that is checked once. Modules
    that cannot be traced stay float, which a warning says.

    Args:
        model: Any module; it gets a child ``quantizers``.
        recipe: Which tensor gets which integers, such as ``preset("int8")``.
        examples: One tensor for each input that the model is given by position.
        named_examples: And for each that it is given by name.

    Raises:
        ValueError: The model is prepared already, a rule of the recipe names what is not there, or
            the examples are not its inputs.
        dq.quant.TraceError: The model has no static graph; the place is named.
    """
    if hasattr(model, CONTAINER):
        raise ValueError(f"{type(model).__name__} is prepared already; prepare a fresh model")
    inputs = Inputs.of_examples(model, examples, named_examples)
    values = (*examples, *named_examples.values())
    forward = inputs.caller(model.forward)
    traced = trace_tolerantly(model, forward, *values, names=inputs.names)
    graph = prepare_graph(model, recipe, traced)
    if traced.left_float:
        log.warning(
            "%d modules stay float, for they cannot be traced: %s",
            len(traced.left_float),
            ", ".join(f"{name or 'the model'} ({why})" for name, why in traced.left_float.items()),
        )
    model.register_forward_pre_hook(refuse_export)
    return QuantizedModel(graph, recipe, inputs)


def calibrate(
    model: QuantizedModel, batches: Iterable[Batch], *, repair: Repair | None = None
) -> int:
    """Run batches through the float model, keep the ranges seen; leave all quantizers FROZEN.

    Args:
        model: As `prepare` returns it; in evaluation mode afterwards.
        batches: Of inputs: tensors, tuples that begin with the inputs, or mappings; on any device.
        repair: What to repair after that, such as ``Repair(steps=("bias",))``; for models of one
            input.

    Returns:
        How many examples were seen: the first dimension of the first input, summed.

    Raises:
        ValueError: There was no example, a quantizer has no finite range afterwards, or a repair
            is asked for of a model of several inputs.
    """
    several = len(model.inputs.names) > 1
    if several and repair is not None and (repair.steps or repair.mixed):
        raise ValueError("repairs are for models of one input; leave repair out")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    seen = 0

    def run(values: tuple[Tensor, ...] | Tensor) -> int:
        nonlocal seen
        values = values if isinstance(values, tuple) else (values,)
        model.graph(*(value.to(device) for value in values))
        seen += len(values[0])
        return len(values[0])

    # Repairs look at batches themselves, and these are then tensors.
    found = (model.inputs.of_batch(batch) for batch in batches)
    given = found if several else (values[0] for values in found)
    calibrate_and_repair_(
        model.graph, given, run, device, weight_range=model.recipe.weight_range, repair=repair
    )
    model.eval()
    return seen


def set_phase(model: QuantizedModel, phase: Phase) -> None:
    """Put all quantizers of a model into a phase.

    Args:
        model: As `prepare` returns it.
        phase: OFF computes in float. OBSERVE records ranges in training mode, without rounding.
            TRAIN fake-quantizes and goes on recording ranges in training mode. FROZEN
            fake-quantizes with the ranges as they are, for evaluation and a training's end.
    """
    quantizers = model.graph.quantizers
    observed = any(isinstance(q, Phased) and q.phase is Phase.OBSERVE for q in quantizers.modules())
    if observed and phase.quantizes:
        # The weights have moved since their learned scales were first chosen.
        initialise_weights_(model.graph.layers())
    set_phase_below(quantizers, phase)


def update_ranges(model: QuantizedModel) -> None:
    """Take what the quantizers recorded in this step into their ranges; after the optimizer's step.

    Ranges and scales change here alone, never in a forward pass. On several ranks use
    `dq.sync.merge_ranges_`, which takes what all ranks recorded.

    Args:
        model: As `prepare` returns it.
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

    Weights are stored as integers, batch norms are folded. The first dimension of the first input,
    and of each input that has the same, is free; all other sizes are those of the examples.

    Args:
        model: Calibrated; left as it is.
        path: The file; it appears whole or not at all.
        examples: The model's inputs by position, as for `prepare`.
        opset: Version of ONNX's operators; None for the lowest that will do.
        named_examples: And by name.

    Returns:
        The path.

    Raises:
        ValueError: A quantizer has no range yet, an operator has no ONNX form, or the opset is too
            low.
    """
    # ONNX takes long to import, and training does not need it.
    from dq.quant.export.assemble import assembled
    from dq.quant.export.onnx_graph import checked

    values = model.inputs.in_order(examples, named_examples)
    network = network_for_engines(model.graph)
    onnx_model = assembled(network, values, opset=opset, input_names=model.inputs.names)
    content = checked(onnx_model).SerializeToString()
    write_whole(Path(path), content)
    return Path(path)
