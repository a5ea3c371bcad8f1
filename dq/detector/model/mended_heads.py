"""Fixes for three bugs in mmdet 2.28's heads, applied before a detector is built.

Without the fixes, each bug ends in a raw error, even on a CPU or with an untrained network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F  # noqa: N812
from mmdet.models.dense_heads import RepPointsHead, solo_head, solov2_head
from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from torch import Tensor

_paste = fcn_mask_head._do_paste_mask


def fix_heads() -> None:
    """Make mmdet's heads run on the device of their inputs, and accept empty and outside boxes."""
    RepPointsHead.get_points = _points_on_device
    fcn_mask_head._do_paste_mask = _paste_outside_too
    for module in (solo_head, solov2_head):
        module.F = _Functions()


def _points_on_device(
    head: Any,
    featmap_sizes: Sequence[tuple[int, int]],
    img_metas: Sequence[Mapping[str, Any]],
    device: Any,
) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """Return points and flags as RepPointsHead.get_points does, but not always on CUDA."""
    generator = head.prior_generator
    points = generator.grid_priors(featmap_sizes, device=device, with_stride=True)
    return (
        [[level.clone() for level in points] for _ in img_metas],
        [generator.valid_flags(featmap_sizes, meta["pad_shape"], device) for meta in img_metas],
    )


def _paste_outside_too(
    masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True
) -> Any:
    """Paste masks as mmdet does, but into the whole image if no box overlaps it.

    mmdet pastes into the smallest part of the image that all boxes need. If no box overlaps the
    image, that part would end before it starts.
    """
    if skip_empty:
        start = boxes[:, :2].min(0).values.floor() - 1
        end = boxes[:, 2:].max(0).values.ceil() + 1
        skip_empty = bool((end > 0).all() and start[0] < img_w and start[1] < img_h)
    return _paste(masks, boxes, img_h, img_w, skip_empty)


class _Functions:
    """torch.nn.functional with an ``interpolate`` that also accepts zero channels."""

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)

    @staticmethod
    def interpolate(input: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """Return ``input`` resized; zero masks stay zero masks."""
        if input.dim() == 4 and input.shape[1] == 0:
            one = input.new_zeros(input.shape[0], 1, *input.shape[2:])
            return F.interpolate(one, *arguments, **options)[:, :0]
        return F.interpolate(input, *arguments, **options)
