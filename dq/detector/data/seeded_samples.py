"""Training samples that depend only on the seed, the epoch and their position in it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from mmcv.parallel import collate
from mmdet.datasets import CocoDataset
from torch.utils.data import Dataset, get_worker_info

from dq.detector.data.leaves import images_by_class, nested
from dq.detector.data.pinned_containers import pinnable
from dq.detector.data.unreadable_images import BadImage, bad_image_in, name_bad_images

_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Draw:
    """An image drawn at a position of an epoch.

    Attributes:
        epoch: Counted from 0.
        place: Position in the order of the epoch; an image may have several.
        index: Index of the image in the data set.
    """

    epoch: int
    place: int
    index: int


class Sample(NamedTuple):
    """The pipeline's result for an image, or a collated batch of them.

    Attributes:
        content: None if no image could be read.
        bad: Unreadable images that this sample replaces.
    """

    content: Any
    bad: tuple[BadImage, ...]


class SeededSamples(Dataset[Sample]):
    """A training data set whose augmentation depends only on (seed, epoch, place).

    The random generators of Python, NumPy and torch are seeded for each sample. So a sample is the
    same in any worker, for any number of workers, and after a resume. In the rank's own process the
    generators are restored afterwards.

    A sample with unreadable files is replaced by another one of its group, drawn in the same way.
    All other attributes are those of the inner data set, so that mmdet's hooks can change them.

    Args:
        dataset: Any mmdet data set; its loading transforms are changed to name bad images.
        seed: Not negative.
        max_bad: Maximum number of bad images to replace within one sample.
    """

    def __init__(self, dataset: Any, *, seed: int, max_bad: int) -> None:
        name_bad_images(dataset)
        self._inner = dataset
        self._seed = seed
        self._max_bad = max_bad
        flags = getattr(dataset, "flag", None)
        self._flags = np.zeros(len(dataset), np.uint8) if flags is None else np.asarray(flags)

    def __len__(self) -> int:
        return len(self._inner)

    def __getattr__(self, name: str) -> Any:
        # While it is unpickled, a copy has no attributes yet, and this lookup would not end. torch
        # also looks for special methods such as ``__getitems__``; the inner data set's would bypass
        # this class.
        if name == "_inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def flag(self) -> np.ndarray[Any, Any]:
        """The group of each sample, ``(num_samples,)``; all 0 if the data set has no groups."""
        return self._flags

    def get_cat2imgs(self) -> dict[int, list[int]]:
        """Return the images with boxes of each class, for mmdet's ClassAwareSampler.

        mmdet's own method is missing on most wrappers. For COCO it uses category ids, not labels.

        Raises:
            ValueError: The data set does not provide the classes of an image.
        """
        own = getattr(self._inner, "get_cat2imgs", None)
        if own is not None and not isinstance(self._inner, CocoDataset):
            return dict(own())
        found = images_by_class(self._inner)
        if found is None:
            raise ValueError(
                "data.train_dataloader.class_aware_sampler needs a data set that knows the images"
                " of each class; remove the wrapper around it, or leave the option out"
            )
        return found

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Let mmdet's YOLOXModeSwitchHook end mosaic, at any depth of wrappers."""
        for each in nested(self._inner):
            if hasattr(each, "update_skip_type_keys"):
                each.update_skip_type_keys(skip_type_keys)

    def __getitem__(self, draw: Draw) -> Sample:
        if get_worker_info() is not None:
            return self._take(draw)
        with generators_kept():
            return self._take(draw)

    def _take(self, draw: Draw) -> Sample:
        index, tried, bad = draw.index, set(), dict[str, BadImage]()
        for attempt in range(_ATTEMPTS):
            seed_generators_(self._seed, draw.epoch, draw.place, attempt)
            try:
                return Sample(self._inner[index], tuple(bad.values()))
            except Exception as error:
                found = bad_image_in(error, f"of sample {index}")
                if found is None:
                    raise
            bad.setdefault(found.path, found)
            tried.add(index)
            if len(bad) > self._max_bad or len(tried) == len(self):
                break
            index = self._another(draw, tried)
        return Sample(None, tuple(bad.values()))

    def _another(self, draw: Draw, tried: set[int]) -> int:
        """Draw a sample not tried yet, from the same group if possible."""
        key = (draw.place, len(tried), 1)
        generator = np.random.default_rng(_sequence(self._seed, draw.epoch, key))
        free = np.ones(len(self), bool)
        free[list(tried)] = False
        alike = np.flatnonzero(free & (self._flags == self._flags[draw.index]))
        return int(generator.choice(alike if len(alike) else np.flatnonzero(free)))


def collate_samples(
    samples: Sequence[Sample], samples_per_gpu: int, *, pins: bool = False
) -> Sample:
    """Return mmcv's batch of the samples, with all their bad images.

    Args:
        samples: From `SeededSamples`.
        samples_per_gpu: As for mmcv's collate.
        pins: Whether the loader pins the batch.

    Returns:
        Its ``content`` is None if that of any sample is None.
    """
    bad = tuple(image for sample in samples for image in sample.bad)
    if any(sample.content is None for sample in samples):
        return Sample(None, bad)
    batch = collate([sample.content for sample in samples], samples_per_gpu)
    return Sample(pinnable(batch) if pins else batch, bad)


def seed_generators_(seed: int, epoch: int, place: int, attempt: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU) from all four numbers."""
    words = _sequence(seed, epoch, (place, attempt)).generate_state(6)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4])
    # torch.manual_seed would also seed the GPU's generators, which belong to the training.
    torch.default_generator.manual_seed(int(words[4:].view(np.uint64)[0]))


def _sequence(seed: int, epoch: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, epoch], spawn_key=key)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch (CPU) after the body."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
