"""The source images of the digits data set, from installed packages, with fixed splits.

The handwriting is scikit-learn's `load_digits` (1797 digits of 8 by 8 pixels, the test part of the
UCI optical recognition set); the photographs are in the wheels of scikit-image and scikit-learn, so
nothing is downloaded. No digit and no photograph is in two splits, so `test` has handwriting and
places that the detector has never seen.
"""

import importlib
from dataclasses import dataclass
from importlib import metadata, resources
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

# `load_digits` is ordered by writer, so consecutive ranges have different handwriting.
DIGIT_INDICES = {
    "train": range(1257),
    "val": range(1257, 1437),
    "test": range(1437, 1797),
}
_SKIMAGE, _SKLEARN = "skimage/data/", "sklearn/datasets/images/"
# Photographs with printed text (page, text, logo) are excluded: their digits have no boxes.
PHOTOGRAPHS = {
    "train": (
        _SKIMAGE + "astronaut.png",
        _SKIMAGE + "chelsea.png",
        _SKIMAGE + "coffee.png",
        _SKIMAGE + "grass.png",
        _SKIMAGE + "hubble_deep_field.jpg",
        _SKIMAGE + "ihc.png",
        _SKIMAGE + "moon.png",
        _SKIMAGE + "motorcycle_left.png",
        _SKLEARN + "china.jpg",
    ),
    "val": (
        _SKIMAGE + "camera.png",
        _SKIMAGE + "gravel.png",
        _SKIMAGE + "retina.jpg",
    ),
    "test": (
        _SKIMAGE + "brick.png",
        _SKIMAGE + "coins.png",
        _SKIMAGE + "rocket.jpg",
        _SKLEARN + "flower.jpg",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Originals:
    """The source images of one split.

    `digits` is (num_digits, 8, 8) uint8 from 0 (paper) to 255 (ink), `labels` (num_digits,) from 0
    to 9; `photographs` are RGB images by their path in the package.
    """

    digits: NDArray[np.uint8]
    labels: NDArray[np.int64]
    photographs: dict[str, Image.Image]


def read_originals(split: str) -> Originals:
    """Return the digits and photographs of `train`, `val` or `test`.

    Raises:
        ValueError: The `demo` extra is not installed.
        RuntimeError: An installed package has other photographs than the known ones.
    """
    indices = DIGIT_INDICES[split]
    bunch = _demo_package("sklearn.datasets").load_digits()
    chosen = slice(indices.start, indices.stop)
    return Originals(
        digits=np.round(bunch.images[chosen] * (255 / 16)).astype(np.uint8),
        labels=bunch.target[chosen].astype(np.int64),
        photographs={path: _read_photograph(path) for path in PHOTOGRAPHS[split]},
    )


def _read_photograph(path: str) -> Image.Image:
    # Read as a plain file: skimage.data would download a missing file.
    package, _, rest = path.partition("/")
    file = resources.files(_demo_package(package)).joinpath(rest)
    try:
        with file.open("rb") as stream, Image.open(stream) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        distribution = {"skimage": "scikit-image", "sklearn": "scikit-learn"}[package]
        raise RuntimeError(
            f"{distribution} {metadata.version(distribution)} does not carry {path}: "
            "install scikit-image 0.26 and scikit-learn 1.9"
        ) from error


def _demo_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the digits need the package {error.name}: pip install 'dq-launcher[demo]'"
        ) from error
