"""Whole small networks give the integers of ONNX Runtime, for several weights and images."""

from __future__ import annotations

import platform

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.recipes.presets import preset
from tests.quant.integer.engine.compared import shares_different

pytestmark = [
    pytest.mark.cpu,
    pytest.mark.slow,
    pytest.mark.skipif(
        platform.machine() not in ("x86_64", "AMD64"),
        reason="the instructions of ONNX Runtime's kernels are known on x86",
    ),
]


def block(inside: int, outside: int, stride: int = 1, act: type[nn.Module] = nn.SiLU) -> nn.Module:
    layers = [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), act()]
    return nn.Sequential(*layers)


class Yolox(nn.Module):
    """Focus, a stage whose halves are joined, a pyramid of maxima, two levels, a shared head."""

    def __init__(self) -> None:
        super().__init__()
        self.focus, self.down = block(12, 16), block(16, 16, 2)
        self.main, self.side = block(16, 8), block(16, 8)
        self.inner, self.joined = block(8, 8), block(16, 16)
        self.spp, self.up = block(64, 16), block(32, 16)
        self.head, self.out = block(16, 16), nn.Conv2d(16, 6, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        parts = [x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)]
        c1 = self.down(self.focus(torch.cat(parts, 1)))
        main = self.main(c1)
        c1 = self.joined(torch.cat([main + self.inner(main), self.side(c1)], 1))
        c2 = F.max_pool2d(c1, 2)
        c2 = self.spp(torch.cat([c2] + [F.max_pool2d(c2, k, 1, k // 2) for k in (3, 5, 7)], 1))
        p1 = self.up(torch.cat([F.interpolate(c2, scale_factor=2.0), c1], 1))
        return [self.out(self.head(p1)), self.out(self.head(c2)), p1.amax((2, 3))]


class Mobile(nn.Module):
    """MobileNetV3's block: depthwise, squeeze and excitation, hard swish, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = block(3, 16, 2, nn.Hardswish)
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(16, 8, 1), nn.Conv2d(8, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x)
        weights = self.excite(torch.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1))))
        x = x + self.project(y * weights.clamp(0.0, 6.0))
        result: Tensor = self.last(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return result


class Pyramid(nn.Module):
    """A pyramid with bilinear interpolation to the size of the finer level, and leaky ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.down, self.further = block(16, 16, 2, nn.ReLU), block(16, 16, 2, nn.ReLU6)
        self.laterals = nn.ModuleList(nn.Conv2d(16, 16, 1) for _ in range(3))
        self.head = nn.Conv2d(16, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        c1 = F.leaky_relu(F.max_pool2d(self.stem(x), 3, 1, 1), 0.1)
        c2 = self.down(c1)
        found = [own(c) for own, c in zip(self.laterals, (c1, c2, self.further(c2)), strict=True)]
        for fine in (1, 0):
            size = found[fine].shape[2:]
            found[fine] = found[fine] + F.interpolate(found[fine + 1], size=size, mode="bilinear")
        return [self.head(self.pool(p)) for p in found]


NETWORKS = [Yolox, Mobile, Pyramid]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", NETWORKS)
def test_no_integer_differs(kind: type[nn.Module], seed: int) -> None:
    torch.manual_seed(seed)
    net = kind()
    for _ in range(3):
        net(torch.randn(4, 3, 32, 32))
    shares, model = shares_different(net, preset("onnxruntime"), num=6, size=32)
    assert shares == [0.0] * len(shares)
    assert model.num_float == 0
