"""A data set in Pascal VOC's layout that is not Pascal VOC itself."""

from __future__ import annotations

from typing import Any

from mmdet.datasets import DATASETS, VOCDataset, XMLDataset


@DATASETS.register_module()
class VOCFolderDataset(VOCDataset):  # type: ignore[misc]
    """mmdet's VOC data set without the demand that its path name a year.

    mmdet's VOCDataset reads the year from the path to choose between the metrics of 2007 (11
    points) and later (area under the curve), and refuses a path without one. This one has
    ``classes`` of its own and uses the area.

    Args:
        kwargs: As for mmdet's XMLDataset; ``classes`` is required.
    """

    CLASSES = None
    PALETTE = None

    def __init__(self, **kwargs: Any) -> None:
        XMLDataset.__init__(self, **kwargs)
        self.year = None
