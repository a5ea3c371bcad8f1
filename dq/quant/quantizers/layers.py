"""Convolution, transposed convolution and linear with a folded, fake-quantized weight.

The float layer and its norm stay where they are in the model, with their own state-dict keys. The
module here holds only the weight quantizer and gets both as arguments. So a norm that is replaced
later (by a SyncBatchNorm, for example) is used at once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dq.quant.kernels import native
from dq.quant.kernels.recompute import computed_twice, recomputing
from dq.quant.quantizers.batch_norm_fold import fold_factor, folded_bias, unfold
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.quantizers.half_precision import (
    autocast_dtype,
    nearly_represents,
    represents,
    without_autocast,
)
from dq.quant.quantizers.layer_types import pads_by_itself

# The rounded weight, and the bias with the norm folded in; None where the layer computes it itself.
Prepared = tuple[Tensor | None, Tensor | None]
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def output_axis(layer: nn.Module) -> int:
    """Return the dimension of ``layer.weight`` that runs over output channels."""
    return 1 if isinstance(layer, _ConvTransposeNd) else 0


def num_outputs(layer: nn.Module) -> int:
    """Return how many output channels the layer has."""
    if isinstance(layer, _ConvNd):
        return layer.out_channels
    assert isinstance(layer, nn.Linear)
    return layer.out_features


def spread_over_weight(layer: nn.Module, factor: Tensor) -> Tensor:
    """Return one factor per output channel in a shape that broadcasts against the weight.

    Args:
        layer: Convolution, transposed convolution or linear.
        factor: Shape ``(output channels,)``.
    """
    assert isinstance(layer.weight, Tensor)
    ones = [1] * (layer.weight.dim() - 2)
    if isinstance(layer, _ConvTransposeNd):
        # (in, out / groups, ...): input channel i belongs to group i // (in / groups).
        per_group = factor.reshape(layer.groups, -1)
        spread = per_group.repeat_interleave(layer.in_channels // layer.groups, dim=0)
        return spread.reshape(*spread.shape, *ones)
    return factor.reshape(-1, 1, *ones)


def apply_layer(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute the layer with another weight and bias.

    Fake-quantized tensors are recomputed in the backward pass, if they can be, instead of saved.
    """
    if torch.compiler.is_compiling():
        return _apply(layer, x, weight, bias)
    with recomputing(x, weight):
        return _apply(layer, x, weight, bias)


def _apply(layer: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if pads_by_itself(layer):
        own = {"weight": weight}
        if isinstance(layer.bias, Tensor):
            own["bias"] = torch.zeros_like(layer.bias) if bias is None else bias
        y: Tensor = functional_call(layer, own, (x,))
        if layer.bias is None and bias is not None:
            y = y + bias.reshape(-1, *[1] * (weight.dim() - 2)).to(y.dtype)
        return y
    if isinstance(layer, _ConvTransposeNd):
        function = _TRANSPOSED[weight.dim() - 2]
        assert not isinstance(layer.padding, str)
        return function(
            x,
            weight,
            bias,
            layer.stride,
            layer.padding,
            layer.output_padding,
            layer.groups,
            layer.dilation,
        )
    if isinstance(layer, _ConvNd):
        return layer._conv_forward(x, weight, bias)
    return F.linear(x, weight, bias)


class QuantizedLayer(nn.Module):
    """Apply a layer, and the batch norm after it if any, with a fake-quantized weight.

    Args:
        weight: The quantizer; its channel axis is `output_axis` of the layer.
    """

    def __init__(self, weight: WeightQuantizer) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self,
        x: Tensor,
        layer: nn.Module,
        norm: nn.Module | None = None,
        rounded: Tensor | None = None,
        source: ActivationQuantizer | None = None,
        prepared: Prepared = (None, None),
    ) -> Tensor:
        """Return ``norm(layer(x))`` computed with the fake-quantized weight.

        Under autocast it is computed in float32 if autocast's dtype would move the weight or the
        input off the grid, see `dq.quant.quantizers.half_precision`.

        Args:
            x: The layer's input, ``(N, C, ...)``.
            layer: Convolution, transposed convolution or linear.
            norm: The batch norm that follows, or None.
            rounded: The fake-quantized weight, if the graph computes it once for all pyramid levels
                that share a layer without norm.
            source: The quantizer of ``x``; None if it is unknown.
            prepared: From `dq.quant.graph.fused.weights`, which rounds all weights together.
        """
        if prepared[0] is not None:
            return self._prepared(x, layer, norm, prepared[0], prepared[1], source)
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        if norm is None:
            used = self.weight(weight) if rounded is None else rounded
            return self._computed(layer, x, used, bias, source)
        assert isinstance(norm, _BatchNorm)
        if not self.weight.phase.quantizes:
            plain: Tensor = norm(apply_layer(layer, x, self.weight(weight), bias))
            return plain
        if isinstance(layer, nn.Linear) and x.dim() != 2:
            # The norm's channels are dimension 1, the layer's the last dimension: no folding.
            apart: Tensor = norm(self._computed(layer, x, self.weight(weight), bias, source))
            return apart
        factor = fold_factor(norm)
        used = self._rounded(layer, weight, factor, unfolds=norm.training)
        if not norm.training:
            return self._computed(layer, x, used, folded_bias(bias, norm, factor), source)
        result: Tensor = norm(self._computed(layer, x, used, bias, source))
        return result

    def _prepared(
        self,
        x: Tensor,
        layer: nn.Module,
        norm: nn.Module | None,
        weight: Tensor,
        folded_bias: Tensor | None,
        source: ActivationQuantizer | None,
    ) -> Tensor:
        """Compute the layer with a weight that is rounded already."""
        assert layer.bias is None or isinstance(layer.bias, Tensor)
        if norm is not None and not norm.training:
            return self._computed(layer, x, weight, folded_bias, source)
        y = self._computed(layer, x, weight, layer.bias, source)
        result: Tensor = y if norm is None else norm(y)
        return result

    def _computed(
        self,
        layer: nn.Module,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        source: ActivationQuantizer | None,
    ) -> Tensor:
        """Compute the layer in a dtype that represents its quantized operands."""
        if not self.weight.phase.quantizes or self._is_held(x, weight, bias, source):
            return apply_layer(layer, x, weight, bias)
        casts = autocast_dtype(x) is not None
        with without_autocast(x):
            wide = None if bias is None else bias.float()
            y = apply_layer(layer, x.float(), weight.float(), wide)
        # Without autocast the next module expects the dtype of the model.
        own = layer.weight
        assert isinstance(own, Tensor)
        return y if casts else y.to(own.dtype)

    def _is_held(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, source: ActivationQuantizer | None
    ) -> bool:
        """Say whether the layer may run in its usual dtype: that of autocast, else its own."""
        narrow = autocast_dtype(x)
        if narrow is None:
            return all(t is None or t.dtype == weight.dtype for t in (x, bias))
        return source is not None and all(
            represents(narrow, spec) or nearly_represents(narrow, spec)
            for spec in (self.weight.spec, source.spec)
        )

    def _rounded(
        self, layer: nn.Module, weight: Tensor, factor: Tensor, *, unfolds: bool
    ) -> Tensor:
        """Return the fake-quantized folded weight, divided by the factor again if asked."""
        if (
            output_axis(layer) == 0
            and self.weight.has_native_kernel(weight)
            and native.takes(factor)
        ):
            return self.weight.fake_quantize_natively(weight, factor, unfolds=unfolds)

        def compute(weight: Tensor, spread: Tensor) -> Tensor:
            rounded: Tensor = self.weight(weight * spread)
            return unfold(rounded, weight, spread) if unfolds else rounded

        return computed_twice(compute, weight, spread_over_weight(layer, factor))

    @staticmethod
    def folded(layer: nn.Module, norm: nn.Module | None) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias of the layer with the norm's running statistics folded in."""
        weight, bias = layer.weight, layer.bias
        assert isinstance(weight, Tensor)
        assert bias is None or isinstance(bias, Tensor)
        if norm is None:
            return weight, bias
        assert isinstance(norm, _BatchNorm)
        factor = fold_factor(norm)
        return weight * spread_over_weight(layer, factor), folded_bias(bias, norm, factor)

    def quantized_weight(
        self, layer: nn.Module, norm: nn.Module | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return ``(folded weight, scale, zero_point)`` for inference."""
        with torch.no_grad():
            weight, _ = self.folded(layer, norm)
            return weight, *self.weight.scale_and_zero_point(weight)
