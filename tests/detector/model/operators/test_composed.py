"""Compositions equal mmcv's compiled operators for the CPU if there are any, or plain loops."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from mmcv.ops import roi_align
from mmcv.ops.deform_conv import deform_conv2d
from mmcv.ops.modulated_deform_conv import modulated_deform_conv2d
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from torch import Tensor

from dq.detector.model.operators import composed
from dq.detector.model.operators.ensure import ensure_operators
from dq.detector.model.operators.replace import replace_


@pytest.fixture(autouse=True, scope="module")
def _replaced() -> None:
    ensure_operators()


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _boxes(number: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(number, 2, generator=generator) * 70 - 6
    sides = torch.rand(number, 2, generator=generator) * 40
    image = torch.randint(0, 2, (number, 1), generator=generator).float()
    return torch.cat([image, corners, corners + sides], 1)


def _same_with_gradients(
    compiled: Callable[..., Tensor], composition: Callable[..., Tensor], *args: Any
) -> None:
    results = []
    for function in (compiled, composition):
        given = [a.clone().requires_grad_() if isinstance(a, Tensor) else a for a in args]
        output = function(*given)
        output.backward(_random(*output.shape, seed=9))
        results.append([output, *(a.grad for a in given if isinstance(a, Tensor))])
    for one, other in zip(*results, strict=True):
        if one is not None:
            torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [True, False])
def test_roi_align(sampling_ratio: int, aligned: bool) -> None:
    rois = _boxes(20)
    _same_with_gradients(
        lambda x: roi_align(x, rois, (7, 5), 0.25, sampling_ratio, "avg", aligned),
        lambda x: composed.roi_align(x, rois, (7, 5), 0.25, sampling_ratio, "avg", aligned),
        _random(2, 6, 16, 20),
    )


def test_roi_align_by_the_maximum_is_refused() -> None:
    with pytest.raises(ValueError, match="pool_mode='avg'"):
        composed.roi_align(_random(1, 2, 4, 4), _boxes(1), 2, pool_mode="max")


@pytest.mark.parametrize(("groups", "deform_groups"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_deformable_convolutions(groups: int, deform_groups: int) -> None:
    x, weight = _random(2, 8, 9, 7), _random(6, 8 // groups, 3, 3, seed=1)
    offset = _random(2, 18 * deform_groups, 5, 4, seed=2) * 2
    mask = _random(2, 9 * deform_groups, 5, 4, seed=3).sigmoid()
    settings = (2, 1, 1, groups, deform_groups)
    _same_with_gradients(
        lambda *a: deform_conv2d(*a, *settings),
        lambda *a: composed.deform_conv2d(*a, *settings),
        x,
        offset,
        weight,
    )
    _same_with_gradients(
        lambda *a: modulated_deform_conv2d(*a, *settings),
        lambda *a: composed.modulated_deform_conv2d(*a, *settings),
        x,
        offset,
        mask,
        weight,
        _random(6, seed=4),
    )


def test_focal_loss_is_the_one_that_mmdet_computes_on_a_cpu() -> None:
    target = torch.tensor([0, 1, 2, 3, 3, 1])
    one_hot = torch.nn.functional.one_hot(target, 4)[:, :3]
    _same_with_gradients(
        lambda x: py_sigmoid_focal_loss(x, one_hot, gamma=1.5, alpha=0.3, reduction="none"),
        lambda x: composed.sigmoid_focal_loss(x, target, 1.5, 0.3, None, "none"),
        _random(6, 3) * 5,
    )


def test_focal_loss_weighs_classes_and_reduces() -> None:
    logits, target = _random(5, 3), torch.tensor([0, 1, 2, 3, 1])
    weight = torch.tensor([1.0, 2.0, 3.0])
    plain = composed.sigmoid_focal_loss(logits, target, reduction="none")
    rows = torch.tensor([1.0, 2.0, 3.0, 1.0, 2.0]).unsqueeze(1)
    weighted = composed.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, "none")
    torch.testing.assert_close(weighted, plain * rows)
    total = composed.sigmoid_focal_loss(logits, target, reduction="sum")
    mean = composed.sigmoid_focal_loss(logits, target, reduction="mean")
    torch.testing.assert_close(total, plain.sum())
    torch.testing.assert_close(mean, plain.sum() / 5)


def test_carafe_is_a_weighted_sum_of_each_window() -> None:
    x, masks = _random(2, 4, 3, 5), _random(2, 2 * 9, 6, 10, seed=1)

    def loops(features: Tensor, weights: Tensor) -> Tensor:
        padded = torch.nn.functional.pad(features, [1] * 4)
        rows = []
        for channel in range(4):
            group = channel // 2
            for y in range(6):
                for x in range(10):
                    window = padded[:, channel, y // 2 : y // 2 + 3, x // 2 : x // 2 + 3]
                    taps = weights[:, group * 9 : group * 9 + 9, y, x]
                    rows.append((window.reshape(2, 9) * taps).sum(1))
        return torch.stack(rows, 1).view(2, 4, 6, 10)

    _same_with_gradients(loops, lambda *a: composed.carafe(*a, 3, 2, 2), x, masks)


def test_masked_convolution_is_zero_outside_the_mask() -> None:
    x, weight, bias = _random(1, 2, 5, 6), _random(3, 2, 3, 3, seed=1), _random(3, seed=2)
    mask = _random(1, 5, 6, seed=3)
    found = composed.masked_conv2d(x, mask, weight, bias, 1)
    expected = torch.nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(found, expected.where(mask.unsqueeze(1) > 0, torch.zeros(())))


def test_operators_without_a_kernel_for_the_cpu_work_on_it() -> None:
    from mmcv.ops import CARAFEPack, MaskedConv2d, SigmoidFocalLoss

    torch.manual_seed(0)
    x = _random(1, 8, 4, 4).requires_grad_()
    CARAFEPack(8, 2).forward(x).sum().backward()
    assert x.grad is not None
    assert MaskedConv2d(8, 2, 3, padding=1)(x, torch.ones(1, 4, 4)).shape == (1, 2, 4, 4)
    logits = _random(4, 3).requires_grad_()
    SigmoidFocalLoss(2.0, 0.25)(logits, torch.tensor([0, 3, 1, 2])).backward()
    expected = composed.sigmoid_focal_loss(logits, torch.tensor([0, 3, 1, 2]))
    torch.testing.assert_close(logits.grad, torch.autograd.grad(expected, logits)[0])


def test_an_operator_without_composition_is_refused_by_name() -> None:
    from mmcv.ops import deform_roi_pool, roi_pool, softmax_focal_loss

    with pytest.raises(ValueError, match="for RoIPool; use RoIAlign"):
        roi_pool(_random(1, 2, 4, 4), _boxes(1), 2)
    with pytest.raises(ValueError, match="for DeformRoIPool; use RoIAlign"):
        deform_roi_pool(_random(1, 2, 4, 4), _boxes(1), None, (2, 2))
    with pytest.raises(ValueError, match=r"softmax_focal_loss; use FocalLoss\(use_sigmoid"):
        softmax_focal_loss(_random(4, 3), torch.zeros(4, dtype=torch.long), 2.0, 0.25)


def test_replaced_functions_call_the_compiled_operator_on_other_devices() -> None:
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * 2

    taken = [False]
    replace_(Double, lambda x: x * 5, lambda device: taken[0])
    x = torch.ones(2, requires_grad=True)
    assert torch.autograd.grad(Double.apply(x).sum(), x)[0].tolist() == [2, 2]
    taken[0] = True
    assert torch.autograd.grad(Double.apply(x).sum(), x)[0].tolist() == [5, 5]
    assert Double.apply(x.detach()).tolist() == [5, 5]


def test_offsets_of_another_size_are_refused() -> None:
    x, weight, offset = _random(1, 2, 8, 8), _random(2, 2, 3, 3), _random(1, 18, 16, 16)
    with pytest.raises(ValueError, match=r"size \(16, 16\) for outputs of size \(8, 8\)"):
        composed.deform_conv2d(x, offset, weight, 1, 1)
    with pytest.raises(ValueError, match="mmcv's compiled operator"):
        composed.modulated_deform_conv2d(x, offset, offset[:, :9], weight, None, 1, 1)
