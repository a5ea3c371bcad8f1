"""Draw one scene: a few handwritten digits over a crop of a photograph."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dq.data.originals import Originals

MAX_DIGITS = 6
MIN_DIGIT_SIZE, MAX_DIGIT_SIZE = 20, 64
VISIBLE = 0.3  # Ink that covers less of a pixel than this is invisible and not part of the box.
_MAX_ANGLE = 12.0
_MAX_OVERLAP = 0.1
_MIN_CONTRAST = 60.0
_LUMINANCE = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A digit and its box: pixels left to right - 1 and top to bottom - 1."""

    label: int
    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """An image (size, size, 3) uint8, its digits, and its photograph."""

    picture: NDArray[np.uint8]
    digits: tuple[Placed, ...]
    photograph: str


def draw_scene(originals: Originals, size: int, rng: np.random.Generator) -> Scene:
    """Return a square scene of 1 to 6 digits, each completely inside, with little overlap.

    Args:
        originals: What to draw from.
        size: The side in pixels, at least three times the smallest digit.
        rng: The only source of randomness; the same state draws the same scene.
    """
    name = sorted(originals.photographs)[rng.integers(len(originals.photographs))]
    picture = crop_photograph(originals.photographs[name], size, rng)
    placed: list[Placed] = []
    for _ in range(rng.integers(1, MAX_DIGITS + 1)):
        index = rng.integers(len(originals.digits))
        digit_size = int(rng.integers(MIN_DIGIT_SIZE, min(MAX_DIGIT_SIZE, size // 3) + 1))
        ink = draw_ink(originals.digits[index], digit_size, rng.uniform(-_MAX_ANGLE, _MAX_ANGLE))
        place = _find_place(int(originals.labels[index]), ink.shape, size, placed, rng)
        if place is None:
            continue
        window = picture[place.top : place.bottom, place.left : place.right]
        opacity = rng.uniform(0.8, 1.0)
        window[:] = blend(window, ink * opacity, choose_colour(window, opacity, rng))
        placed.append(place)
    return Scene(picture=picture, digits=tuple(placed), photograph=name)


def crop_photograph(
    photograph: Image.Image, size: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Return a random square crop, possibly mirrored, (size, size, 3) uint8."""
    shorter = min(photograph.size)
    side = min(shorter, int(rng.uniform(0.75, 2.0) * size))
    left, top = (int(rng.integers(extent - side + 1)) for extent in photograph.size)
    crop = photograph.resize(
        (size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    pixels = np.array(crop)
    return np.ascontiguousarray(pixels[:, ::-1]) if rng.integers(2) else pixels


def draw_ink(digit: NDArray[np.uint8], size: int, angle: float) -> NDArray[np.float64]:
    """Return the coverage of each pixel by ink, 0 to 1, cropped to the visible part.

    Args:
        digit: (8, 8) uint8, 255 where the ink is.
        size: Side in pixels of the scaled 8 x 8 image.
        angle: Degrees, counterclockwise.
    """
    margin = len(digit) // 4
    field = Image.fromarray(np.pad(digit, margin))
    side = round(size * (len(digit) + 2 * margin) / len(digit))
    turned = field.resize((side, side), Image.Resampling.BICUBIC).rotate(
        angle, Image.Resampling.BICUBIC
    )
    # A steep slope around half coverage sharpens the strokes that scaling has blurred.
    slope = np.clip((np.asarray(turned) / 255 - 0.3) / 0.35, 0, 1)
    ink = slope * slope * (3 - 2 * slope)
    rows, columns = (np.flatnonzero((ink >= VISIBLE).any(axis=axis)) for axis in (1, 0))
    return np.asarray(ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def choose_colour(
    window: NDArray[np.uint8], opacity: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return a random colour (3,) with enough luminance contrast to the window.

    A window with more structure needs more contrast. If no random colour is found, it is black or
    white.
    """
    luminance = window @ _LUMINANCE
    mean, needed = luminance.mean(), _MIN_CONTRAST + luminance.std()
    for _ in range(20):
        colour = rng.integers(0, 256, 3).astype(np.float64)
        if abs(colour @ _LUMINANCE - mean) * opacity >= needed:
            return colour
    return np.full(3, 0.0 if mean > 127 else 255.0)


def blend(
    window: NDArray[np.uint8], cover: NDArray[np.float64], colour: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Return the window blended with the colour by `cover` (height, width)."""
    share = cover[:, :, np.newaxis]
    return np.round(window * (1 - share) + colour * share).astype(np.uint8)


def _find_place(
    label: int, shape: tuple[int, ...], size: int, others: list[Placed], rng: np.random.Generator
) -> Placed | None:
    """Return a random free place for ink of this shape, None if none is found."""
    height, width = shape
    for _ in range(30):
        left, top = int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
        place = Placed(label=label, left=left, top=top, right=left + width, bottom=top + height)
        if all(_overlap(place, other) < _MAX_OVERLAP for other in others):
            return place
    return None


def _overlap(one: Placed, other: Placed) -> float:
    """Return the intersection over the smaller box's area; the IoU is never greater."""
    width = min(one.right, other.right) - max(one.left, other.left)
    height = min(one.bottom, other.bottom) - max(one.top, other.top)
    areas = ((box.right - box.left) * (box.bottom - box.top) for box in (one, other))
    return max(width, 0) * max(height, 0) / min(areas)
