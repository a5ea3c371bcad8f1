"""A custom data set in Pascal VOC's layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.datasets import DATASETS, VOCDataset, XMLDataset

from dq.detector.metrics.coco_metric import coco_metrics

COCO_METRIC = "bbox"
METRICS = ("mAP", "recall", COCO_METRIC)


@DATASETS.register_module()
class VOCFolderDataset(VOCDataset):  # type: ignore[misc]
    """mmdet's VOC data set, but its path does not need a year.

    mmdet's VOCDataset reads the year from the path to choose between the metrics of 2007 (11
    points) and later (area under the curve), and refuses a path without one. This class takes its
    own ``classes`` and uses the area under the curve. COCO's metric on the same boxes is available
    too.

    Args:
        kwargs: As for mmdet's XMLDataset; ``classes`` is required.
    """

    CLASSES = None
    PALETTE = None

    def __init__(self, **kwargs: Any) -> None:
        XMLDataset.__init__(self, **kwargs)
        self.year = None

    def evaluate(
        self, results: Any, metric: str | Sequence[str] = "mAP", logger: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Return VOC's ``mAP`` or ``recall``, COCO's metric (``bbox``), or several of them.

        Args:
            results: mmdet's results of all images, in order.
            metric: One or more of `METRICS`; tables show the first one.
            logger: As for mmdet.
            kwargs: As for mmdet's VOCDataset, for its metrics.

        Raises:
            ValueError: There is no such metric.
        """
        found: dict[str, Any] = {}
        for name in [metric] if isinstance(metric, str) else metric:
            if name not in METRICS:
                raise ValueError(
                    f"evaluation.metric {name!r} does not exist; use one of {', '.join(METRICS)}"
                )
            if name == COCO_METRIC:
                found |= coco_metrics(self, results)
            else:
                found |= super().evaluate(results, metric=name, logger=logger, **kwargs)
        return found
