"""Modules that hold integers: a weight, a layer with such a weight, an activation's quantizer.

They compute what the fake-quantized network computes, from the integers that a device gets: weights
are stored as int8 (int16 above 8 bits) and dequantized when they are used. In an export, each
module emits one placeholder node of our own domain instead. The writer of a format
(`dq.quant.export.qdq`, `dq.quant.export.tidl`) replaces it by that format's nodes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dq.quant.numerics.affine import dequantize, fake_quantize, quantize
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.layers import apply_layer

# Domain and names of the placeholder nodes while a network is exported.
DOMAIN, ROUND, WEIGHT = "dq", "Round", "Weight"


@dataclass(slots=True)
class ExportSwitch:
    """Whether modules compute, or emit placeholder nodes; shared by one network's modules."""

    on: bool = False


def storage_dtype(spec: QuantSpec) -> torch.dtype:
    """Return torch's smallest integer dtype for this integer format."""
    if spec.bits <= 8:
        return torch.int8 if spec.signed else torch.uint8
    return torch.int16 if spec.signed else torch.int32


class IntegerWeight(nn.Module):
    """A weight stored as integers; calling it returns the real weight.

    Args:
        site: Name of its quantizer.
        weight: Real numbers, folded.
        scale: As for `dq.quant.numerics.affine.quantize`.
        zero_point: As for `dq.quant.numerics.affine.quantize`.
        spec: The integer format.
        export_switch: Shared by all modules of a network.

    Buffers ``integers`` (`storage_dtype`, shape of the weight), ``scale`` float32 and
    ``zero_point`` int32.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        site: str,
        weight: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        spec: QuantSpec,
        export_switch: ExportSwitch,
    ) -> None:
        super().__init__()
        self.site, self.spec, self.export_switch = site, spec, export_switch
        integers = quantize(weight.detach(), scale, zero_point, spec)
        self.register_buffer("integers", integers.to(storage_dtype(spec)))
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self) -> Tensor:
        """Return the real weight, float32."""
        if not self.export_switch.on:
            return dequantize(self.integers.int(), self.scale, self.zero_point, self.spec)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{WEIGHT}",
            (self.integers, self.scale, self.zero_point),
            attrs={"site": self.site},
            dtype=torch.float32,
            shape=self.integers.shape,
            version=1,
        )


class IntegerLayer(nn.Module):
    """Convolution, transposed convolution or linear with an `IntegerWeight`.

    Args:
        weight: Its weight.
        bias: Real numbers, with the batch norm folded in; None for none.
        layer: The float layer, for its stride, padding and so on; copied without its weight.
    """

    bias: Tensor | None

    def __init__(self, weight: IntegerWeight, bias: Tensor | None, layer: nn.Module) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())
        self.layer = _shell(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result for ``x``, ``(N, C, ...)``."""
        return apply_layer(self.layer, x, self.weight(), self.bias)


def _shell(layer: nn.Module) -> nn.Module:
    """Return a copy of a layer with neither weight nor bias of its own."""
    held = {id(p): p for p in layer.parameters(recurse=False)}
    empty = {key: nn.Parameter(torch.empty(0), requires_grad=False) for key in held}
    shell = copy.deepcopy(layer, dict(empty))
    for name in [n for n, _ in shell.named_parameters(recurse=False)]:
        delattr(shell, name)
        # The attribute must exist for functional calls, but not in the state dict.
        shell.register_buffer(name, torch.empty(0), persistent=False)
    return shell.eval()


class IntegerActivation(nn.Module):
    """Fake-quantize a tensor with the integers of one quantizer.

    Args:
        site: Name of that quantizer.
        scale: float32 ``()``.
        zero_point: int32 ``()``.
        spec: The integer format; per tensor.
        export_switch: Shared by all modules of a network.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        site: str,
        scale: Tensor,
        zero_point: Tensor,
        spec: QuantSpec,
        export_switch: ExportSwitch,
    ) -> None:
        super().__init__()
        self.site, self.spec, self.export_switch = site, spec, export_switch
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self, x: Tensor, repeated: bool = False) -> Tensor:
        """Return ``x`` fake-quantized; same shape, float32.

        Args:
            x: Any shape.
            repeated: This is a repetition, see `dq.quant.integer.convert`. In an exported file only
                the node of the first place has the quantizer's name alone; others have a number.
        """
        if not self.export_switch.on:
            return fake_quantize(x, self.scale, self.zero_point, self.spec)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ROUND}",
            (x, self.scale, self.zero_point),
            attrs={"site": self.site, "repeated": int(repeated)},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )
