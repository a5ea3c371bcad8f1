"""Run mmdet's metrics without fork and print; no detections give zero.

All patches are active while a metric computes, and are removed afterwards.
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

from dq.counted import counted

# pycocotools' progress messages.
_NOISE = re.compile(
    r"(Loading and preparing results|DONE \(t=|creating index|index created|Converting ndarray"
    r"|Running per image evaluation|Evaluate annotation type|Accumulating evaluation results"
    r"|Number of cores:|Core: \d+|Time elapsed:)"
)


class Tables:
    """Collects what a metric prints and logs, in order.

    Attributes:
        logger: The logger to pass to mmdet; used for nothing else.
    """

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.logger = logging.Logger("metric", logging.INFO)
        self.logger.addHandler(logging.StreamHandler(self._stream))

    @property
    def text(self) -> str:
        """The tables, without pycocotools' progress messages."""
        lines = self._stream.getvalue().splitlines()
        return "\n".join(line for line in lines if line.strip() and not _NOISE.match(line))

    def printed(self) -> contextlib.AbstractContextManager[Any]:
        """Also collect the prints of the body: some tables are printed, not logged."""
        return contextlib.redirect_stdout(self._stream)


@contextlib.contextmanager
def metrics_of_mmdet() -> Iterator[Tables]:
    """Patch mmdet's metrics in the body; yield the collector of their tables.

    - mmdet matches boxes and segmentations in a pool of forked processes. A fork of a
      process that has threads (gloo's, the heartbeat's, the loader's) can inherit a lock that is
      never released. Here they are matched in threads.
    - pycocotools and LVIS refuse an empty list of detections; mmdet then omits all metrics.
      Here precision and recall are zero in this case.
    - Tables by class give each class its own numbers.
    - Recalls are stored in an array of arrays of different sizes, which numpy no longer creates
      from a list.
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
        _fix_lvis(stack)
        _fix_panoptic(stack)
        stack.enter_context(tables.printed())
        yield tables


def _cpu_count() -> int:
    # Threads share the interpreter's lock (GIL), so many threads would only wait.
    return 4


def load_results(truth: COCO, found: Any) -> Any:
    """Return COCO's index of detections, also for an empty list.

    Args:
        truth: The annotations.
        found: Detections in the format of COCO's API.
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
    """COCO's evaluation with the categories in the requested order.

    pycocotools sorts them by id. For a file with unsorted ids, mmdet's table by class then mixes up
    the classes. mmdet gives all proposals category 1; pycocotools would ignore them if a file lacks
    it.
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
        """Compute precision and recall for the categories in ``params.catIds``."""
        super().accumulate(p)
        if self.params.useCats and self.asked != list(self.params.catIds):
            order = _positions(self.asked, self.params.catIds)
            for key, axis in (("precision", 2), ("scores", 2), ("recall", 1)):
                self.eval[key] = np.take(self.eval[key], order, axis=axis)


def _fix_panoptic(stack: contextlib.ExitStack) -> None:
    """Make panoptic quality NaN if there are no segments of a kind, such as stuff."""
    statistics = panoptic_evaluation.PQStat
    if statistics is None:  # if panopticapi is not installed
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


def _fix_lvis(stack: contextlib.ExitStack) -> None:
    """Fix empty detections and the order of classes for LVIS too, if it is installed."""
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
            # Only now, because the summary finds rare and frequent classes by position.
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
    """Return recalls like mmdet's function of this name, but on numpy 2.

    Args:
        gts: Boxes ``(n, 4)`` of each image.
        proposals: Boxes ``(k, 5)`` of each image.
        proposal_nums: Numbers of best proposals to use.
        iou_thrs: IoU thresholds above which a box counts as found.
        logger: Gets the table.
        use_legacy_coordinate: Whether box corners are inclusive pixels.

    Raises:
        ValueError: The results are not proposals.
    """
    if len(gts) != len(proposals):
        raise ValueError(f"{counted(len(gts), 'image[s]')}, but results for {len(proposals)}")
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
    with np.errstate(invalid="ignore"):  # if there are no annotated boxes
        recalls = recall._recalls(overlaps, numbers, thresholds)
    recall.print_recall_summary(recalls, numbers, thresholds, logger=logger)
    return recalls
