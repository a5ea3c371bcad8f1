"""mmcv's operators on a GPU for which mmcv was not compiled: they run there, as on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from mmcv import ops
from torch import Tensor

from dq.detector.model.operators.ensure import ensure_operators
from tests.pretended_gpu import OnGpu, pretended_gpu

pytestmark = pytest.mark.cpu
BOXES = [[0, 1.0, 1.0, 6.0, 5.0], [0, 0.0, 2.0, 3.0, 7.0]]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def corners(number: int) -> Tensor:
    begin = random(number, 2).abs() * 10
    return torch.cat([begin, begin + 5 + random(number, 2, seed=1).abs() * 5], 1)


def masked(to: Callable[[Tensor], Tensor]) -> Any:
    layer = ops.MaskedConv2d(2, 3, 3, padding=1)
    for n, parameter in enumerate(layer.parameters()):
        parameter.data = random(*parameter.shape, seed=n)
    return layer.to(to(torch.zeros(1)).device)(
        to(random(1, 2, 6, 6)), to((random(1, 6, 6, seed=2) > 0).float())
    )


Call = Callable[[Callable[[Tensor], Tensor]], Any]
CALLS: dict[str, Call] = {
    "nms": lambda to: ops.nms(to(corners(40)), to(random(40, seed=3)), 0.3),
    "batched_nms": lambda to: ops.batched_nms(
        to(corners(40)), to(random(40, seed=3)), to(torch.arange(40) % 3), {"iou_threshold": 0.3}
    ),
    "soft_nms": lambda to: ops.soft_nms(to(corners(20)), to(random(20, seed=3).abs())),
    "nms_match": lambda to: ops.nms_match(
        to(torch.cat([corners(20), random(20, 1, seed=3)], 1)), 0.3
    ),
    "roi_align": lambda to: ops.roi_align(
        to(random(1, 2, 8, 8)).requires_grad_(), to(torch.tensor(BOXES)), 3
    ),
    "deform_conv2d": lambda to: ops.deform_conv2d(
        to(random(1, 2, 6, 6)), to(random(1, 18, 6, 6)).requires_grad_(),
        to(random(3, 2, 3, 3)), 1, 1,
    ),
    "modulated_deform_conv2d": lambda to: ops.modulated_deform_conv2d(
        to(random(1, 2, 6, 6)), to(random(1, 18, 6, 6)), to(random(1, 9, 6, 6).sigmoid()),
        to(random(3, 2, 3, 3)), None, 1, 1,
    ),
    "sigmoid_focal_loss": lambda to: ops.sigmoid_focal_loss(
        to(random(5, 3)).requires_grad_(), to(torch.tensor([0, 1, 2, 3, 0])), 2.0, 0.25, None, "sum"
    ),
    "carafe": lambda to: ops.carafe(
        to(random(1, 4, 5, 5)), to(random(1, 25, 10, 10).softmax(1)), 5, 1, 2
    ),
    "masked_conv": masked,
    "point_sample": lambda to: ops.point_sample(
        to(random(1, 2, 6, 6)), to(random(1, 4, 2).sigmoid())
    ),
    "corner_pool": lambda to: ops.CornerPool("top")(to(random(1, 2, 6, 6))),
    "deformable_attention": lambda to: (
        ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction.apply(
            to(random(1, 20, 2, 4)), to(torch.tensor([[4, 4], [2, 2]])), to(torch.tensor([0, 16])),
            to(random(1, 3, 2, 2, 2, 2).sigmoid()), to(random(1, 3, 2, 2, 2).softmax(-1)), 64,
        )
    ),
}  # fmt: skip


def tensors(found: Any) -> Sequence[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [t for t in found if isinstance(t, Tensor)] if isinstance(found, list | tuple) else []


@pytest.mark.parametrize("name", CALLS)
def test_results_and_gradients_are_the_cpus(name: str) -> None:
    ensure_operators()
    expected = CALLS[name](lambda x: x)
    with pretended_gpu():
        found = CALLS[name](lambda x: x.to("cuda"))
        for x, y in zip(tensors(found), tensors(expected), strict=True):
            assert isinstance(x, OnGpu)
            torch.testing.assert_close(x.values, y)
            if x.requires_grad:
                x.sum().backward()
