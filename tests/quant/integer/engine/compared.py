"""Count the values of a quantized net that differ between torch's evaluation and ONNX Runtime."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn

from dq.quant.export.onnx_graph import flatten
from dq.quant.graph.prepare import prepare
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.engine.graph import exact_network
from dq.quant.recipes.recipe import Recipe
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.exported import exported
from tests.quant.nets import calibrate


def images(seed: int, size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def shares_different(
    net: nn.Module, recipe: Recipe | None = None, *, num: int = 3, size: int = 16
) -> tuple[list[float], OnnxNetwork]:
    """Return the share of values that differ, for each output, and the model in ONNX Runtime.

    Args:
        net: Not quantized yet.
        recipe: None for 8 bits everywhere.
        num: Number of batches of two images.
        size: Height and width of an image.
    """
    graph = prepare(net.eval(), recipe or Recipe())
    calibrate(graph, [images(seed, size) for seed in range(4)])
    network = exact_network(graph)
    assert isinstance(network, fx.GraphModule)
    model = OnnxNetwork(exported(graph, images(0, size), fit_biases_))
    shares = []
    for seed in range(20, 20 + num):
        x = images(seed, size)
        pairs = zip(flatten(network(x))[0], model.tensors(x), strict=True)
        shares.append([float((one != other).float().mean()) for one, other in pairs])
    return torch.tensor(shares).mean(0).tolist(), model
