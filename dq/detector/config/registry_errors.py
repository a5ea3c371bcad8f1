"""Explain an error of mmcv's registries in one line."""

from __future__ import annotations

import re

from dq.error_text import error_text, with_type
from dq.names import did_you_mean


def explain(error: BaseException) -> str:
    """Return one line for an error of mmcv's registries; suggest the nearest known name."""
    text = error_text(error)
    if isinstance(error, KeyError) and error.args:  # Its text is in quotes, as Python writes a key.
        text = " ".join(str(error.args[0]).split())
    unknown = re.search(r"(\w+) is not in the ([\w ]+?) registry", text)
    if unknown:
        from mmcv.cnn import MODELS
        from mmcv.runner import HOOKS, OPTIMIZERS
        from mmdet.core.bbox.builder import BBOX_ASSIGNERS, BBOX_CODERS
        from mmdet.datasets import DATASETS, PIPELINES
        from mmdet.models.builder import MODELS as DETECTORS

        registries = [MODELS, DETECTORS, DATASETS, PIPELINES, HOOKS, OPTIMIZERS]
        registries += [BBOX_ASSIGNERS, BBOX_CODERS]
        names = {n for r in registries if r.name == unknown[2] for n in r.module_dict}
        return f"there is no {unknown[1]} among the {unknown[2]}" + (
            did_you_mean(unknown[1], names) if names else ""
        )
    return with_type(text, error) if isinstance(error, KeyError) else text
