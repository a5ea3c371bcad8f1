"""mmcv operators of detectors, composed of torch's and torchvision's operators.

Each function has the arguments and the result of the operator's own ``apply``; autograd computes
the gradients. Up to rounding, results are equal to mmcv's compiled operator for the CPU. If there
is none, they are equal to mmdet's or mmcv's own Python version.
"""

from __future__ import annotations

import torch
from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
from torch import Tensor
from torch.nn import functional
from torch.nn.modules.utils import _pair
from torchvision.ops import deform_conv2d as torchvision_deform_conv2d
from torchvision.ops import roi_align as torchvision_roi_align

Pair = int | tuple[int, int]


def roi_align(
    input: Tensor,
    rois: Tensor,
    output_size: Pair,
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    pool_mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Return features ``(R, C, h, w)`` of boxes ``(R, 5)`` (image index, corners in pixels).

    Raises:
        ValueError: ``pool_mode`` is "max", which torchvision's operator does not support.
    """
    if pool_mode != "avg":
        raise ValueError(
            "RoIAlign with pool_mode='max' has no operator for this device; use pool_mode='avg'"
            " or compile mmcv-full with CUDA (see docs/gpu.md)"
        )
    aligned_rois: Tensor = torchvision_roi_align(
        input, rois.type_as(input), _pair(output_size), spatial_scale, sampling_ratio, aligned
    )
    return aligned_rois


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Return the focal loss of logits ``(N, classes)`` for class indices ``(N,)``.

    The index ``classes`` is the background. As mmdet does on a CPU, it uses the logarithm of the
    sigmoid, which stays exact for large logits. Source: arXiv 1708.02002, equation 5.
    """
    num_classes = input.shape[1]
    positive = target.unsqueeze(1) == torch.arange(num_classes, device=input.device)
    probability = input.sigmoid()
    missed = torch.where(positive, 1 - probability, probability)
    share = torch.where(positive, alpha, 1 - alpha)
    loss = functional.binary_cross_entropy_with_logits(
        input, positive.to(input.dtype), reduction="none"
    )
    loss = loss * share * missed.pow(gamma)
    if weight is not None and weight.numel():
        # The background, which has no weight, counts once.
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target].unsqueeze(1)
    if reduction == "mean":
        return loss.sum() / input.shape[0]
    return loss.sum() if reduction == "sum" else loss


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Return a convolution whose kernel taps are shifted by ``offset``; arXiv 1703.06211.

    Groups follow from the shapes of ``weight`` and ``offset``; ``im2col_step`` has no effect.
    """
    return _deformed((input, offset, weight, None, None), (stride, padding, dilation))


def modulated_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    deform_groups: int = 1,
) -> Tensor:
    """Return a convolution whose kernel taps are shifted and weighted; arXiv 1811.11168."""
    return _deformed((input, offset, weight, bias, mask), (stride, padding, dilation))


def _deformed(
    tensors: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None],
    settings: tuple[Pair, Pair, Pair],
) -> Tensor:
    """Return torchvision's deformable convolution of input, offset, weight, bias and mask.

    All use the dtype of the offset, as in mmcv, because autocast changes only that one.
    """
    input, offset, weight, bias, mask = tensors
    _check_offset(input, offset, weight, *settings)
    input, weight = input.type_as(offset), weight.type_as(offset)
    bias, mask = (None if x is None else x.type_as(offset) for x in (bias, mask))
    pairs = [_pair(setting) for setting in settings]
    output: Tensor = torchvision_deform_conv2d(input, offset, weight, bias, *pairs, mask)
    return output


def _check_offset(
    input: Tensor, offset: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair
) -> None:
    """Raise ValueError unless there is one offset for each output.

    mmcv's compiled operator takes offsets of another size too, and reads them as if they had the
    right one (mmdet's DyHead relies on it). The operators of torchvision and ONNX cannot.
    """
    sizes = zip(
        input.shape[2:], weight.shape[2:], _pair(stride), _pair(padding), _pair(dilation),
        strict=True,
    )  # fmt: skip
    wanted = tuple(
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, kernel, step, pad, spread in sizes
    )
    if tuple(offset.shape[2:]) != wanted:
        raise ValueError(
            f"a deformable convolution has offsets of size {tuple(offset.shape[2:])} for outputs of"
            f" size {wanted}, which only mmcv's compiled operator computes; give the layer offsets"
            " of its own size, or leave it out"
        )


def carafe(
    features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> Tensor:
    """Return features upsampled with weights for each position; arXiv 1905.02188, equation 3.

    Args:
        features: ``(N, C, H, W)``.
        masks: ``(N, groups * kernel_size ** 2, H * scale_factor, W * scale_factor)``.
        kernel_size: Side of the window; each output is a weighted sum over one window.
        group_size: Number of groups of channels; each has its own weights.
        scale_factor: Upsampling factor.
    """
    num, channels, height, width = features.shape
    reach = kernel_size // 2
    padded = functional.pad(features, [reach] * 4)
    padded = padded.view(num, group_size, channels // group_size, *padded.shape[2:])
    # Groups, taps, then each input position with the outputs around it.
    weights = masks.view(num, group_size, kernel_size**2, height, scale_factor, width, scale_factor)
    output: Tensor | None = None
    for tap in range(kernel_size**2):
        y, x = divmod(tap, kernel_size)
        moved = padded[..., y : y + height, x : x + width]
        part = moved[..., None, :, None] * weights[:, :, tap].unsqueeze(2)
        output = part if output is None else output + part
    assert output is not None
    return output.reshape(num, channels, height * scale_factor, width * scale_factor)


@torch.no_grad()
def masked_conv2d(
    features: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    padding: Pair = 0,
    stride: Pair = 1,
) -> Tensor:
    """Return a convolution of one image; it is zero where ``mask`` ``(1, H, W)`` is not positive.

    Without gradients, as mmcv's operator.
    """
    output = functional.conv2d(features, weight, bias, _pair(stride), _pair(padding))
    return output * (mask > 0).unsqueeze(1).to(output.dtype)


def multi_scale_deformable_attention(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the weighted sum of sampled values by mmcv's Python version; arXiv 2010.04159."""
    output: Tensor = multi_scale_deformable_attn_pytorch(
        value,
        value_spatial_shapes,
        sampling_locations.type_as(value),
        attention_weights.type_as(value),
    )
    return output
