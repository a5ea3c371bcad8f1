"""Add the missing method ``get_cat_ids`` to mmdet's data set wrappers."""

from __future__ import annotations

from typing import Any

from mmdet.datasets import ClassBalancedDataset, MultiImageMixDataset

from dq.detector.data.leaves import located


def add_get_cat_ids() -> None:
    """Give mmdet's wrappers the method that a ClassBalancedDataset around them calls.

    In mmdet only two of the four wrappers have it.
    """
    for wrapper in (ClassBalancedDataset, MultiImageMixDataset):
        if not hasattr(wrapper, "get_cat_ids"):
            wrapper.get_cat_ids = _get_cat_ids


def _get_cat_ids(wrapper: Any, index: int) -> list[int]:
    place = located(wrapper, index)
    assert place is not None
    found: list[int] = place.leaf.get_cat_ids(place.at)
    return found
