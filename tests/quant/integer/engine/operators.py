"""Operators between two convolutions, in every way to call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Called with the modules of the case and the output of the first convolution.
Operator = Callable[[nn.ModuleDict, Tensor], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One operator.

    Attributes:
        operator: Called with its modules and the output of the first convolution.
        parts: Creates the modules that it uses.
        channels: Number of channels of its result.
    """

    operator: Operator
    parts: Callable[[], dict[str, nn.Module]] = field(default=dict)
    channels: int = 8


class Net(nn.Module):
    """A convolution, and for each operator its result and another convolution.

    Args:
        cases: The operators.
    """

    def __init__(self, cases: Iterable[Case]) -> None:
        super().__init__()
        self.operators = [own.operator for own in cases]
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.parts = nn.ModuleList(nn.ModuleDict(own.parts()) for own in cases)
        self.last = nn.ModuleList(nn.Conv2d(own.channels, 4, 1) for own in cases)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.first(x)
        results = zip(self.operators, self.parts, self.last, strict=True)
        return [last(operator(parts, y)) for operator, parts, last in results]


def case(operator: Operator, channels: int = 8, **parts: Callable[[], nn.Module]) -> Case:
    return Case(
        operator=operator, channels=channels, parts=lambda: {k: v() for k, v in parts.items()}
    )


def conv() -> nn.Module:
    return nn.Conv2d(8, 8, 1)


def excitation() -> nn.Module:
    layers = [nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.Identity(), nn.Hardsigmoid()]
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), *layers)


def halves(x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    return left * right.sigmoid()


EXACT = {
    "silu": case(lambda own, x: x * torch.sigmoid(x)),
    "silu by methods": case(lambda own, x: x.mul(x.sigmoid())),
    "silu by modules": case(lambda own, x: own["s"](x) * x, s=nn.Sigmoid),
    "tanh": case(lambda own, x: x * torch.tanh(x)),
    "hard sigmoid": case(lambda own, x: x * F.hardsigmoid(x)),
    "hard swish spelled out": case(lambda own, x: x * F.relu6(x + 3) / 6),
    "hard swish": case(lambda own, x: x + F.hardswish(F.max_pool2d(x, 1))),
    "leaky relu": case(lambda own, x: x + F.leaky_relu(x, 0.1)),
    "leaky relu module": case(lambda own, x: x + own["r"](x), r=lambda: nn.LeakyReLU(0.2)),
    "gelu": case(lambda own, x: x + F.gelu(x)),
    "squeeze": case(lambda own, x: x * own["c"](F.adaptive_avg_pool2d(x, 1)), c=conv),
    "mean kept": case(lambda own, x: x + torch.mean(x, dim=(-2, -1), keepdim=True)),
    "mean not kept": case(
        lambda own, x: own["f"](x.mean((2, 3)))[:, :, None, None], f=lambda: nn.Linear(8, 8)
    ),
    "pooled and flattened": case(
        lambda own, x: own["f"](F.adaptive_avg_pool2d(x, 1).flatten(1))[:, :, None, None],
        f=lambda: nn.Linear(8, 8),
    ),
    "average pool": case(lambda own, x: F.avg_pool2d(x, 3, 1, 1)),
    "average pool without padding": case(
        lambda own, x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)
    ),
    "average pool with partial windows": case(
        lambda own, x: F.avg_pool2d(x, 3, 2, 0, ceil_mode=True)
    ),
    "average pool and relu": case(
        lambda own, x: torch.relu(own["a"](x)), a=lambda: nn.AvgPool2d(2)
    ),
    "average pool with padding and partial windows": case(
        lambda own, x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True)
    ),
    "average pool whose last window is padding": case(
        lambda own, x: F.avg_pool2d(x, 4, 3, 2, ceil_mode=True)
    ),
    "adaptive pool": case(lambda own, x: F.adaptive_avg_pool2d(x, 4)),
    "concatenation": case(lambda own, x: torch.cat([x * x.sigmoid(), own["c"](x)], 1), 16, c=conv),
    "pyramid of maxima": case(
        lambda own, x: torch.cat([x, F.max_pool2d(x, 5, 1, 2), F.max_pool2d(x, 9, 1, 4)], 1), 24
    ),
    "focus": case(lambda own, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2]], 1), 16),
    "halves": case(lambda own, x: halves(x), 4),
    "nearest": case(lambda own, x: F.interpolate(x, scale_factor=2.0)),
    "bilinear": case(lambda own, x: F.interpolate(x, scale_factor=2.0, mode="bilinear")),
    "bilinear to a size": case(lambda own, x: F.interpolate(x, size=(23, 29), mode="bilinear")),
    "bilinear to another's size": case(
        lambda own, x: x + F.interpolate(own["d"](x), size=x.shape[2:], mode="bilinear"),
        d=lambda: nn.Conv2d(8, 8, 3, 2, 1),
    ),
    "bilinear module": case(
        lambda own, x: own["u"](x),
        u=lambda: nn.Upsample(scale_factor=1.5, mode="bilinear", align_corners=True),
    ),
    "softmax": case(lambda own, x: x * torch.softmax(x, 1)),
    "softmax module": case(lambda own, x: x * own["s"](x), s=lambda: nn.Softmax(-1)),
    "matrix product": case(lambda own, x: torch.matmul(x, x.transpose(2, 3))),
    "sum with a mean": case(lambda own, x: x + own["c"](F.adaptive_avg_pool2d(x, 1)), c=conv),
    "difference": case(lambda own, x: x - own["c"](x), c=conv),
    "square": case(lambda own, x: x * x),
    "relu6 as a function": case(lambda own, x: F.relu6(x)),
    "clamp": case(lambda own, x: x.clamp(0.0, 6.0)),
    "clamp_min": case(lambda own, x: x.clamp_min(0)),
    "linear on images": case(
        lambda own, x: own["f"](x.transpose(1, 3)).transpose(1, 3), f=lambda: nn.Linear(8, 8)
    ),
    "linear without bias": case(
        lambda own, x: own["f"](x.transpose(1, 3)).transpose(1, 3),
        f=lambda: nn.Linear(8, 8, bias=False),
    ),
    "convolution as a function": case(
        lambda own, x: F.conv2d(x, own["c"].weight * 2, own["c"].bias), c=conv
    ),
}
# Functions directly after a layer: integers if the target asks for a quantizer between them.
DIRECT = {
    "silu": case(lambda own, x: F.silu(x)),
    "silu module": case(lambda own, x: own["s"](x), s=nn.SiLU),
    "silu of exp": case(lambda own, x: x / (1 + torch.exp(-x))),
    "hard swish": case(lambda own, x: F.hardswish(x)),
    "hard swish spelled out": case(lambda own, x: x * F.relu6(x + 3) / 6),
    "hard sigmoid": case(lambda own, x: F.hardsigmoid(x)),
    "leaky relu": case(lambda own, x: F.leaky_relu(x, 0.1)),
    "prelu": case(lambda own, x: own["p"](x), p=lambda: nn.PReLU(8)),
    "gelu": case(lambda own, x: F.gelu(x)),
    "mish": case(lambda own, x: F.mish(x)),
    "elu": case(lambda own, x: F.elu(x)),
    "tanh": case(lambda own, x: torch.tanh(x)),
    "sigmoid": case(lambda own, x: torch.sigmoid(x)),
    "softmax": case(lambda own, x: torch.softmax(x, 1)),
    "excitation": case(lambda own, x: own["e"](x) * x, e=excitation),
}
# Computed in float by ONNX Runtime, in an order that is not known: values differ at ties.
IN_FLOAT = {
    "excitation": case(lambda own, x: own["e"](x) * x, e=excitation),
    "transposed convolution": case(
        lambda own, x: torch.relu(own["t"](x)), t=lambda: nn.ConvTranspose2d(8, 8, 4, 2, 1)
    ),
    "sigmoid of a sum in float": case(lambda own, x: F.silu(x)),
    "mean over a row": case(lambda own, x: x * x.mean(-1, keepdim=True)),
    "padding that reflects": case(
        lambda own, x: own["c"](x),
        c=lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    ),
}
