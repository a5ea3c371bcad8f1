"""Try one config of mmdet: build, trace, prepare, one quantized training step, one inference."""

from __future__ import annotations

import contextlib
import logging
import os
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmdet.core import BitmapMasks
from mmdet.models import build_detector
from mmdet.utils import compat_cfg, replace_cfg_vals
from torch import Tensor, nn

from dq.detector.build import explain
from dq.detector.graph import features_of, quantize_detector, summary
from dq.detector.roi_heads import run_roi_heads
from dq.detector.step import parse_losses
from dq.quant.fake_quantize import update_scales_
from dq.quant.phase import Phase, set_phase
from dq.quant.quantized_graph import QuantizedGraph
from dq.quant.recipe import Recipe

OK, PARTLY, REFUSED, CRASHED = "OK", "partly float", "refused", "crashed"
# Sides of the square images, in pixels: the first one on which the float detector runs.
SIDES = (128, 256, 384)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a config.

    Attributes:
        verdict: `OK`, `PARTLY`, `REFUSED` or `CRASHED`.
        what: What stays float, or why it was refused.
        quantizers: How many there are.
        seconds: Wall time.
    """

    verdict: str
    what: str = ""
    quantizers: int = 0
    seconds: float = 0.0


def probe(path: Path) -> Verdict:
    """Return what becomes of the detector in ``path`` on random images with random weights."""
    began = time.monotonic()
    try:
        config = compat_cfg(replace_cfg_vals(Config.fromfile(str(path))))
        detector = _build(config, path)
    except ImportError:
        return Verdict(verdict=REFUSED, what="imports a package that mmdet does not bring along")
    except Exception as error:
        return Verdict(verdict=REFUSED, what=f"cannot be built: {_line(error)}")
    verdict = Verdict(verdict=REFUSED)
    for side in SIDES:
        try:
            verdict = _probe(config, path, detector, side)
        except _FloatFails as error:
            verdict = Verdict(verdict=REFUSED, what=f"the float detector fails here too: {error}")
            detector = _build(config, path)
        else:
            break
    return replace(verdict, seconds=round(time.monotonic() - began, 1))


class _FloatFails(Exception):  # noqa: N818
    """The detector fails without any quantization: an image too small, an operator missing."""


def _probe(config: Config, path: Path, detector: nn.Module, side: int) -> Verdict:
    torch.manual_seed(0)
    data = batch_for(config, side)
    try:
        before = _features(detector, data)
        graph = quantize_detector(detector, Recipe())
    except (ValueError, NotImplementedError) as error:
        return Verdict(verdict=REFUSED, what=_line(error))
    try:
        with torch.no_grad():
            _check_same(before, graph(data["img"]))
        _train(detector, graph, data)
        _infer(detector, graph, data)
    except Exception:
        if reason := _float_fails(config, path, data):
            raise _FloatFails(reason) from None
        raise
    what = "; ".join(f"{name}: {reason}" for name, reason in summary(graph.left_float, most=4))
    return Verdict(
        verdict=PARTLY if what else OK,
        what=what,
        quantizers=len(graph.quantizers),
    )


def _features(detector: nn.Module, data: dict[str, Any]) -> Any:
    """Return the float detector's features, in evaluation mode.

    Raises:
        _FloatFails: It does not run here.
    """
    detector.eval()  # Some of mmdet's return nothing here.
    extract: Any = detector.extract_feat
    try:
        with torch.no_grad():
            return extract(data["img"])
    except RuntimeError as error:
        raise _FloatFails(_line(error)) from error


def _float_fails(config: Config, path: Path, data: dict[str, Any]) -> str:
    """Return why the float detector cannot train a step or detect either; empty if it can."""
    detector = _build(config, path)
    try:
        detector.train()
        _loss(detector, data).backward()  # type: ignore[no-untyped-call]
        detector.eval()
        _detect(detector, data)
    except Exception as error:
        return _line(error)
    return ""


def _build(config: Config, path: Path) -> nn.Module:
    remove_pretrained(config.model)
    use_plain_norms(config.model)
    if "teacher_config" in config.model:
        # Distillation names its teacher's config from the folder above all configs.
        config.model.teacher_config = str(path.parents[2] / config.model.teacher_config)
    detector: Any = build_detector(
        config.model, train_cfg=config.get("train_cfg"), test_cfg=config.get("test_cfg")
    )
    detector.init_weights()
    assert isinstance(detector, nn.Module)
    return detector


def remove_pretrained(section: Any) -> None:
    """Take the names of weights to be downloaded out of a model's config, in place."""
    if isinstance(section, dict):
        for key in list(section):
            value = section[key]
            if key in {"pretrained", "teacher_ckpt"} or (
                key == "init_cfg" and isinstance(value, dict) and "checkpoint" in value
            ):
                section[key] = None
            else:
                remove_pretrained(value)
    elif isinstance(section, list | tuple):
        for item in section:
            remove_pretrained(item)


def use_plain_norms(section: Any) -> None:
    """Have batch norms of one process in a model's config: others need a process group."""
    if isinstance(section, dict):
        if section.get("type") in {"SyncBN", "MMSyncBN"}:
            section["type"] = "BN"
        for value in section.values():
            use_plain_norms(value)
    elif isinstance(section, list | tuple):
        for item in section:
            use_plain_norms(item)


def batch_for(config: Config, side: int = SIDES[0]) -> dict[str, Any]:
    """Return two random images with what the config's training pipeline collects."""
    steps = list(_pipeline_steps(config.get("data", {}).get("train", {})))
    steps += list(_pipeline_steps(config.get("train_pipeline", [])))
    keys = {key for step in steps if step.get("type") == "Collect" for key in step["keys"]}
    shrink = [step["scale_factor"] for step in steps if step.get("type") == "SegRescale"]
    boxes = side * torch.tensor([[0.08, 0.1, 0.55, 0.6], [0.4, 0.35, 0.9, 0.95]])
    masks = np.zeros((2, side, side), dtype=np.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.zeros(2, dtype=torch.long)
    small = int(side * shrink[0]) if shrink else side
    meta = {
        "filename": "random.png",
        "ori_filename": "random.png",
        "ori_shape": (side, side, 3),
        "img_shape": (side, side, 3),
        "pad_shape": (side, side, 3),
        "batch_input_shape": (side, side),
        "scale_factor": np.ones(4, dtype=np.float32),
        "flip": False,
        "flip_direction": None,
        "border": np.array([0, side, 0, side], dtype=np.float32),
        "img_norm_cfg": {"mean": np.zeros(3), "std": np.ones(3), "to_rgb": True},
    }
    full: dict[str, Any] = {
        "gt_bboxes": [boxes, boxes],
        "gt_labels": [labels, labels],
        "gt_bboxes_ignore": [boxes[:0], boxes[:0]],
        "gt_masks": [BitmapMasks(masks, side, side)] * 2,
        "gt_semantic_seg": torch.zeros(2, 1, small, small, dtype=torch.long),
        "proposals": [boxes.repeat(10, 1) + torch.randn(20, 4) for _ in range(2)],
    }
    data: dict[str, Any] = {
        "img": torch.randn(2, 3, side, side),
        "img_metas": [dict(meta), dict(meta)],
    }
    data.update({key: full[key] for key in keys if key in full})
    return data


def _pipeline_steps(section: Any) -> Iterator[dict[str, Any]]:
    if isinstance(section, dict):
        yield section
        for value in section.values():
            yield from _pipeline_steps(value)
    elif isinstance(section, list | tuple):
        for item in section:
            yield from _pipeline_steps(item)


def _check_same(before: Any, result: Any) -> None:
    """Raise RuntimeError when the graph computes other features than the float detector did."""
    if not isinstance(result, dict):
        return
    for old, new in zip(_tensors(before), _tensors(result["features"]), strict=True):
        if not torch.allclose(old, new, rtol=1e-4, atol=1e-4, equal_nan=True):
            raise RuntimeError("the graph's features differ from the float detector's")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _train(detector: nn.Module, graph: QuantizedGraph, data: dict[str, Any]) -> None:
    """Calibrate on the batch, then train one step on it."""
    quantizers = list(graph.activations().values())
    set_phase(graph.quantizers, Phase.CALIBRATE)
    detector.eval()
    with torch.no_grad():
        features = features_of(graph(data["img"]))
        if graph.parts:
            run_roi_heads(detector, features, data["img"])
    update_scales_(quantizers)
    set_phase(graph.quantizers, Phase.TRAIN)
    detector.train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4)
    loss = _loss(detector, data)
    loss.backward()  # type: ignore[no-untyped-call]
    if not torch.isfinite(loss):
        raise RuntimeError(f"the loss is {float(loss)}")
    layers = [layer for _, _, layer, _ in graph.layers()]
    gradients = [p.grad for layer in layers for p in layer.parameters() if p.grad is not None]
    if not gradients:
        raise RuntimeError("no quantized layer got a gradient")
    optimizer.step()
    update_scales_(quantizers)


def _infer(detector: nn.Module, graph: QuantizedGraph, data: dict[str, Any]) -> None:
    """Detect on one image with everything rounded."""
    set_phase(graph.quantizers, Phase.FROZEN)
    detector.eval()
    _detect(detector, data)


def _loss(detector: nn.Module, data: dict[str, Any]) -> Tensor:
    return parse_losses(detector(**data, return_loss=True))[0]


@torch.no_grad()
def _detect(detector: nn.Module, data: dict[str, Any]) -> None:
    inputs: dict[str, Any] = {"img": [data["img"][:1]], "img_metas": [data["img_metas"][:1]]}
    if "proposals" in data:
        inputs["proposals"] = [data["proposals"][:1]]
    detector(**inputs, return_loss=False, rescale=True)


def _line(error: BaseException) -> str:
    return explain(error)[:160] or type(error).__name__


def report(path: str, connection: Connection) -> None:
    """Probe a config, quietly, and send the verdict; the work of a process of its own."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        try:
            verdict = probe(Path(path))
        except Exception as error:
            verdict = Verdict(verdict=CRASHED, what=f"{type(error).__name__}: {_line(error)}")
    connection.send(verdict)
