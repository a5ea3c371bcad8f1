"""A small net and its calibration, for tests of training."""

import torch
from torch import nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe

W4 = QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0, narrow=True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.neck = nn.Conv2d(8, 8, 3)
        self.neck_norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.neck_norm(self.neck(x)))
        return [self.head(x), x]


def images(seed: int = 0, count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def calibrated(recipe: Recipe | None = None) -> QuantizedGraph:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        # Statistics and gains that fit the data, and differ from channel to channel.
        for norm in (model.norm, model.neck_norm):
            norm.weight.uniform_(0.5, 2.0)
            norm.bias.uniform_(-0.5, 0.5)
            norm.momentum = 0.5
        for seed in range(8):
            model(images(seed))
        for norm in (model.norm, model.neck_norm):
            norm.momentum = 0.1
    graph = prepare(model, recipe or Recipe())
    model.eval()
    set_phase(model, Phase.CALIBRATE)
    with torch.no_grad():
        graph(images())
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())
    set_phase(model, Phase.FROZEN)
    return graph
