"""An input is rounded once, after it has been rearranged; the numbers are the same."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.recipes.presets import preset
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.exported import exported
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu


class Focus(nn.Module):
    """The first layers of YOLOX: four strided slices of the image, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[..., a::2, b::2] for b in (0, 1) for a in (0, 1)]
        return self.conv(torch.cat(parts, dim=1))


class Turned(nn.Module):
    """A reshaped and transposed image: its quantizer stands before these."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(2).transpose(1, 2))


class AlsoRead(Focus):
    """The image has another reader, which needs it quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [super().forward(x), self.other(x)]


class Returned(Focus):
    """A slice of the image is returned as it is."""

    def forward(self, x: Tensor) -> list[Tensor]:  # type: ignore[override]
        return [super().forward(x), x[..., ::2, ::2]]


@pytest.mark.parametrize(
    ("net", "begins_with"),
    [
        (Focus, {"SpaceToDepth"}),
        pytest.param(Turned, {"QuantizeLinear"}, marks=pytest.mark.slow),
        (AlsoRead, {"QuantizeLinear"}),
        pytest.param(Returned, {"QuantizeLinear"}, marks=pytest.mark.slow),
    ],
)
def test_an_input_is_rounded_after_it_is_rearranged(
    net: type[nn.Module],
    begins_with: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    graph = prepare(net(), preset("onnxruntime"), examples=[images])
    calibrate(graph, [images])
    model = exported(graph, images)
    nodes = model.graph.node
    assert {node.op_type for node in nodes if "images" in node.input} <= begins_with
    monkeypatch.setattr("dq.quant.export.qdq.round_inputs_late_", lambda model: 0)
    before = exported(graph, images)
    if begins_with != {"QuantizeLinear"}:
        assert len(nodes) < len(before.graph.node)
    computed = [OnnxNetwork(m).tensors(images) for m in (model, before)]
    for one, other in zip(*computed, strict=True):
        assert torch.equal(one, other)
