"""Which tensors of a network with every kind of node get a quantizer, by the rules of a target.

`tests.quant.targets.test_placement` checks the same in exported models, operation by operation.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.recipes.recipe import Recipe
from dq.quant.targets.registry import TARGETS
from dq.quant.targets.target import Results, Sums, Target


class Everything(nn.Module):
    """Layers, sums, a gate, pooling, concatenations of parts with one and with more readers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.d, self.e = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.head, self.last = nn.Conv2d(6, 3, 1), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        a = F.relu(self.a(x))
        b = F.silu(self.b(a))
        total = self.c(a) + b  # A layer and a function's value.
        both = F.relu6(self.d(total) + self.e(total))  # Two layers.
        gate = both * torch.sigmoid(F.adaptive_avg_pool2d(both, 1))
        pooled = F.max_pool2d(gate, 2)
        shape = pooled.shape
        up = F.interpolate(pooled, scale_factor=2.0).reshape(shape[0], shape[1], 8, 8)
        joined = torch.cat([up, F.leaky_relu(self.e(both))], 1)
        again = torch.cat([both, joined[:, :3]], 1)
        y = self.head(joined)
        return [F.hardswish(y), F.max_pool2d(self.last(again), 2).flatten(1), a.mean()]


def placed(target: Target) -> list[str]:
    """Return the names of the quantizers for a target, in the order of execution."""
    torch.manual_seed(0)
    recipe = replace(Recipe(target=target.name), outputs=target.outputs)
    graph = prepare(Everything().eval(), recipe)
    return [name.removesuffix("/out") for name in graph.activations()]


WANTED = {
    # What integer operations read, and results of the last layers.
    "int8": "x relu silu c add d e relu6 sigmoid cat cat#1 head last mean",
    "tidl": "x relu silu c add d e relu6 sigmoid cat cat#1 head last mean",
    "openvino": "x relu silu c add d e relu6 sigmoid cat cat#1",
    # All results, with SiLU in two operations; also those of the average and of leaky ReLU's layer.
    "onnxruntime": "x relu b silu/sigmoid silu c add d e relu6 adaptive_avg_pool2d sigmoid e#1 cat"
    " cat#1 head last mean",
    "qnn": "x relu b silu/sigmoid silu c add d e relu6 adaptive_avg_pool2d sigmoid e#1 cat"
    " cat#1 head last mean",
    # A sum is fused into its last layer, so that one's result has no quantizer.
    "tensorrt": "x relu silu add d relu6 sigmoid cat cat#1",
    # Only what layers read.
    "ncnn": "x relu add relu6 cat cat#1",
}
OWN = {
    "x relu silu c add d e relu6 cat cat#1 hardswish last": {
        "mixers": False,
        "results": Results.ALL,
        "outputs": False,
    },
    "x relu silu c add d e relu6 sigmoid cat cat#1 head hardswish last mean": {
        "sums": Sums.ALL_BUT_FUSED,
        "results": Results.ALL,
    },
    "x a relu b silu c add d e add#1 relu6 adaptive_avg_pool2d sigmoid e#1 cat cat#1 head last"
    " mean": {"finds_functions": False, "results": Results.ALL},
}


@pytest.mark.parametrize("name", TARGETS)
def test_the_quantizers_of_a_target(name: str) -> None:
    assert placed(TARGETS[name]) == WANTED[name].split()


@pytest.mark.parametrize("wanted", OWN)
def test_the_quantizers_of_a_target_with_other_rules(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Target(name="own", engine="an engine", source="none", **OWN[wanted])  # type: ignore[arg-type]
    monkeypatch.setitem(TARGETS, "own", own)
    assert placed(own) == wanted.split()
