"""Decide which of mmcv's operators are replaced on which device."""

from __future__ import annotations

import functools
import logging

import torch
from mmcv.ops import get_compiling_cuda_version
from mmcv.ops.carafe import CARAFEFunction, CARAFENaiveFunction
from mmcv.ops.deform_conv import DeformConv2dFunction
from mmcv.ops.deform_roi_pool import DeformRoIPool, DeformRoIPoolFunction
from mmcv.ops.focal_loss import (
    SigmoidFocalLossFunction,
    SoftmaxFocalLoss,
    SoftmaxFocalLossFunction,
)
from mmcv.ops.masked_conv import MaskedConv2dFunction
from mmcv.ops.modulated_deform_conv import ModulatedDeformConv2dFunction
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmcv.ops.roi_align import RoIAlign, RoIAlignFunction
from mmcv.ops.roi_pool import RoIPool, RoIPoolFunction
from torch import Tensor, nn
from torch.autograd import Function

from dq.detector.model.operators import composed
from dq.detector.model.operators.nms import use_torchvision_nms
from dq.detector.model.operators.replace import Composed, replace_

log = logging.getLogger(__name__)

# mmcv has compiled these for the CPU.
ON_CPU: dict[type[Function], Composed] = {
    RoIAlignFunction: composed.roi_align,
    DeformConv2dFunction: composed.deform_conv2d,
    ModulatedDeformConv2dFunction: composed.modulated_deform_conv2d,
}
# These have a kernel for CUDA only.
ON_CUDA_ALONE: dict[type[Function], Composed] = {
    SigmoidFocalLossFunction: composed.sigmoid_focal_loss,
    CARAFEFunction: composed.carafe,
    CARAFENaiveFunction: composed.carafe,
    MaskedConv2dFunction: composed.masked_conv2d,
    MultiScaleDeformableAttnFunction: composed.multi_scale_deformable_attention,
}
# Of mmdet's own configs only two with deformable pooling (``dcn/*dpool*``) use one of these.
WITHOUT_COMPOSITION: dict[type[Function], str] = {
    RoIPoolFunction: "RoIPool; use RoIAlign",
    DeformRoIPoolFunction: "DeformRoIPool; use RoIAlign",
    SoftmaxFocalLossFunction: "softmax_focal_loss; use FocalLoss(use_sigmoid=True)",
}
# The modules that call them.
CALLERS: dict[type[nn.Module], str] = {
    RoIPool: WITHOUT_COMPOSITION[RoIPoolFunction],
    DeformRoIPool: WITHOUT_COMPOSITION[DeformRoIPoolFunction],
    SoftmaxFocalLoss: WITHOUT_COMPOSITION[SoftmaxFocalLossFunction],
}


@functools.cache
def ensure_operators() -> None:
    """Make mmcv's operators work on CPU and GPU, regardless of how mmcv-full was compiled.

    Operators without a kernel for a device are composed of torch's and torchvision's. Those without
    a composition raise an error with their name. Done once per process.
    """
    with_cuda = get_compiling_cuda_version() != "not available"
    if not with_cuda:
        use_torchvision_nms()
        if torch.cuda.is_available():
            log.info(
                "mmcv-full has no CUDA operators: torchvision's and torch's replace them"
                " (docs/gpu.md)"
            )

    def without_cpu_kernel(device: torch.device) -> bool:
        return device.type == "cpu" or not with_cuda

    def without_cuda_kernel(device: torch.device) -> bool:
        return device.type != "cpu" and not with_cuda

    for function, composition in ON_CPU.items():
        replace_(function, composition, without_cuda_kernel)
    for function, composition in ON_CUDA_ALONE.items():
        replace_(function, composition, without_cpu_kernel)
    for function, name in WITHOUT_COMPOSITION.items():
        replace_(function, _refusing(name), without_cpu_kernel)


def require_operators(detector: nn.Module) -> None:
    """Raise ValueError if a module of the detector calls an operator that no device here has.

    So a run ends before its data are read, and not at the first step that calls the operator. If
    mmcv has CUDA operators, the device decides, so such a module is refused only when it is called.
    """
    if get_compiling_cuda_version() != "not available":
        return
    for path, module in detector.named_modules():
        found = next((name for kind, name in CALLERS.items() if isinstance(module, kind)), None)
        if isinstance(module, RoIAlign) and module.pool_mode == "max":
            found = "RoIAlign with pool_mode='max'; use pool_mode='avg'"
        if found:
            raise ValueError(f"{path}: {_missing(found)}")


def _missing(name: str) -> str:
    return (
        f"this mmcv-full has no operator for {name}, or compile mmcv-full with CUDA (docs/gpu.md)"
    )


def _refusing(name: str) -> Composed:
    def refuse(*_: object) -> Tensor:
        raise ValueError(_missing(name))

    return refuse
