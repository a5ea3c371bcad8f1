"""Concatenated slices that are a whole image are one operation; all others stay slices."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from dq.quant.export.space_to_depth import join_slices_
from dq.quant.graph.prepare import prepare
from dq.quant.recipes.presets import preset
from dq.quant.verify.onnxruntime_session import OnnxNetwork
from tests.quant.exported import exported
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu


class Net(nn.Module):
    """A convolution of slices of an image.

    Args:
        parts: Returns them.
        channels: Of all together.
    """

    def __init__(self, parts: Callable[[Tensor], Sequence[Tensor]], channels: int = 12) -> None:
        super().__init__()
        self.parts = parts
        self.conv = nn.Conv2d(channels, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(torch.cat(list(self.parts(x)), dim=1))
        return y


def slices(step: int, order: Sequence[tuple[int, int]]) -> Callable[[Tensor], list[Tensor]]:
    return lambda x: [x[..., a::step, b::step] for a, b in order]


def of(net: nn.Module, size: int = 24) -> tuple[onnx.ModelProto, Tensor, Tensor]:
    """Return the exported net, an image, and the fake-quantized net's result for it."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, size, size)
    graph = prepare(net.eval(), preset("openvino"), examples=[images])
    calibrate(graph, [images])
    with torch.no_grad():
        return exported(graph, images), images, graph(images)


WHOLE = {
    "yolox": (slices(2, [(0, 0), (1, 0), (0, 1), (1, 1)]), 12),
    "its own order": (slices(2, [(0, 0), (0, 1), (1, 0), (1, 1)]), 12),
    "every third": (slices(3, [(b, a) for a in range(3) for b in range(3)]), 27),
    "columns first": (
        lambda x: [x[..., :, b::2][..., a::2, :] for b in (0, 1) for a in (0, 1)],
        12,
    ),
}


@pytest.mark.parametrize(
    "name", ["yolox", *(pytest.param(n, marks=pytest.mark.slow) for n in WHOLE if n != "yolox")]
)
def test_all_parts_of_an_image_are_one_operation(name: str) -> None:
    parts, channels = WHOLE[name]
    model, images, wanted = of(Net(parts, channels))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("SpaceToDepth") == 1
    assert "Slice" not in kinds
    assert "Concat" not in kinds
    assert ("Gather" in kinds) is (name != "its own order")
    (found,) = OnnxNetwork(model).tensors(images)
    torch.testing.assert_close(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parts", "channels"),
    [
        (slices(2, [(0, 0), (1, 0), (0, 1)]), 9),
        (slices(2, [(0, 0), (1, 0), (0, 1), (0, 1)]), 12),
        (lambda x: [x[..., a::2, b::2] for a in (0, 1) for b in (2, 3)], None),
        (lambda x: [x[..., ::2, :], x[..., 1::2, :]], 6),
        (lambda x: [x[:, c::2, :-1:2, ::2] for c in (0, 1)], 3),
        (lambda x: [(x + a)[..., a::2, b::2] for a in (0, 1) for b in (0, 1)], 12),
    ],
    ids=["one missing", "one twice", "shifted", "rows alone", "part of the height", "two images"],
)
def test_other_slices_stay(parts: Callable[[Tensor], list[Tensor]], channels: int | None) -> None:
    if channels is None:  # The slices' sizes differ by the shift, which a crop removes.
        net = Net(lambda x: [y[..., :11, :11] for y in parts(x)], 12)
    else:
        net = Net(parts, channels)
    model, images, wanted = of(net)
    assert "SpaceToDepth" not in [node.op_type for node in model.graph.node]
    (found,) = OnnxNetwork(model).tensors(images)
    torch.testing.assert_close(found, wanted)


def test_slices_with_other_readers_stay_for_them() -> None:
    text = """<ir_version: 10, opset_import: ["": 18]>
    net (float[1, 1, 4, 4] x) => (float[1, 4, 2, 2] y, float[1, 1, 2, 2] z)
    <int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}, int64[1] three = {3},
     int64[1] end = {9}> {
        top = Slice (x, zero, end, two, two)
        bottom = Slice (x, one, end, two, two)
        a = Slice (top, zero, end, three, two)
        b = Slice (top, one, end, three, two)
        c = Slice (bottom, zero, end, three, two)
        d = Slice (bottom, one, end, three, two)
        y = Concat <axis = 1> (a, b, c, d)
        z = Neg (a)
    }"""
    before = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    model = ir.from_proto(before)
    assert join_slices_(model) == 1
    after = ir.to_proto(model)
    onnx.checker.check_model(after)
    assert [node.op_type for node in after.graph.node] == ["Slice", "Slice", "SpaceToDepth", "Neg"]
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    results = [OnnxNetwork(one).tensors(x) for one in (before, after)]
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
