"""Collect the shapes of test images for data sets whose metric needs them (OpenImages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dq.detector.data.leaves import leaves
from dq.detector.instance_methods import replace_method

Shape = tuple[int, int]


class ImageShapes:
    """Collects the image shapes for OpenImages' metric; does nothing for other data sets.

    In mmdet the data set collects them while it loads images. That is lost in worker processes, and
    needs a collective for each image.

    Args:
        dataset: In test mode; its own collection is turned off.

    Attributes:
        shapes: Height and width of this rank's images so far.
    """

    def __init__(self, dataset: Any) -> None:
        self.leaves = list(leaves(dataset))
        self.is_asked = any(_needs_shapes(leaf) for leaf in self.leaves)
        self.shapes: list[Shape] = []
        for leaf in filter(_needs_shapes, self.leaves):
            replace_method(leaf, "get_meta_from_pipeline", _collect_nothing)

    def add(self, batch: Mapping[str, Any]) -> None:
        """Add the shapes of the images in a batch."""
        if self.is_asked:
            self.shapes += [tuple(meta["ori_shape"][:2]) for meta in batch["img_metas"][0]]

    def set_shapes(self, shapes: Sequence[Shape]) -> None:
        """Give each data set the shapes of its images, from those of all images in order."""
        begin = 0
        for leaf in self.leaves:
            if _needs_shapes(leaf):
                own = list(shapes[begin : begin + len(leaf)])
                replace_method(leaf, "get_img_shape", partial(_fill, leaf, own))
            begin += len(leaf)


def _needs_shapes(leaf: Any) -> bool:
    return bool(getattr(leaf, "get_metas", False) and getattr(leaf, "load_from_pipeline", False))


def _collect_nothing(_: Any) -> None:
    pass


def _fill(leaf: Any, shapes: list[Shape], _: Any) -> None:
    """Set the shapes in a data set, as its own ``get_img_shape`` does."""
    leaf.test_img_shapes = list(shapes)
