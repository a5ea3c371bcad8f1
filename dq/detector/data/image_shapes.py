"""The shapes of test images, for data sets whose metric asks the pipeline for them (OpenImages)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from dq.detector.data.leaves import leaves

Shape = tuple[int, int]


class ImageShapes:
    """Collects what OpenImages' metric needs of each image; does nothing for other data sets.

    mmdet lets the data set itself collect it while it loads images, which is lost in the processes
    of a loader, and asks for a collective for each image.

    Args:
        dataset: In test mode; it collects nothing itself from now on.

    Attributes:
        shapes: Height and width of this rank's images so far.
    """

    def __init__(self, dataset: Any) -> None:
        self.leaves = list(leaves(dataset))
        self.is_asked = any(_asks(leaf) for leaf in self.leaves)
        self.shapes: list[Shape] = []
        for leaf in filter(_asks, self.leaves):
            # An attribute of the instance hides the method of the class.
            leaf.__dict__["get_meta_from_pipeline"] = _collect_nothing

    def add(self, batch: Mapping[str, Any]) -> None:
        """Take the images of a batch on the device."""
        if self.is_asked:
            self.shapes += [tuple(meta["ori_shape"][:2]) for meta in batch["img_metas"][0]]

    def give_back(self, shapes: Sequence[Shape]) -> None:
        """Hand each data set the shapes of its images, of all images in order."""
        begin = 0
        for leaf in self.leaves:
            if _asks(leaf):
                own = list(shapes[begin : begin + len(leaf)])
                leaf.__dict__["get_img_shape"] = partial(_fill, leaf, own)
            begin += len(leaf)


def _asks(leaf: Any) -> bool:
    return bool(getattr(leaf, "get_metas", False) and getattr(leaf, "load_from_pipeline", False))


def _collect_nothing(_: Any) -> None:
    pass


def _fill(leaf: Any, shapes: list[Shape], _: Any) -> None:
    """Do what the data set's ``get_img_shape`` does with what it has collected itself."""
    leaf.test_img_shapes = list(shapes)
