"""Make a config of mmdet small enough for a trial: narrow networks, few boxes, few images.

The detector, heads, losses, assigners, hooks, optimizer and test pipeline steps of the family stay.
Widths, image sizes, and the numbers of queries and proposals shrink.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmcv import Config
from mmdet.models.builder import MODELS
from mmdet.utils import compat_cfg, replace_cfg_vals

from dq.data.tiny_coco import CLASSES
from dq.detector.config.config_file import load_config_file
from dq.detector.config.nested_sections import dicts_in, from_outside_in, innermost

# Side of the square images, in pixels.
SIDE = 128
# Larger images, for pyramids whose last level would be empty and for deformable kernels.
SIDES = {"ddod": 384, "ssd": 160, "vfnet": 384, "wider_face": 300}
# Families that keep their widths, because the code derives some of them from others.
WIDE = frozenset({"detectors", "ssd", "tridentnet", "wider_face"})
# Families that keep the widths of their heads, for the same reason.
WIDE_HEADS = frozenset(
    {"deformable_detr", "detr", "mask2former", "maskformer", "queryinst", "sparse_rcnn"}
)
NARROWER = 8
_WIDTHS = {
    "in_channel", "in_channels", "out_channels", "feat_channel", "feat_channels", "inter_channels",
    "fc_out_channels", "conv_out_channels", "inner_channels", "embed_dims", "feedforward_channels",
    "channels", "num_feats", "point_feat_channels", "fc_channels", "stage_channels",
    "num_deconv_filters", "con_conv_out_channels", "conv_upsample_out_channels",
    "out_conv_channels",
}  # fmt: skip
# Smaller widths do not change.
_WIDE_FROM = 128
_COUNTS = {
    "stacked_convs": 1, "num_convs": 1, "num_shared_convs": 1, "num_blocks": 1,
    "num_query": 20, "num_queries": 20, "num_proposals": 20,
    "nms_pre": 100, "nms_post": 50, "max_num": 50, "max_per_img": 50, "max_per_image": 20,
}  # fmt: skip
_SAMPLED = 32
_LAYERS = 2
# Low enough for a network to have detections after two batches.
_SCORE = 1e-5
_STEPS = 2
STOP_HOOK = {"type": "StopOnceHook", "priority": "LOWEST"}


def tiny_config(path: Path, data: Path) -> str:
    """Return the text of a small version of the config in ``path``.

    Args:
        path: A config of mmdet; its folder is the family's name.
        data: Folder from `dq.data.tiny_coco.write_tiny_coco`.
    """
    family = path.parent.name
    side = SIDES.get(family, SIDE)
    config = load_config_file(path)
    config = compat_cfg(replace_cfg_vals(config))
    model = config.model.to_dict()
    remove_pretrained(model)
    use_plain_norms(model)
    _use_teacher_of(path, model)
    if family not in WIDE:
        _narrow(model, heads=family not in WIDE_HEADS)
    _use_batch_statistics(model)
    _reduce_counts(model)
    _use_classes(model)
    if "panoptic_on" in (model.get("test_cfg") or {}):
        model["test_cfg"].update(panoptic_on=False, semantic_on=False, instance_on=True)
    hooks = _plain(config.get("custom_hooks") or [])
    content: dict[str, Any] = {
        "model": model,
        "data": _data(config, data, side),
        "optimizer": _plain(config.optimizer),
        "optimizer_config": _plain(config.get("optimizer_config") or {}),
        "lr_config": _plain(config.get("lr_config")),
        "runner": {"type": config.runner.type, **_length(config)},
        "evaluation": {"metric": _metrics(config), "interval": 1000},
        "checkpoint_config": {"interval": 1000},
        "log_config": {"interval": 1, "hooks": [{"type": "TextLoggerHook"}]},
        "custom_hooks": hooks,
        "load_from": None,
        "resume_from": None,
        "workflow": [("train", 1)],
        "quant": {
            "schedule": {"calibration_batches": 1, "calibration_batch_size": 4},
            "training": {"custom_hooks": [*hooks, STOP_HOOK]},
        },
    }
    content["optimizer"]["lr"] = min(1e-4, content["optimizer"]["lr"])
    for name in ("momentum_config", "find_unused_parameters", "fp16"):
        if config.get(name):
            content[name] = _plain(config[name])
    imports = list((config.get("custom_imports") or {}).get("imports", ()))
    content["custom_imports"] = {
        "imports": [*imports, "dq.detector.survey.stop_hook"],
        "allow_failed_imports": False,
    }
    origin = f"# {family}/{path.name} of mmdet, made small by `launcher coverage`.\n"
    return origin + "".join(f"{name} = {value!r}\n" for name, value in content.items())


def _length(config: Config) -> dict[str, int]:
    by_epoch = "Epoch" in config.runner.type
    return {"max_epochs": 1} if by_epoch else {"max_iters": _STEPS}


def _plain(value: Any) -> Any:
    """Return a section of a config as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


# -- the model


def remove_pretrained(section: Any) -> None:
    """Remove pretrained weights from a model's config, in place."""
    for part in dicts_in(section):
        for key, value in part.items():
            holds = key == "init_cfg" and isinstance(value, dict) and "checkpoint" in value
            if key in {"pretrained", "teacher_ckpt"} or holds:
                part[key] = None


def use_plain_norms(section: Any) -> None:
    """Use plain batch norms in a model's config, because SyncBN needs a process group."""
    for part in dicts_in(section):
        if part.get("type") in {"SyncBN", "MMSyncBN"}:
            part["type"] = "BN"


def _use_teacher_of(path: Path, model: dict[str, Any]) -> None:
    if "teacher_config" in model:
        # Distillation gives the path of the teacher's config from the parent of the configs folder.
        model["teacher_config"] = str(path.parents[2] / model["teacher_config"])


def _narrow(model: dict[str, Any], *, heads: bool) -> None:
    """Divide widths by `NARROWER`, in the heads too if requested, if the code allows it."""
    for prefix in ("", "teacher_"):
        backbone, neck = model.get(f"{prefix}backbone"), model.get(f"{prefix}neck")
        if not backbone:
            continue
        narrowed = _narrow_backbone(backbone)
        first = neck[0] if isinstance(neck, list) else neck
        own = first and first["in_channels"] if first and "in_channels" in first else None
        if heads:
            _divide(neck)
        if own is not None and first is not None:
            first["in_channels"] = _divided(own, least=1) if narrowed else own
        elif narrowed and not heads and first is None:
            reader = model.get("bbox_head") or model["panoptic_head"]
            reader["in_channels"] = _divided(reader["in_channels"], least=1)
    if heads:
        _divide({key: value for key, value in model.items() if not key.endswith(("bone", "neck"))})


def _narrow_backbone(backbone: dict[str, Any]) -> bool:
    """Make a backbone narrow, and shallow if possible; return whether its widths are divided."""
    kind = backbone["type"]
    for name in ("depths", "num_layers", "stage_blocks"):
        if isinstance(backbone.get(name), list | tuple):
            backbone[name] = [1] * len(backbone[name])
    if kind == "HRNet":
        for stage in backbone["extra"].values():
            stage.update(num_modules=1, num_blocks=(1,) * stage["num_branches"])
    if kind == "HourglassNet":
        backbone["stage_channels"] = _divided(backbone["stage_channels"])
        backbone["feat_channel"] = _divided(backbone.get("feat_channel", 256))
        return True
    if kind == "Res2Net":
        backbone["depth"] = 50
    if kind != "ResNet":
        return False
    if backbone["depth"] < 50 or any(backbone.get(key) for key in ("dcn", "plugins")):
        backbone.update(base_channels=8, stem_channels=8)
    else:
        # Basic blocks have 32 to 256 channels, an eighth of those of bottlenecks.
        backbone.update(depth=18, base_channels=32, stem_channels=32)
    return True


def _divide(section: Any) -> None:
    """Divide widths inside the section, in place."""
    for part in dicts_in(section):
        for key, value in part.items():
            if key in _WIDTHS:
                part[key] = _divided(value, least=8 if key == "point_feat_channels" else _WIDE_FROM)
        norm = part.get("norm_cfg", _default(str(part.get("type")), "norm_cfg"))
        if isinstance(norm, Mapping) and norm.get("type") == "GN":
            # A group of one channel cannot be normalized at a level of one pixel.
            part["norm_cfg"] = {**norm, "num_groups": max(1, norm["num_groups"] // NARROWER)}


def _default(kind: str, name: str) -> Any:
    """Return the default of a module's argument, None if it has none."""
    # A name with a dot belongs to another package, which may be missing.
    known = None if "." in kind else MODELS.get(kind)
    for own in getattr(known, "__mro__", ()):
        parameters = inspect.signature(own.__init__).parameters
        if name in parameters:
            return parameters[name].default
    return None


def _use_batch_statistics(model: dict[str, Any]) -> None:
    """Let batch norms use their batch statistics, because they are not trained."""
    for part in dicts_in(model):
        kind = str(part.get("type"))
        if "norm_eval" in part or _default(kind, "norm_eval"):
            part["norm_eval"] = False
        if part.get("frozen_stages", -1) >= 0:
            part["frozen_stages"] = 0 if kind == "EfficientNet" else -1
        norm = part.get("norm_cfg", _default(kind, "norm_cfg"))
        if isinstance(norm, Mapping) and norm.get("type") == "BN":
            # Otherwise running statistics would hardly differ from their initial values after two
            # batches.
            part["norm_cfg"] = {**norm, "momentum": 0.9, "eps": norm.get("eps") or 1e-5}


def _divided(value: Any, least: int = _WIDE_FROM) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_divided(item, least) for item in value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= least:
        return value // NARROWER
    return value


def _reduce_counts(model: dict[str, Any]) -> None:
    """Reduce the numbers of queries, proposals, samples and transformer layers."""
    for part in dicts_in(model):
        for key, most in _COUNTS.items():
            value = part.get(key)
            if isinstance(value, int) and value > most:
                part[key] = most
        if "Sampler" in str(part.get("type")) and isinstance(part.get("num"), int):
            part["num"] = min(part["num"], _SAMPLED)
        if "transformerlayers" in part and isinstance(part.get("num_layers"), int):
            part["num_layers"] = min(part["num_layers"], _LAYERS)
        if "stack_times" in part:
            # As many as the longest skip connection needs.
            part.update(stack_times=4, paths=list(part["paths"])[:4])
        if "Sparse" in str(part.get("type")) and "num_stages" in part:
            _leave_out_stages([part, model["train_cfg"]], part["num_stages"])
            part["num_stages"] = _LAYERS
        if isinstance(part.get("score_thr"), float):
            part["score_thr"] = _SCORE


def _leave_out_stages(sections: Any, number: int) -> None:
    """Shorten lists that have one entry for each of this number of stages."""
    for part in dicts_in(sections):
        for key, value in part.items():
            if isinstance(value, list) and len(value) == number:
                part[key] = value[:_LAYERS]


def _use_classes(model: dict[str, Any]) -> None:
    """Set the number of classes of heads and losses to that of the tiny data set."""
    number = len(CLASSES)
    for part in dicts_in(model):
        kind = str(part.get("type"))
        if "num_things_classes" in part:
            # A panoptic FPN predicts stuff; here, queries predict only things.
            stuff = min(1, part["num_stuff_classes"]) if "FPN" in kind else 0
            part.update(num_things_classes=number, num_stuff_classes=stuff)
        count = part.get("num_classes")
        # Semantic segmentation has its own classes, region proposals have one.
        if isinstance(count, int) and not any(word in kind for word in ("RPN", "Semantic")):
            part["num_classes"] = number
        weights = part.get("class_weight")
        if isinstance(weights, list):
            part["class_weight"] = [1.0] * number + [weights[-1]]


# -- the data


def _data(config: Config, data: Path, side: int) -> dict[str, Any]:
    wrappers = list(from_outside_in(config.data.train))
    mixes = [each for each in wrappers if each.get("type") == "MultiImageMixDataset"]
    train = (mixes or wrappers[-1:])[0]
    steps = list(dicts_in(_plain(train)))
    found = [step for step in steps if step.get("type") == "Collect"]
    keys = list(found[0]["keys"]) if found else ["img", "gt_bboxes", "gt_labels"]
    proposals = "proposals" in keys
    norm = next((s for s in steps if s.get("type") == "Normalize"), None)
    if mixes:
        own = _scaled(_plain(train.pipeline), side)
        inner = _split(data, "train", _loading(keys, [])[:2], proposals)
        training = {"type": "MultiImageMixDataset", "dataset": inner, "pipeline": own}
    else:
        end = _formatting(keys, norm, side, steps)
        training = _split(data, "train", _loading(keys, end), proposals)
    test = next(innermost(config.data.test))
    testing = _split(data, "test", _scaled(_plain(test.pipeline), side), proposals)
    return {
        "samples_per_gpu": 2,
        "workers_per_gpu": 0,
        "train": training,
        "val": testing,
        "test": testing,
    }


def _split(
    data: Path, split: str, pipeline: list[dict[str, Any]], proposals: bool
) -> dict[str, Any]:
    section: dict[str, Any] = {
        "type": "CocoDataset",
        "classes": CLASSES,
        "ann_file": str(data / f"{split}.json"),
        "img_prefix": str(data / "images"),
        "seg_prefix": str(data / "maps"),
        "pipeline": pipeline,
    }
    if proposals:
        section["proposal_file"] = str(data / f"{split}_proposals.pkl")
    return section


def _loading(keys: list[str], end: list[dict[str, Any]]) -> list[dict[str, Any]]:
    annotations = {
        "type": "LoadAnnotations",
        "with_bbox": True,
        "with_mask": "gt_masks" in keys,
        "with_seg": "gt_semantic_seg" in keys,
    }
    first: list[dict[str, Any]] = [{"type": "LoadImageFromFile"}, annotations]
    if "proposals" in keys:
        first.append({"type": "LoadProposals", "num_max_proposals": 100})
    return first + end


def _formatting(
    keys: list[str], norm: dict[str, Any] | None, side: int, steps: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    shrunk = [step for step in steps if step.get("type") == "SegRescale"]
    return [
        {"type": "Resize", "img_scale": (side, side), "keep_ratio": False},
        {"type": "RandomFlip", "flip_ratio": 0.5},
        *([norm] if norm else []),
        {"type": "Pad", "size_divisor": 32},
        *shrunk,
        {"type": "DefaultFormatBundle"},
        {"type": "Collect", "keys": keys},
    ]


# How to change a pipeline setting for another image size.
_SCALED: dict[str, Callable[[int], Any]] = {
    "img_scale": lambda side: (side, side),
    "scale_factor": lambda side: None,
    "border": lambda side: (-side // 2, -side // 2),
    "crop_size": lambda side: (side, side),
    "size": lambda side: (side, side),
}


def _scaled(pipeline: list[dict[str, Any]], side: int) -> list[dict[str, Any]]:
    """Return a pipeline with its image sizes changed to ``side``."""
    for step in dicts_in(pipeline):
        for key, make in _SCALED.items():
            if step.get(key) is not None and "type" in step:
                step[key] = make(side)
        if step.get("type") == "MultiScaleFlipAug":
            step.update(img_scale=(side, side), flip=False)
            step.pop("scale_factor", None)
    return pipeline


def _metrics(config: Config) -> Any:
    found = (config.get("evaluation") or {}).get("metric") or "bbox"
    known = [m for m in ([found] if isinstance(found, str) else found) if m in _KNOWN]
    masks = "PQ" in found
    return known or (["bbox", "segm"] if masks else ["bbox"])


_KNOWN = ("bbox", "segm", "proposal_fast")
