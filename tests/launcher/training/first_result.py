"""A data set whose metric is the similarity of the scores to those of the first evaluation."""

from __future__ import annotations

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.datasets import DATASETS

from dq.detector.data.voc_folder import VOCFolderDataset


@DATASETS.register_module(force=True)
class FirstResultDataset(VOCFolderDataset):  # type: ignore[misc]
    """Its metric is 1.0 for the first evaluation, and lower the more another one differs from it.

    Args:
        reference: File for the results of the first evaluation.
    """

    def __init__(self, *args: Any, reference: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reference = Path(reference)

    def evaluate(self, results: Any, **settings: Any) -> Any:
        best = [max((float(c[:, 4].max()) for c in image if len(c)), default=0.0)
                for image in results]  # fmt: skip
        if not self.reference.exists():
            self.reference.write_text(json.dumps(best))
        wanted = np.array(json.loads(self.reference.read_text()))
        return OrderedDict(mAP=float(1 - np.abs(np.nan_to_num(best) - wanted).mean()))
