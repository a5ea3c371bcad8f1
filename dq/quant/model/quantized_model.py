"""A prepared model as a module: it runs its quantized graph and shares the model's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.model.inputs import Inputs
from dq.quant.recipes.recipe import Recipe

_EXPORT = (
    "torch cannot export a prepared model: its own forward pass is the float one, and quantizers"
    " are no operators of an engine; use dq.quant.export_onnx(model, 'model.onnx', example)"
)


class QuantizedModel(nn.Module):
    """What `dq.quant.graph.prepare` returns.

    Calling it runs the quantized graph on the inputs that the model was prepared with, by position
    or by name. Children, parameters and buffers are the model's own, so optimizers,
    ``state_dict``, ``to``, `torch.save` and data parallelism work as with the model; its state
    dict has the model's keys, and those of the quantizers below ``quantizers.``.

    Attributes:
        graph: The quantized graph; ``graph.root`` is the model, ``graph.sites`` lists what is
            quantized, ``graph.left_float`` the modules that could not be traced.
        recipe: What the model was prepared with.
        inputs: The inputs that it takes.
    """

    def __init__(self, graph: QuantizedGraph, recipe: Recipe, inputs: Inputs) -> None:
        super().__init__()
        self.graph, self.recipe, self.inputs = graph, recipe, inputs
        # The same dicts, not copies: what is replaced or loaded in one is in the other.
        root = graph.root
        self._modules, self._parameters = root._modules, root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the model returns, with every tensor of the recipe fake-quantized.

        Raises:
            ValueError: The inputs are not those it was prepared with, a quantizer that is FROZEN
                was never calibrated, or torch.export or torch.onnx.export runs it.
        """
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            raise ValueError(_EXPORT)
        return self.graph(*self.inputs.in_order(inputs, named))

    def train(self, mode: bool = True) -> QuantizedModel:
        """Set the mode of the model and of all below it."""
        self.graph.root.train(mode)
        self.training = mode
        return self


def refuse_export(model: nn.Module, _: Any) -> None:
    """Refuse that the float model is exported in place of the quantized one; a forward pre-hook."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        raise ValueError(_EXPORT)
