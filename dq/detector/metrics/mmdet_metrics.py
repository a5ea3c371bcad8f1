"""The surroundings in which mmdet's metrics compute: no fork, no print, and nothing found is zero.

What is mended here is mended while a metric computes, and put back behind it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import math
import re
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from mmdet.core.evaluation import mean_ap, recall
from mmdet.datasets import coco, custom, voc
from mmdet.datasets.api_wrappers import COCO, COCOeval, panoptic_evaluation

# What pycocotools prints of its own steps.
_NOISE = re.compile(
    r"(Loading and preparing results|DONE \(t=|creating index|index created|Converting ndarray"
    r"|Running per image evaluation|Evaluate annotation type|Accumulating evaluation results"
    r"|Number of cores:|Core: \d+|Time elapsed:)"
)


class Tables:
    """Collects what a metric prints and logs, in order.

    Attributes:
        logger: To be handed to mmdet; known to nobody else.
    """

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.logger = logging.Logger("metric", logging.INFO)
        self.logger.addHandler(logging.StreamHandler(self._stream))

    @property
    def text(self) -> str:
        """The tables, without the steps that pycocotools announces."""
        lines = self._stream.getvalue().splitlines()
        return "\n".join(line for line in lines if line.strip() and not _NOISE.match(line))

    def printed(self) -> contextlib.AbstractContextManager[Any]:
        """Collect what the body prints, too: some tables are printed, whatever the logger."""
        return contextlib.redirect_stdout(self._stream)


@contextlib.contextmanager
def metrics_of_mmdet() -> Iterator[Tables]:
    """Compute mmdet's metrics in the body; yield what collects their tables.

    - Boxes and segmentations would be matched in a pool of forked processes, and a fork of a
      process that has threads (gloo's, the heartbeat's, the loader's) can inherit a lock that
      nobody will release. Here they are matched in threads.
    - pycocotools and LVIS refuse an empty list of detections, and mmdet then leaves all metrics
      out. Here nothing found is a result like any other: precision and recall are zero.
    - Tables by class give each class its own numbers.
    - Recalls are kept in an array of arrays of several sizes, which numpy no longer makes of a
      list by itself.
    """
    tables = Tables()
    threads = SimpleNamespace(Pool=ThreadPool, cpu_count=_cpu_count)
    with contextlib.ExitStack() as stack:
        stack.enter_context(patch.object(mean_ap, "Pool", ThreadPool))
        stack.enter_context(patch.object(panoptic_evaluation, "multiprocessing", threads))
        stack.enter_context(patch.object(COCO, "loadRes", load_results))
        stack.enter_context(patch.object(coco, "COCOeval", CategoriesInOrder))
        for module in (coco, custom, voc):
            stack.enter_context(patch.object(module, "eval_recalls", eval_recalls))
        _mend_lvis(stack)
        _mend_panoptic(stack)
        stack.enter_context(tables.printed())
        yield tables


def _cpu_count() -> int:
    # Threads share the interpreter's lock: more of them than a few only wait.
    return 4


def load_results(truth: COCO, found: Any) -> Any:
    """Return COCO's index of detections, one of nothing where there are none.

    Args:
        truth: The annotations.
        found: Detections as COCO's API takes them.
    """
    if not isinstance(found, list) or found:
        return super(COCO, truth).loadRes(found)
    empty = COCO()
    empty.dataset = {
        "info": copy.deepcopy(truth.dataset.get("info", {})),
        "images": list(truth.dataset["images"]),
        "categories": copy.deepcopy(truth.dataset["categories"]),
        "annotations": [],
    }
    empty.createIndex()
    return empty


class CategoriesInOrder(COCOeval):  # type: ignore[misc]
    """COCO's evaluation with the categories in the order that was asked for.

    pycocotools sorts them by number, and mmdet's table by class takes the numbers of one for those
    of another wherever a file does not have them sorted. mmdet calls all proposals category 1,
    which a file need not have, and pycocotools would then not look at them.
    """

    def evaluate(self) -> None:
        """Match boxes or masks."""
        self.asked = list(self.params.catIds)
        if not self.params.useCats and self.asked:
            for box in self.cocoDt.anns.values():
                if box["category_id"] not in self.asked:
                    box["category_id"] = self.asked[0]
        super().evaluate()

    def accumulate(self, p: Any = None) -> None:
        """Compute precision and recall, the categories being those of ``params.catIds``."""
        super().accumulate(p)
        if self.params.useCats and self.asked != list(self.params.catIds):
            order = _positions(self.asked, self.params.catIds)
            for key, axis in (("precision", 2), ("scores", 2), ("recall", 1)):
                self.eval[key] = np.take(self.eval[key], order, axis=axis)


def _mend_panoptic(stack: contextlib.ExitStack) -> None:
    """Let panoptic quality be no number where there are no segments of a kind, such as stuff."""
    statistics = panoptic_evaluation.PQStat
    if statistics is None:  # where panopticapi is not installed
        return
    average = statistics.pq_average

    def pq_average(own: Any, categories: Any, isthing: Any) -> Any:
        try:
            return average(own, categories, isthing)
        except ZeroDivisionError:
            return {"pq": math.nan, "sq": math.nan, "rq": math.nan, "n": 0}, {}

    stack.enter_context(patch.object(statistics, "pq_average", pq_average))


def _positions(wanted: Sequence[Any], present: Sequence[Any]) -> list[int]:
    places = {category: place for place, category in enumerate(present)}
    return [places[category] for category in wanted]


def _mend_lvis(stack: contextlib.ExitStack) -> None:
    """Mend the same two of LVIS; where it is not installed there is no such metric."""
    try:
        lvis = importlib.import_module("lvis")
    except ImportError:
        return

    class Results(lvis.LVISResults):  # type: ignore[misc,name-defined]
        def __init__(self, truth: Any, found: Any, max_dets: int = 300) -> None:
            found = self._load_json(found) if isinstance(found, str) else found
            if found:
                super().__init__(truth, found, max_dets)
                return
            self.dataset = {**truth.dataset, "annotations": []}
            self.logger = logging.getLogger(__name__)
            self._create_index()

    class Evaluation(lvis.LVISEval):  # type: ignore[misc,name-defined]
        def summarize(self) -> None:
            super().summarize()
            # Only now, for the summary looks for rare and frequent classes by place.
            order = _positions(self.lvis_gt.get_cat_ids(), self.params.cat_ids)
            self.eval["precision"] = np.take(self.eval["precision"], order, axis=2)

    stack.enter_context(patch.object(lvis, "LVISResults", Results))
    stack.enter_context(patch.object(lvis, "LVISEval", Evaluation))


def eval_recalls(
    gts: Any,
    proposals: Any,
    proposal_nums: Any = None,
    iou_thrs: Any = 0.5,
    logger: Any = None,
    use_legacy_coordinate: bool = False,
) -> Any:
    """Return recalls as mmdet's function of this name does, on numpy 2.

    Args:
        gts: Boxes ``(n, 4)`` of each image.
        proposals: Boxes ``(k, 5)`` of each image.
        proposal_nums: How many of the best are looked at; several numbers.
        iou_thrs: From which overlap a box counts as found.
        logger: Takes the table.
        use_legacy_coordinate: Whether both ends of a box belong to it.

    Raises:
        ValueError: The results are no proposals.
    """
    if len(gts) != len(proposals):
        raise ValueError(f"there are {len(gts)} images and results of {len(proposals)}")
    if not all(isinstance(boxes, np.ndarray) for boxes in proposals):
        raise ValueError(
            "recall of proposals needs a detector that proposes boxes without class (RPN);"
            " evaluation.metric=proposal takes others"
        )
    numbers, thresholds = recall.set_recall_param(proposal_nums, iou_thrs)
    overlaps = np.empty(len(gts), dtype=object)
    for image, (truth, found) in enumerate(zip(gts, proposals, strict=True)):
        best = found[np.argsort(found[:, 4])[::-1]] if found.shape[1] == 5 else found
        best = best[: numbers[-1], :4]
        overlaps[image] = (
            recall.bbox_overlaps(truth, best, use_legacy_coordinate=use_legacy_coordinate)
            if truth is not None and len(truth)
            else np.zeros((0, len(best)), np.float32)
        )
    with np.errstate(invalid="ignore"):  # where there is nothing to find
        recalls = recall._recalls(overlaps, numbers, thresholds)
    recall.print_recall_summary(recalls, numbers, thresholds, logger=logger)
    return recalls
