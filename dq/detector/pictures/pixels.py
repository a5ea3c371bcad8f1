"""Images of any kind as RGB: as their data set loads them, and as its pipeline passes them on."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dq.detector.data.leaves import Place, infos_of, loads_images

RGB = NDArray[np.uint8]
# Longer side of an image that is kept to be drawn, in pixels; sheets have smaller ones.
LARGEST = 560


def loaded(place: Place) -> RGB | None:
    """Return an image as the loading steps of its data set's pipeline read it, ``(h, w, 3)``.

    So EXIF, file clients, several files for the channels and the user's own steps take effect.

    Returns:
        None if the data set loads images in a way of its own.

    Raises:
        Exception: The image cannot be read; whatever the step raises.
    """
    leaf, at = place
    infos = infos_of(leaf)
    pipeline = getattr(getattr(leaf, "pipeline", None), "transforms", ())
    steps = [step for step in pipeline if loads_images(type(step).__name__)]
    if infos is None or not steps or not hasattr(leaf, "pre_pipeline"):
        return None
    results: Any = {"img_info": copy.deepcopy(infos[at])}
    leaf.pre_pipeline(results)
    for step in steps:
        results = step(results)
    order = str(getattr(steps[0], "channel_order", "bgr"))
    return as_rgb(np.asarray(results["img"]), is_rgb=order == "rgb")


def as_rgb(image: NDArray[Any], *, is_rgb: bool = False) -> RGB:
    """Return an array ``(h, w)`` or ``(h, w, channels)`` of any numbers as RGB.

    16 bits are scaled to 8; other numbers beyond 0 to 255 are scaled to their range. Of more than
    three channels the first three are shown, of two the first.

    Args:
        image: The array.
        is_rgb: Whether three channels are in this order, and not BGR.
    """
    if image.ndim == 2:
        image = image[:, :, None]
    image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
    if image.dtype == np.bool_:
        image = image.astype(np.uint8) * 255
    elif image.dtype == np.uint16:
        image = image >> 8
    elif image.dtype != np.uint8:
        image = _scaled(image.astype(np.float64))
    image = image.astype(np.uint8)
    if image.shape[2] == 1:
        return np.ascontiguousarray(np.repeat(image, 3, axis=2))
    return np.ascontiguousarray(image if is_rgb else image[:, :, ::-1])


def _scaled(image: NDArray[np.float64]) -> NDArray[np.float64]:
    finite = np.nan_to_num(image, nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(finite.min(initial=0.0)), float(finite.max(initial=0.0))
    # Rounding in a resize or a normalization may leave the range by a little.
    if low < -1.0 or high > 256.0 or 0.0 < high <= 1.0:
        finite = (finite - low) / max(high - low, 1e-12) * 255.0
    return finite.round().clip(0.0, 255.0)


def denormalized(image: Tensor, meta: Mapping[str, Any]) -> RGB:
    """Return the image of a sample as RGB, ``(h, w, 3)``.

    Args:
        image: ``(channels, h, w)``, as the network gets it.
        meta: The sample's ``img_metas``, for the normalization.
    """
    pixels = image.detach().cpu().numpy().transpose(1, 2, 0).astype(np.float64)
    norm = meta.get("img_norm_cfg") or {}
    mean, std = (np.ravel(norm.get(name, value)) for name, value in (("mean", 0), ("std", 1)))
    if mean.size in (1, pixels.shape[2]) and std.size in (1, pixels.shape[2]):
        pixels = pixels * std + mean
    return as_rgb(pixels, is_rgb=bool(norm.get("to_rgb", False)))


def reduced(image: RGB) -> RGB:
    """Return an image whose longer side is at most `LARGEST`, so that many fit into memory."""
    longest = max(image.shape[:2])
    if longest <= LARGEST:
        return image
    height, width = (max(1, round(side * LARGEST / longest)) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height)))
