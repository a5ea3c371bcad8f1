"""Modules that hold integers: a weight, a layer with such a weight, an activation's rounding.

They compute what the fake-quantized network computes, from the integers that a device would be
given: weights are stored as int8 (int16 above 8 bits) and turned into real numbers when they are
used. In an export each of them yields one node of a domain of our own instead, which the writer of
a format (`dq.quant.export.qdq`, `dq.quant.export.tidl`) replaces by that format's own nodes.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dq.quant.numerics.affine import dequantize, fake_quantize, quantize
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.layers import apply_layer

# Domain and names of the nodes that stand for our modules while a network is exported.
DOMAIN, ROUND, WEIGHT = "dq", "Round", "Weight"


@dataclass(slots=True)
class Emitting:
    """Whether modules compute, or yield nodes to be replaced; shared by those of one network."""

    on: bool = False


def storage_dtype(spec: QuantSpec) -> torch.dtype:
    """Return the smallest integer dtype of torch that holds the spec's integers."""
    if spec.bits <= 8:
        return torch.int8 if spec.signed else torch.uint8
    return torch.int16 if spec.signed else torch.int32


class IntegerWeight(nn.Module):
    """A weight as integers; called, it returns the real numbers.

    Args:
        site: Name of the quantizer it comes from.
        weight: Real numbers, folded.
        scale: As `dq.quant.numerics.affine.quantize` takes it.
        zero_point: Likewise.
        spec: The integers.

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
        emitting: Emitting,
    ) -> None:
        super().__init__()
        self.site, self.spec, self.emitting = site, spec, emitting
        integers = quantize(weight.detach(), scale, zero_point, spec)
        self.register_buffer("integers", integers.to(storage_dtype(spec)))
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self) -> Tensor:
        """Return the real weight, float32."""
        if not self.emitting.on:
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
        # Still there to be stood in for, yet in no state dict.
        shell.register_buffer(name, torch.empty(0), persistent=False)
    return shell.eval()


class IntegerActivation(nn.Module):
    """Round a tensor to the integers of one quantizer and return the real numbers.

    Args:
        site: Name of that quantizer.
        scale: float32 ``()``.
        zero_point: int32 ``()``.
        spec: The integers; per tensor.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, site: str, scale: Tensor, zero_point: Tensor, spec: QuantSpec, emitting: Emitting
    ) -> None:
        super().__init__()
        self.site, self.spec, self.emitting = site, spec, emitting
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())

    def forward(self, x: Tensor, again: bool = False) -> Tensor:
        """Return ``x`` rounded; same shape, float32.

        Args:
            x: Any shape.
            again: This is not the place where the quantized graph rounds, see
                `dq.quant.integer.convert`; exports name the other one after the quantizer.
        """
        if not self.emitting.on:
            return fake_quantize(x, self.scale, self.zero_point, self.spec)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{ROUND}",
            (x, self.scale, self.zero_point),
            attrs={"site": self.site, "again": int(again)},
            dtype=torch.float32,
            shape=x.shape,
            version=1,
        )
