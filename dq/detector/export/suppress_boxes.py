"""Final detections of a batch in an exported graph: thresholds, top k, NMS.

They equal those of mmdet's `BaseDenseHead`, `YOLOV3Head` and `YOLOXHead` for one image. This holds
for ties too: an earlier candidate comes before a later one with the same score. ONNX specifies this
for TopK, and ONNX Runtime does it in NonMaxSuppression.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from dq.detector.export.decode_boxes import Decoder, Level
from dq.quant.integer.modules import DOMAIN

SUPPRESS = "Suppress"
# Maximum detections per image for heads whose test_cfg has no max_per_img, such as YOLOX's.
DEFAULT_MOST = 1000
# NMS settings that do not change the result, and those that are supported here.
_KNOWN = {"type", "iou_threshold", "iou_thr", "class_agnostic", "split_thr"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings in a head's ``test_cfg``.

    Attributes:
        score: Candidates have a score above this.
        factor: Candidates have a factor of at least this.
        iou: Boxes that overlap a better one of their class by more are removed.
        classless: Whether boxes of other classes suppress too.
        num_level: Maximum number of candidates per level.
        most: Maximum number of detections per image.
    """

    score: float
    factor: float
    iou: float
    classless: bool
    num_level: int
    most: int


def settings_of(head: Any) -> Settings:
    """Return the settings of a head.

    Raises:
        ValueError: ONNX has no such NMS.
    """
    config: Mapping[str, Any] = head.test_cfg or {}
    nms = config.get("nms")
    if not nms or nms.get("type", "nms") != "nms" or set(nms) - _KNOWN:
        raise ValueError(
            f"ONNX cannot suppress boxes as model.test_cfg.nms={dict(nms or {})} says; set"
            " model.test_cfg.nms=dict(type='nms', iou_threshold=0.5), or export with --decode boxes"
        )
    most = int(config.get("max_per_img") or 0)
    return Settings(
        score=float(config.get("score_thr", 0.0)),
        factor=float(config.get("conf_thr", 0.0)),
        iou=float(nms.get("iou_threshold", nms.get("iou_thr", 0.5))),
        classless=bool(nms.get("class_agnostic", False)),
        num_level=int(config.get("nms_pre") or 0),
        most=most if most > 0 else DEFAULT_MOST,
    )


class Detections(nn.Module):
    """A head's outputs -> boxes ``(N, M, 4)``, scores ``(N, M)`` and labels ``(N, M)``, best first.

    M is `Settings.most`, or the number of candidates if that is smaller. Unused entries have score
    0 and label -1.

    Args:
        decoder: The head's decoder.
        settings: The head's settings.

    Raises:
        ValueError: The number of candidates is not limited.
    """

    NAMES = ("boxes", "scores", "labels")

    def __init__(self, decoder: Decoder, settings: Settings) -> None:
        super().__init__()
        self.decoder, self.settings = decoder, settings
        if decoder.candidates != "class" and settings.num_level <= 0:
            raise ValueError(
                "--decode nms needs model.test_cfg.nms_pre, the candidates per level; set it"
                " (1000 is usual), or export with --decode boxes"
            )

    def forward(self, outputs: Sequence[Any]) -> tuple[Tensor, ...]:
        """Return the detections; only for export, torch does not compute the NMS."""
        picks = {
            "pairs": self._best_pairs,
            "class": self._best_class,
            "product": self._best_products,
        }
        pick = picks[self.decoder.candidates]
        parts = [pick(level) for level in self.decoder(outputs)]
        boxes, scores, labels = (torch.cat(tensors, 1) for tensors in zip(*parts, strict=True))
        kept = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{SUPPRESS}",
            (boxes, scores, labels),
            attrs={
                "iou": self.settings.iou,
                "classes": 0 if self.settings.classless else self.decoder.num_classes,
                "most": self.settings.most,
            },
            dtype=torch.float32,
            shape=scores.shape,
            version=1,
        )
        scores, places = kept.topk(min(self.settings.most, kept.shape[1]), dim=1)
        boxes = boxes.gather(1, places[..., None].expand(-1, -1, 4))
        labels = torch.where(scores > 0, labels.gather(1, places), -1)
        return boxes * (scores > 0)[..., None], scores, labels

    def _best_pairs(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best pairs of a prior and a class; the score is 0 below the threshold."""
        scores = torch.where(level.scores > self.settings.score, level.scores, 0.0)
        boxes, scores, priors, labels = self._best(level, scores)
        if level.factors is not None:
            scores = scores * level.factors.gather(1, priors)
        return boxes, scores, labels

    def _best_products(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best pairs by score times factor; the score is 0 below a threshold."""
        assert level.factors is not None
        factors = level.factors[..., None]
        above = (level.scores > self.settings.score) & (factors >= self.settings.factor)
        scores = torch.where(above, level.scores * factors, 0.0)
        boxes, scores, _, labels = self._best(level, scores)
        return boxes, scores, labels

    def _best(self, level: Level, scores: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes, scores, priors and labels of the level's best pairs."""
        scores = scores.flatten(1)
        scores, places = scores.topk(min(self.settings.num_level, scores.shape[1]), dim=1)
        priors = places // self.decoder.num_classes
        boxes = level.boxes.gather(1, priors[..., None].expand(-1, -1, 4))
        return boxes, scores, priors, places % self.decoder.num_classes

    def _best_class(self, level: Level) -> tuple[Tensor, Tensor, Tensor]:
        """Return every prior with its best class; the score is 0 below the threshold."""
        scores, labels = level.scores.max(-1)
        assert level.factors is not None
        scores = level.factors * scores
        return level.boxes, torch.where(scores >= self.settings.score, scores, 0.0), labels


def write_suppressions_(model: ir.Model) -> None:
    """Replace the NMS placeholders in a model by ONNX's operators, in place."""
    for node in list(model.graph):
        if node.domain == DOMAIN and node.op_type == SUPPRESS:
            _write(model.graph, node)


def _write(graph: ir.Graph, node: ir.Node) -> None:
    """Write the nodes that set the scores of suppressed candidates to 0."""
    boxes, scores, labels = node.inputs
    classes, most, iou = (node.attributes[key].value for key in ("classes", "most", "iou"))
    made: list[ir.Node] = []

    def constant(name: str, array: Any) -> ir.Value:
        tensor = ir.tensor(array, name=f"suppression/{name}")
        value = ir.Value(
            name=tensor.name,
            shape=ir.Shape(array.shape),
            type=ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        graph.register_initializer(value)
        return value

    def call(kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        made.append(ir.node(kind, inputs, attributes, name=f"suppression/{len(made)}_{kind}"))
        made[-1].outputs[0].name = f"suppression/{len(made)}"
        return made[-1].outputs[0]

    axis, zero = constant("axis", np.array([1])), constant("zero", np.array(0, np.float32))
    by_class = call("Unsqueeze", scores, axis)
    if classes:
        numbers = constant("classes", np.arange(int(classes)).reshape(1, -1, 1))
        own = call("Equal", call("Unsqueeze", labels, axis), numbers)
        by_class = call("Where", own, by_class, zero)
    limits = (
        constant("most", np.array(int(most))),
        constant("iou", np.array(float(iou), np.float32)),
    )
    chosen = call("NonMaxSuppression", boxes, by_class, *limits, zero)
    # Select image and candidate from (image, class, candidate).
    places = call("Gather", chosen, constant("columns", np.array([0, 2])), axis=1)
    empty = call("ConstantOfShape", call("Shape", scores))
    kept = call("ScatterND", empty, places, call("GatherND", scores, places))
    kept.shape, kept.type = node.outputs[0].shape, node.outputs[0].type
    for new in made:
        graph.insert_before(node, new)
    node.outputs[0].replace_all_uses_with(kept)
    graph.remove(node, safe=True)
