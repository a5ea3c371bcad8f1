"""Compiled by inductor, fake-quantized tensors are recomputed in the backward pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dq.quant.kernels.compile_pass import inductor_options
from tests.quant.kernels.test_recompute import gradients
from tests.quant.trained import kept, prepared


@pytest.mark.slow
def test_a_compiled_step_saves_no_quantized_copies_and_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, bias=False),
        nn.Conv2d(64, 64, 3),
    )
    x = torch.randn(2, 3, 20, 20)
    graph = prepared(model, "lsq", x)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    sizes, found = [], []
    for options in ({}, inductor_options()):
        torch._dynamo.reset()
        model.load_state_dict(before)
        compiled = torch.compile(graph, fullgraph=True, options=options)
        found.append(gradients(compiled, model, x))
        sizes.append(sum(kept(compiled(x)).values()))
    # Compared with each other, not with eager mode: last bits of the compiled norm can flip a tie.
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)
    plain, again = sizes
    # The weights of the last two layers, which are large, and two of the quantized inputs.
    weights = sum(model[i].weight.numel() for i in (3, 4))  # type: ignore[union-attr, operator]
    values = x.new_empty(2, 32, 18, 18).numel() + x.new_empty(2, 64, 16, 16).numel()
    assert again <= plain - 4 * (weights + values)
