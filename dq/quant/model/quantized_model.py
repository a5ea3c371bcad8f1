"""A prepared model as a module: it runs its quantized graph and shares the model's state."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.model.inputs import Inputs
from dq.quant.recipes.recipe import Recipe

_EXPORT = (
    "torch cannot export a prepared model: it would export the float model, or quantizers that no"
    " engine knows; use dq.quant.export_onnx(model, 'model.onnx', example)"
)


class QuantizedModel(nn.Module):
    """The result of `dq.quant.prepare`: calling it runs the quantized graph.

    It takes the inputs that the model was prepared with, by position or by name. Children,
    parameters and buffers are the model's own, so optimizers, ``state_dict``, ``to``, `torch.save`
    and data parallelism work as with the model. Its state dict has the model's keys, and the
    quantizers' keys below ``quantizers.``.

    Attributes:
        graph: The quantized graph; ``graph.root`` is the model, ``graph.sites`` lists the
            quantizers, ``graph.left_float`` the modules that could not be traced.
        recipe: The recipe that the model was prepared with.
        inputs: The inputs that it takes.
    """

    def __init__(self, graph: QuantizedGraph, recipe: Recipe, inputs: Inputs) -> None:
        super().__init__()
        self.graph, self.recipe, self.inputs = graph, recipe, inputs
        # The same dicts and not copies, so that a change of one model is a change of the other.
        root = graph.root
        self._modules, self._parameters = root._modules, root._parameters
        self._buffers = root._buffers
        self._non_persistent_buffers_set = root._non_persistent_buffers_set
        self.training = root.training

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the model's outputs, with tensors fake-quantized as the recipe says.

        Raises:
            ValueError: The inputs are not those that it was prepared with, a FROZEN quantizer was
                never calibrated, or torch.export or torch.onnx.export calls it.
        """
        if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
            raise ValueError(_EXPORT)
        return self.graph(*self.inputs.in_order(inputs, named))

    def train(self, mode: bool = True) -> QuantizedModel:
        """Set the training mode of the model and all its modules."""
        self.graph.root.train(mode)
        self.training = mode
        return self


def refuse_export(model: nn.Module, _: Any) -> None:
    """Raise ValueError if torch exports the float model; a forward pre-hook."""
    if torch.compiler.is_exporting() or torch.onnx.is_in_onnx_export():
        raise ValueError(_EXPORT)
