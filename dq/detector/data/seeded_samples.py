"""Samples that depend on the seed, the epoch and their place in it, and on nothing before them."""

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
from dq.detector.data.unreadable_images import BadImage, bad_image_in, name_bad_images

_ATTEMPTS = 100


@dataclass(frozen=True, slots=True)
class Draw:
    """An image whose turn it is.

    Attributes:
        epoch: Counted from 0.
        place: In the order of the epoch; an image may have several.
        index: Of the image in the data set.
    """

    epoch: int
    place: int
    index: int


class Sample(NamedTuple):
    """What a pipeline made of an image, or a collated batch of that.

    Attributes:
        content: None where no image could be read.
        bad: Images that could not be read and in whose place this was taken.
    """

    content: Any
    bad: tuple[BadImage, ...]


class SeededSamples(Dataset[Sample]):
    """A training data set whose augmentation is decided by (seed, epoch, place) alone.

    Python's, NumPy's and torch's generators are seeded anew for each sample, so it is the same
    in any worker, in any number of workers, and after any interruption. In the rank's own process
    they are put back afterwards.

    A sample whose files cannot be read is replaced by another of its group, drawn likewise. Every
    attribute but these is the inner data set's own, so that mmdet's hooks can change it.

    Args:
        dataset: Any mmdet data set; its loading transforms are made to name bad images.
        seed: Not negative.
        max_bad: For how many bad images within one sample others are tried.
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
        # A copy that is being unpickled has no attributes yet, and would look for this one for
        # ever; torch looks for special methods that must not bypass the ones here.
        if name == "_inner" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._inner, name)

    @property
    def flag(self) -> np.ndarray[Any, Any]:
        """(num_samples,) the group of each; one for all where the data set has none."""
        return self._flags

    def get_cat2imgs(self) -> dict[int, list[int]]:
        """Return which images have boxes of each class, for mmdet's ClassAwareSampler.

        mmdet's own is missing on most wrappers, and on COCO counts by other numbers than labels.

        Raises:
            ValueError: The data set does not tell an image's classes.
        """
        own = getattr(self._inner, "get_cat2imgs", None)
        if own is not None and not isinstance(self._inner, CocoDataset):
            return dict(own())
        found = images_by_class(self._inner)
        if found is None:
            raise ValueError(
                "data.train_dataloader.class_aware_sampler needs a data set that knows the images"
                " of each class; take away the wrapper around it, or leave the option out"
            )
        return found

    def update_skip_type_keys(self, skip_type_keys: Sequence[str]) -> None:
        """Let mmdet's YOLOXModeSwitchHook end mosaic, however deep in wrappers it is."""
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
        """Draw a sample not tried yet, of the same group where there is one left."""
        key = (draw.place, len(tried), 1)
        generator = np.random.default_rng(_sequence(self._seed, draw.epoch, key))
        free = np.ones(len(self), bool)
        free[list(tried)] = False
        alike = np.flatnonzero(free & (self._flags == self._flags[draw.index]))
        return int(generator.choice(alike if len(alike) else np.flatnonzero(free)))


def collate_samples(samples: Sequence[Sample], samples_per_gpu: int) -> Sample:
    """Return mmcv's batch of the samples, and all their bad images.

    Returns:
        Its ``content`` is None where one of the samples' is.
    """
    bad = tuple(image for sample in samples for image in sample.bad)
    if any(sample.content is None for sample in samples):
        return Sample(None, bad)
    return Sample(collate([sample.content for sample in samples], samples_per_gpu), bad)


def seed_generators_(seed: int, epoch: int, place: int, attempt: int = 0) -> None:
    """Seed the global generators of Python, NumPy and torch (CPU) from all four numbers."""
    words = _sequence(seed, epoch, (place, attempt)).generate_state(6)
    random.seed(words[:2].tobytes())
    np.random.seed(words[2:4])
    # torch.manual_seed would seed the GPU's generators too, which are the training's own.
    torch.default_generator.manual_seed(int(words[4:].view(np.uint64)[0]))


def _sequence(seed: int, epoch: int, key: tuple[int, ...]) -> np.random.SeedSequence:
    return np.random.SeedSequence([seed, epoch], spawn_key=key)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Put the global generators of Python, NumPy and torch (CPU) back after the body."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
