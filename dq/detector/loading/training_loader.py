"""The data loader of training batches, independent of resuming and of the number of workers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmdet.datasets.samplers import ClassAwareSampler
from torch.utils.data import DataLoader

from dq.counted import counted
from dq.detector.data.loader_options import LoaderOptions
from dq.detector.data.seeded_samples import Draw, SeededSamples, collate_samples
from dq.detector.data.unreadable_images import BadImages
from dq.detector.loading import worker_processes as workers
from dq.detector.loading.epoch_order import (
    Indices,
    accumulation,
    chunks_in_sequence,
    chunks_of_epoch,
    chunks_of_rank,
    class_aware_indices,
)
from dq.dist.exchange import collectives

log = logging.getLogger(__name__)
LOSSES_SURVIVED = 3


def training_loader(
    config: Config,
    dataset: Any,
    *,
    seed: int,
    chunks_per_step: int | None = None,
    max_bad: int = 10,
) -> TrainingLoader:
    """Return the data loader of this rank's share of the training images.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        dataset: Any mmdet data set; its loading transforms are changed to name bad images.
        seed: Decides order and augmentation; the same on all ranks.
        chunks_per_step: Micro-batches of all ranks in a step of the optimizer. When resuming, the
            value of the former run; None for a new training: ranks times the config's
            ``accumulate`` (1).
        max_bad: Number of different unreadable images allowed per rank; 0 stops at the first.

    Raises:
        ValueError: An option does not exist or does not fit, or the ranks cannot share a step.
    """
    options = LoaderOptions.of(config)
    world_size = collectives.world_size()
    if chunks_per_step is None:
        accumulate = config.get("accumulate", 1)
        if not isinstance(accumulate, int) or isinstance(accumulate, bool) or accumulate < 1:
            raise ValueError(f"accumulate is {accumulate!r}; give a number from 1 up")
        chunks_per_step = world_size * accumulate
    elif chunks_per_step < 1:
        raise ValueError(f"chunks_per_step is {chunks_per_step}; give a number from 1 up")
    accumulation(chunks_per_step, world_size)
    if seed < 0:
        raise ValueError(f"seed is {seed}; give one from 0 up")
    samples = SeededSamples(dataset, seed=seed, max_bad=max_bad)
    order = _order(samples, options, chunks_per_step=chunks_per_step, seed=seed)
    return TrainingLoader(
        samples, order, options, chunks_per_step=chunks_per_step, bad_images=BadImages(max_bad)
    )


def _order(
    samples: SeededSamples, options: LoaderOptions, *, chunks_per_step: int, seed: int
) -> Callable[[int], Indices]:
    """Return a function that maps an epoch to its chunks."""
    width = options.samples_per_gpu
    if options.class_aware_sampler is not None:
        sampler = ClassAwareSampler(samples, width, 1, 0, seed, **options.class_aware_sampler)
        indices: Callable[[int], Indices] = partial(class_aware_indices, sampler)
    elif options.shuffle:
        return partial(
            chunks_of_epoch,
            samples.flag,
            samples_per_chunk=width,
            chunks_per_step=chunks_per_step,
            seed=seed,
        )
    else:
        indices = partial(_in_sequence, len(samples))
    return lambda epoch: chunks_in_sequence(
        indices(epoch), samples_per_chunk=width, chunks_per_step=chunks_per_step
    )


def _in_sequence(num_samples: int, epoch: int) -> Indices:
    return np.arange(num_samples)


class TrainingLoader(DataLoader[Any]):
    """A rank's micro-batches, grouped into steps, starting at any step of any epoch.

    The batches of a step depend only on the order, the epoch and the step. A worker process that is
    killed is replaced, up to three times in a run. No batch is lost or repeated.

    Args:
        samples: The training images.
        order: Maps an epoch to its chunks, ``(num_chunks, samples_per_gpu)``; equally many each
            epoch.
        options: Data loader options.
        chunks_per_step: Chunks in a step of all ranks together.
        bad_images: Counts unreadable images.

    Attributes:
        accumulate: Micro-batches of this rank in a step.
        samples_per_chunk: Images per micro-batch.
    """

    def __init__(
        self,
        samples: SeededSamples,
        order: Callable[[int], Indices],
        options: LoaderOptions,
        *,
        chunks_per_step: int,
        bad_images: BadImages,
    ) -> None:
        self.chunks_per_step, self.samples_per_chunk = chunks_per_step, options.samples_per_gpu
        self.accumulate = accumulation(chunks_per_step, collectives.world_size())
        if self.accumulate > 1:
            log.info("%d micro-batches a step on each rank", self.accumulate)
        self._order, self._bad_images = order, bad_images
        self._ordered: tuple[int, Indices] = (0, order(0))
        self._pending = _Pending(options.samples_per_gpu)
        self._losses, self._turn = 0, 0
        super().__init__(
            samples,
            batch_sampler=self._pending,
            collate_fn=partial(
                collate_samples,
                samples_per_gpu=options.samples_per_gpu,
                pins=options.pin_memory,
            ),
            worker_init_fn=partial(workers.init_worker, opencv_threads=options.opencv_num_threads),
            # torch draws a seed for its workers, which must not use the training's generator.
            generator=torch.Generator(),
            **options.of_torch(),
        )
        # torch stores no batch size if there is a batch sampler, and forbids setting it later.
        self.__dict__["batch_size"] = options.samples_per_gpu

    @property
    def max_bad_images(self) -> int:
        """Number of different unreadable images that are allowed."""
        return self._bad_images.allowed

    @property
    def num_bad_images(self) -> int:
        """Number of different images of this rank's share that could not be read so far."""
        return len(self._bad_images.paths)

    def __len__(self) -> int:
        """Return the number of steps of an epoch."""
        return len(self._ordered[1]) // self.chunks_per_step

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch returns its own class
        """Yield this rank's micro-batches of epoch 0, one by one.

        They are loaded in this process, so a hook can use a batch during training.
        """
        order = self._order(0)
        for draws in _draws(0, order, self._share(order, 0)):
            content, bad = self.collate_fn([self.dataset[draw] for draw in draws])
            if content is None:
                raise RuntimeError(f"no image could be read in place of {bad[-1].path}")
            yield content

    def steps(self, epoch: int, first: int = 0) -> Iterator[list[Any]]:
        """Yield for each step of an epoch this rank's micro-batches.

        Exhaust or drop one iterator before you start another.

        Args:
            epoch: Counted from 0.
            first: First step; nothing is yielded if it is the length of the epoch.

        Raises:
            RuntimeError: Too many images cannot be read, or worker processes are killed repeatedly.
        """
        assert 0 <= first <= len(self)
        with closing(self._micro_batches(epoch, first)) as batches:
            for _ in range(first, len(self)):
                yield list(islice(batches, self.accumulate))

    def _chunks(self, epoch: int) -> Indices:
        if self._ordered[0] != epoch:
            self._ordered = (epoch, self._order(epoch))
        return self._ordered[1]

    def _share(self, chunks: Indices, first: int) -> range:
        """Return the numbers of this rank's chunks, starting at a step."""
        return chunks_of_rank(
            len(chunks),
            chunks_per_step=self.chunks_per_step,
            rank=collectives.rank(),
            world_size=collectives.world_size(),
            first_step=first,
        )

    def _micro_batches(self, epoch: int, first: int) -> Generator[Any, None, None]:
        chunks = self._chunks(epoch)
        mine = self._share(chunks, first)
        self._turn += 1
        turn, done, iterator = self._turn, 0, None
        try:
            while done < len(mine):
                assert turn == self._turn, "a training loader yields one sequence at a time"
                try:
                    if iterator is None:
                        iterator = self._begin(epoch, chunks, mine[done:])
                    content, bad = workers.next_batch(iterator)
                except workers.WorkerLostError as error:
                    self._recover(error, iterator)
                    iterator = None
                    continue
                done += 1
                self._bad_images.add(bad)
                if content is None:
                    raise RuntimeError(
                        f"no image could be read in place of {bad[-1].path}; is the disk gone?"
                    )
                yield content
        finally:
            if iterator is not None and not self.persistent_workers:
                workers.stop(iterator)

    def _begin(self, epoch: int, chunks: Indices, numbers: range) -> Any:
        """Return torch's iterator over the chunks with these numbers."""
        self._pending.epoch, self._pending.chunks, self._pending.numbers = epoch, chunks, numbers
        if not self.persistent_workers:
            return workers.start(self)
        # mmdet's YOLOXModeSwitchHook removes the iterator so that worker processes restart.
        if self._iterator is None:
            self._iterator = workers.start(self)
        else:
            workers.restart(self._iterator, self)
        return self._iterator

    def _recover(self, error: workers.WorkerLostError, iterator: Any) -> None:
        """Stop all worker processes after one was lost; raise if it happens too often."""
        left = iterator if iterator is not None else self._iterator
        self._iterator = None
        if left is not None:
            workers.kill(left)
        self._losses += 1
        if self._losses > LOSSES_SURVIVED:
            raise RuntimeError(
                f"a worker process was lost {counted(self._losses, 'time[s]')}, last {error}; if"
                " memory or /dev/shm is short, lower data.train_dataloader.workers_per_gpu"
            ) from error
        log.warning(
            "a worker process was lost (%s); restarted at the same batch, number %d of %d",
            # Not the error itself: a stored log record would keep the loader and its processes
            # alive.
            str(error),
            self._losses,
            LOSSES_SURVIVED,
        )


class _NoSampler:
    """A dummy sampler for hooks: the order depends only on the seed and the epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Do nothing when mmcv's DistSamplerSeedHook calls it; `steps` gets the epoch's number."""


class _Pending:
    """A batch sampler for torch, with the chunks that the next iterator yields."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size, self.sampler = batch_size, _NoSampler()
        self.epoch = 0
        self.chunks: Indices = np.empty((0, 1), np.int64)
        self.numbers = range(0)

    def __iter__(self) -> Iterator[list[Draw]]:
        # Bind them now: torch may read from one iterator while the next one is being prepared.
        return _draws(self.epoch, self.chunks, self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)


def _draws(epoch: int, chunks: Indices, numbers: range) -> Iterator[list[Draw]]:
    width = chunks.shape[1]
    for number in numbers:
        indices = chunks[number].tolist()
        yield [Draw(epoch, number * width + i, index) for i, index in enumerate(indices)]
