"""Small nets that quantize badly in one known way each, with helpers for the repair tests."""

import torch
from torch import Tensor, nn

from dq.quant.analysis.sensitivity import decibel, noise, output_sqnr
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase


class Separable(nn.Module):
    """Depthwise separable blocks with channels of very different size (as after folding)."""

    def __init__(self, activation: type[nn.Module] = nn.ReLU, *, unequal: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation()]
        for _ in range(2):
            layers += [nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)]
            layers += [
                activation(),
                nn.Conv2d(8, 8, 1, bias=False),
                nn.BatchNorm2d(8),
                activation(),
            ]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv2d(8, 4, 1)
        generator = torch.Generator().manual_seed(3)
        for module in self.body:
            if isinstance(module, nn.BatchNorm2d):
                size = torch.rand(8, generator=generator)
                module.weight.data = 10 ** (2 * size - 1) if unequal else size + 0.5
                module.bias.data = torch.rand(8, generator=generator) * module.weight.data
                module.running_mean = torch.randn(8, generator=generator) * 0.1
                module.running_var = torch.rand(8, generator=generator) * 0.2 + 0.05

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def images(seed: int = 0, num: int = 32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(num, 3, 16, 16, generator=generator).split(8))


def calibrate(graph: QuantizedGraph, batches: list[Tensor]) -> None:
    """Give every quantizer the range of these batches."""
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        for batch in batches:
            graph(batch)
    for quantizer in graph.activations().values():
        if not quantizer.observer.watches:
            continue
        quantizer.observer.range_min.fill_(torch.inf)
        quantizer.observer.range_max.fill_(-torch.inf)
    update_scales_(list(graph.activations().values()))
    set_phase(graph.quantizers, Phase.FROZEN)


def calibrated_sqnr(graph: QuantizedGraph) -> float:
    """Return the outputs' SQNR on unseen images, in decibel, after calibration."""
    calibrate(graph, images())
    return output_sqnr(graph, images(1))


def sqnr(graph: QuantizedGraph, wanted: list[Tensor]) -> float:
    """Return the SQNR on unseen images, relative to the model before any repair."""
    return decibel(noise(graph, images(1), [floating_tensors(y) for y in wanted]))


def unseen(net: nn.Module) -> list[Tensor]:
    """Return the outputs of the model for the unseen images."""
    with torch.no_grad():
        return [net(batch) for batch in images(1)]
