"""The effect of an error in each channel of each activation on the outputs of the float network.

A small error that is independent from place to place adds noise to the outputs: the square of the
error times the squared derivative of the outputs. The sum over all outputs is estimated without
their Jacobian: the gradient of the outputs' sum with random signs has the same expected square
(Hutchinson 1989). Each output tensor counts relative to its own power, as in
`dq.quant.analysis.sensitivity`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dq.quant.graph.nodes import Given, as_tuple
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase, watching_outputs

# Images of one backward pass.
AT_ONCE = 2


def channel_effects(
    graph: QuantizedGraph,
    calls: Sequence[Given],
    quantizers: Mapping[str, ActivationQuantizer],
) -> dict[str, Tensor]:
    """Return the squared derivative of the outputs by each channel of each quantizer's input.

    Args:
        graph: Prepared, in evaluation mode; left as it is.
        calls: A few inputs on the model's device. Each is one backward pass, which keeps all
            activations.
        quantizers: Those to measure, by name.

    Returns:
        float64 ``(channels,)`` by name. A quantizer whose tensor has no channels, or does not reach
        the outputs, is left out.
    """
    found: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    with in_phase(graph.quantizers, Phase.OFF):
        for few in calls:
            for name, gradient in _gradients(graph, few, quantizers, generator).items():
                axes = [axis for axis in range(gradient.dim()) if axis != 1]
                squared = gradient.double().square().sum(axes)
                found[name] = found[name] + squared if name in found else squared
    return {name: total for name, total in found.items() if float(total.max()) > 0}


def _gradients(
    graph: QuantizedGraph,
    given: Given,
    quantizers: Mapping[str, ActivationQuantizer],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Return the gradient of the outputs' sum with random signs by each quantizer's output."""
    kept: dict[str, Tensor] = {}

    def keep(name: str, inputs: object, output: Tensor) -> None:
        if output.requires_grad and output.dim() >= 2:
            kept[name] = output

    with watching_outputs(quantizers, keep), torch.enable_grad():
        leaves = [_leaf(x) for x in as_tuple(given)]
        outputs = [y for y in floating_tensors(graph(*leaves)) if y.requires_grad]
        total = sum(signed_sum(y, generator) for y in outputs)
    if not kept or not isinstance(total, Tensor):
        return {}
    gradients = torch.autograd.grad(total, list(kept.values()), allow_unused=True)
    return {n: g for n, g in zip(kept, gradients, strict=True) if g is not None}


def _leaf(x: Tensor) -> Tensor:
    # Frozen parameters give no gradient, so the inputs must ask for it.
    return x.detach().clone().requires_grad_()


def signed_sum(y: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sum of a tensor with random signs, divided by the root of its sum of squares."""
    signs = torch.randint(0, 2, y.shape, generator=generator).to(y.device, y.dtype) * 2 - 1
    power = y.detach().double().square().sum().sqrt().clamp(min=1e-30)
    return (signs * y).sum() / power.to(y.dtype)
