"""Build a detector from a config and load its weights."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from mmcv import Config
from mmdet.models import build_detector
from mmdet.utils import rfnext_init_model
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.config.known_types import check_model_types
from dq.detector.config.registry_errors import explain
from dq.detector.model import float_weights
from dq.detector.model.mended_heads import fix_heads
from dq.detector.model.operators.ensure import ensure_operators, require_operators
from dq.quant.graph.quantized_graph import CONTAINER


def build_model(config: Config, classes: tuple[str, ...], *, initialise: bool) -> nn.Module:
    """Return the config's detector on the CPU.

    Args:
        config: The whole config.
        classes: The data set's class names; kept as ``detector.CLASSES``.
        initialise: Draw or load initial weights as the config says. False keeps those of the
            constructors, which a checkpoint will overwrite.

    Raises:
        ValueError: A type or argument does not exist, an operator of mmcv is missing, the number
            of classes differs from the data's, or pretrained weights cannot be loaded.
    """
    fix_heads()
    ensure_operators()
    check_model_types(config.model)
    try:
        # Some heads write tensors into their config.
        detector = build_detector(
            copy.deepcopy(config.model),
            train_cfg=config.get("train_cfg"),
            test_cfg=config.get("test_cfg"),
        )
    except Exception as error:  # constructors, including the user's own, may raise anything
        raise ValueError(f"model cannot be built: {explain(error)}") from error
    require_operators(detector)
    _fix_receptive_fields(detector, config)
    check_num_classes(detector, classes)
    if initialise:
        float_weights.initialise(detector)
    detector.CLASSES = classes
    assert isinstance(detector, nn.Module)
    return detector


def _fix_receptive_fields(detector: nn.Module, config: Config) -> None:
    """Set the dilations of convolutions as an ``RFSearchHook`` in ``custom_hooks`` says.

    Raises:
        ValueError: Its mode is ``search``, or its file cannot be read.
    """
    hooks = [h for h in config.get("custom_hooks") or [] if isinstance(h, Mapping)]
    searches = [hook for hook in hooks if hook.get("type") == "RFSearchHook"]
    if not searches:
        return
    if searches[0].get("mode", "search") == "search":
        raise ValueError(
            "custom_hooks: RFSearchHook(mode='search') changes the network during training, which"
            " a traced graph cannot follow; search with mmdet, then use the result: mode="
            "'fixed_single_branch', rfstructure_file=FILE"
        )
    try:
        # The hook records in its config that it has run.
        rfnext_init_model(detector, copy.deepcopy(config))
    except Exception as error:  # the file may contain anything
        raise ValueError(f"custom_hooks: RFSearchHook: {explain(error)}") from error


def check_num_classes(detector: nn.Module, classes: tuple[str, ...]) -> None:
    """Raise ValueError if a head expects another number of classes than the data has."""
    from mmdet.models.dense_heads import GARPNHead, RPNHead
    from mmdet.models.roi_heads.mask_heads import FusedSemanticHead
    from mmdet.models.seg_heads.base_semantic_head import BaseSemanticHead

    # Proposals have one class; semantic segmentation heads have stuff classes besides the things.
    others = (RPNHead, GARPNHead, FusedSemanticHead, BaseSemanticHead)

    for name, module in detector.named_modules():
        expected = getattr(module, "num_classes", None)
        if not isinstance(expected, int) or isinstance(module, others):
            continue
        if "head" not in name.rsplit(".", 1)[-1] and not name.endswith("bbox_head"):
            continue
        if expected != len(classes):
            raise ValueError(
                f"model.{name}.num_classes is {expected} but the data has"
                f" {counted(len(classes), 'class[es]')}"
                f" ({', '.join(classes[:4])}{', ...' if len(classes) > 4 else ''})"
            )


def float_state(content: Mapping[str, Any], source: str) -> dict[str, Tensor]:
    """Return the weights in a checkpoint, with the float detector's own keys.

    Args:
        content: The loaded file: mmdet's ``{"state_dict": ...}`` or a bare state dict.
        source: The file's name, for messages.

    Raises:
        ValueError: It contains no weights.
    """
    state = content.get("state_dict", content.get("model", content))
    if not isinstance(state, Mapping) or not any(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{source} holds no weights: neither 'state_dict' nor tensors")
    return {
        re.sub(r"^module\.", "", key): value
        for key, value in state.items()
        if isinstance(value, Tensor) and not key.startswith(("ema_", f"{CONTAINER}."))
    }


def load_float_state(detector: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a float or prepared detector; quantizer state does not change.

    Raises:
        ValueError: A key is missing or unexpected, or a shape differs: the checkpoint of another
            model. The message names the first of each; nothing is loaded.
    """
    own = {k: v for k, v in detector.state_dict().items() if not k.startswith(f"{CONTAINER}.")}
    own = {k: v for k, v in own.items() if not k.startswith("ema_")}
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    shapes = [
        f"{k} {tuple(v.shape)} instead of {tuple(own[k].shape)}"
        for k, v in state.items()
        if k in own and own[k].shape != v.shape
    ]
    if missing or unexpected or shapes:
        parts = [
            f"{len(found)} {what} ({', '.join(found[:3])}{', ...' if len(found) > 3 else ''})"
            for what, found in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", shapes),
            )
            if found
        ]
        raise ValueError(
            f"{source} is the checkpoint of another model: {'; '.join(parts)}; use the config it"
            " was trained with"
        )
    detector.load_state_dict(dict(state), strict=False)
