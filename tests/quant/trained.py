"""Prepared models in training, and the memory that autograd saves for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe


def prepared(
    model: nn.Module, learned: str | None, x: Tensor, phase: Phase = Phase.TRAIN
) -> QuantizedGraph:
    """Return the model in training mode and this phase, with ranges from ``x``."""
    graph = prepare(model, Recipe(learned=learned))
    model.eval()
    set_phase(model, Phase.CALIBRATE)
    with torch.no_grad():
        graph(x)
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    model.train()
    set_phase(model, phase)
    return graph


def kept(result: Tensor) -> dict[int, int]:
    """Return address and bytes of every storage that autograd saves for a backward pass.

    It searches the autograd graph of ``result``. Saved-tensor hooks would not see what operators
    save under other hooks (`dq.quant.kernels.recompute`). Tensors that those dropped do not count.
    """
    found: dict[int, int] = {}
    seen, stack = set(), [result.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        stack += [following for following, _ in node.next_functions]
        tensors: list[object] = []
        for name in dir(node):
            if name.startswith("_raw_saved_"):
                saved = getattr(node, name)
                tensors += [s.data for s in (saved if isinstance(saved, tuple) else (saved,))]
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return found
