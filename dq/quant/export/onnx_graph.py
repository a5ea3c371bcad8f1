"""Export a network of integer modules to an ONNX graph with placeholders for the integers.

torch.onnx translates all its operators, and each integer module becomes one placeholder node of the
domain `dq.quant.integer.modules.DOMAIN`. The graph is simplified with these placeholders, so that
the simplification cannot fold the integers of a weight. The writers of formats replace them later.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree

from dq.quant.export.onnx_operators import translations
from dq.quant.graph.inputs import forward_with_inputs
from dq.quant.integer.convert import export_switch_of

DEFAULT_OPSET, OPSET_16_BITS = 18, 21
INPUT, SECOND, OUTPUT = "images", "second", "output"


class _Flat(nn.Module):
    """The network with its outputs as one flat list, in the order of `flatten`."""

    def __init__(self, network: nn.Module, after: Callable[[Any], Any] | None) -> None:
        super().__init__()
        self.network, self.after = network, after

    def flat(self, *inputs: Tensor) -> list[Tensor]:
        result = self.network(*inputs)
        return _tensors(result if self.after is None else self.after(result))


def _tensors(result: Any) -> list[Tensor]:
    """Return the tensors of a result without None, which a head without a branch returns."""
    return [value for value in flatten(result)[0] if value is not None]


def flatten(result: Any) -> tuple[list[Tensor], Any]:
    """Return the tensors of nested lists, tuples and dicts, and the structure to rebuild them."""
    values, structure = _pytree.tree_flatten(result)
    return values, structure


def unflatten(values: Sequence[Any], structure: Any) -> Any:
    """Return nested lists, tuples and dicts of these values; see `flatten`."""
    return _pytree.tree_unflatten(list(values), structure)


def placeholder_model(
    network: fx.GraphModule,
    example: Tensor | Sequence[Tensor],
    *,
    opset: int,
    output_names: Sequence[str],
    input_names: Sequence[str] = (INPUT, SECOND),
    after: Callable[[Any], Any] | None = None,
) -> ir.Model:
    """Return the network as an ONNX model with placeholder nodes and a free first dimension.

    Args:
        network: Result of `dq.quant.integer.convert.integer_network`.
        example: An input, or all of them. All sizes except the first dimension are fixed in the
            model. An input whose first dimension differs from the first input's keeps it fixed too.
        opset: Version of ONNX's operators, 18 or later.
        output_names: Names of the outputs, in the order of `flatten`.
        input_names: Names of the inputs; further names are ignored.
        after: A function of the network's result that is exported too.

    Raises:
        ValueError: An operator of the network has no ONNX form; it is named.
    """
    emitting = export_switch_of(network)
    # With a single image torch.export would make the batch size a constant.
    examples = [example] if isinstance(example, Tensor) else list(example)
    batched = [x.dim() > 0 and len(x) == len(examples[0]) for x in examples]
    inputs = tuple(
        x[:1].repeat(2, *[1] * (x.dim() - 1)) if free else x
        for x, free in zip(examples, batched, strict=True)
    )
    names = list(input_names)[: len(inputs)]
    flat = type("_Flat", (_Flat,), {"forward": forward_with_inputs(names, "flat")})
    emitting.on = True
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                flat(network, after).eval(),
                inputs,
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} if b else {} for b in batched),
                input_names=names,
                output_names=list(output_names),
                optimize=True,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise ValueError(f"this detector cannot be exported: {reason_of(error)}") from error
    finally:
        emitting.on = False
    assert program is not None
    return program.model


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide torch's reports on its progress and its warnings about its own code."""
    names = ("torch.onnx", "torch.export", "torch.__trace", "onnxscript", "onnx_ir")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def reason_of(error: BaseException) -> str:
    """Return in one line the operator that torch.onnx cannot export, or its deepest error."""
    messages = []
    here: BaseException | None = error
    while here is not None:
        messages.append(" ".join(re.sub(r"\x1b\[[0-9;]*m", "", str(here)).split()))
        here = here.__cause__ or here.__context__
    for text in messages:
        for pattern in (r"No ONNX function found for .*?op='([^']+)'", r"target=([\w.:]+)\]"):
            if found := re.search(pattern, text):
                return f"the operator {found[1]} has no ONNX form"
    deepest = messages[-1] or type(error).__name__
    return deepest[:300]


def checked(model: ir.Model) -> onnx.ModelProto:
    """Return the model as an ONNX message, checked with shape inference.

    The shapes of inner values are left out, because every engine infers them itself.

    Raises:
        RuntimeError: The check failed.
    """
    proto: onnx.ModelProto = ir.to_proto(model)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise RuntimeError(f"the exported model is not valid ONNX: {error}") from error
    del proto.graph.value_info[:]
    return proto
