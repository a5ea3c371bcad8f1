"""mmcv's operators on a GPU for which mmcv was not compiled: they run there, as on the CPU."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from mmcv import ops
from torch import Tensor, nn

from dq.detector.model.operators.ensure import ensure_operators, require_operators
from tests.devices.pretended_gpu import OnGpu, pretended_gpu

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


# What mmdet imports from mmcv.ops: the call above that tries it, or why none does.
IMPORTED = {
    "batched_nms": "batched_nms",
    "nms": "nms",
    "nms_match": "nms_match",
    "roi_align": "roi_align",
    "deform_conv2d": "deform_conv2d",
    "DeformConv2d": "deform_conv2d",
    "ModulatedDeformConv2d": "modulated_deform_conv2d",
    "sigmoid_focal_loss": "sigmoid_focal_loss",
    "CARAFEPack": "carafe",
    "MaskedConv2d": "masked_conv",
    "point_sample": "point_sample",
    "rel_roi_point_to_rel_img_point": "point_sample",
    "CornerPool": "corner_pool",
    "MultiScaleDeformableAttention": "deformable_attention",
    "RoIPool": "only asked for its type; refused by name",
    "get_onnxruntime_op_path": "a path",
    "ConcatCell": "torch's operators",
    "GlobalPoolingCell": "torch's operators",
    "SumCell": "torch's operators",
}


def test_every_operator_that_mmdet_imports_is_in_the_list() -> None:
    import mmdet

    names = set()
    for path in Path(mmdet.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("mmcv.ops"):
                names |= {alias.name for alias in node.names}
    assert names == IMPORTED.keys()


@pytest.mark.parametrize(
    ("module", "words"),
    [
        (ops.RoIPool(3), "RoIPool; use RoIAlign"),
        (ops.ModulatedDeformRoIPoolPack(3, 4), "DeformRoIPool; use RoIAlign"),
        (ops.SoftmaxFocalLoss(2.0, 0.25), "softmax_focal_loss; use FocalLoss"),
        (ops.RoIAlign(3, pool_mode="max"), "RoIAlign with pool_mode='max'; use"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_an_operator_that_is_nowhere_is_refused_at_start(module: nn.Module, words: str) -> None:
    require_operators(nn.Sequential(ops.RoIAlign(3), nn.Linear(1, 1)))
    with pytest.raises(ValueError, match=rf"^1: this mmcv-full has no operator for {words}"):
        require_operators(nn.Sequential(nn.Linear(1, 1), module))
