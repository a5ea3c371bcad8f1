"""An exported small net with every kind of layer, one of which is called twice."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict

import onnx
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.calibration import calibrate_
from dq.quant.recipes.recipe import Recipe
from tests.quant.exported import exported

SIZE = (16, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.shared = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.pool(torch.relu(self.norm(self.stem(x))))
        x = torch.nn.functional.silu(self.depthwise(x)) + x
        x = self.shared(torch.relu(self.shared(x)))
        return [x, self.last(torch.relu(self.up(x)).flatten(2).transpose(1, 2))]


def images(seed: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def graph_of(recipe: Recipe | None = None) -> QuantizedGraph:
    torch.manual_seed(0)
    net = Net()
    for _ in range(5):
        net(images(9))
    graph = prepare(net.eval(), recipe or Recipe())
    calibrate_(graph, [images(seed) for seed in range(4)], lambda batch: len(graph(batch)))
    return graph


@functools.cache
def _bytes_of(recipe: Recipe) -> bytes:
    model = exported(graph_of(recipe), images(0))
    onnx.helper.set_model_props(model, {"recipe": json.dumps(asdict(recipe))})
    return model.SerializeToString()


def model_of(recipe: Recipe) -> onnx.ModelProto:
    return onnx.load_model_from_string(_bytes_of(recipe))


def int8_model() -> onnx.ModelProto:
    return model_of(Recipe())
