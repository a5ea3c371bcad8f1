"""The order of an epoch: the images of each chunk, and the chunks of each step.

A chunk is one micro-batch of one rank: ``samples_per_gpu`` images of one aspect ratio. A step of
the optimizer takes ``chunks_per_step`` of them, for any number of ranks: rank ``r`` of ``n`` takes
chunks ``r, r + n, ...`` of a step and accumulates their gradients. So the order, the steps of an
epoch and the images of each step do not depend on the number of ranks. A training can resume on any
number of ranks that divides ``chunks_per_step``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mmdet.datasets.samplers import ClassAwareSampler

from dq.counted import counted, form

Indices = np.ndarray[Any, np.dtype[np.int64]]


def chunks_of_epoch(
    flags: np.ndarray[Any, Any],
    epoch: int,
    *,
    samples_per_chunk: int,
    chunks_per_step: int,
    seed: int,
) -> Indices:
    """Return an epoch's images, shuffled, in chunks of images from the same group.

    As mmdet's GroupSampler does, a group's last chunk is filled up with images drawn from that
    group. The last step is filled up with the epoch's first chunks. NumPy may change its generators
    between versions, so resume a training with the same version.

    Args:
        flags: (num_samples,) group of each sample, such as mmdet's ``dataset.flag``.
        epoch: Counted from 0.
        samples_per_chunk: Samples in each chunk.
        chunks_per_step: The number of chunks is a multiple of this.
        seed: Not negative; seed and epoch determine the result.

    Returns:
        (num_chunks, samples_per_chunk) int64 indices; each sample occurs at least once.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    groups = []
    for group in np.unique(flags):
        members = generator.permutation(np.flatnonzero(flags == group))
        extra = generator.choice(members, -len(members) % samples_per_chunk)
        groups.append(np.concatenate([members, extra]).reshape(-1, samples_per_chunk))
    chunks = generator.permutation(np.concatenate(groups), axis=0)
    return _whole_steps(chunks, chunks_per_step)


def chunks_in_sequence(
    indices: Indices, *, samples_per_chunk: int, chunks_per_step: int
) -> Indices:
    """Return indices in chunks, in the given order; the end is filled up from the beginning.

    Args:
        indices: (num_samples,), for example from a sampler.
        samples_per_chunk: Samples in each chunk.
        chunks_per_step: The number of chunks is a multiple of this.

    Returns:
        (num_chunks, samples_per_chunk) int64.
    """
    width = samples_per_chunk * chunks_per_step
    total = -(-len(indices) // width) * width
    return np.resize(indices.astype(np.int64), total).reshape(-1, samples_per_chunk)


def class_aware_indices(sampler: ClassAwareSampler, epoch: int) -> Indices:
    """Return the indices of an epoch that mmdet's ClassAwareSampler draws for one rank."""
    sampler.set_epoch(epoch)
    return np.fromiter(sampler, dtype=np.int64, count=len(sampler))


def accumulation(chunks_per_step: int, world_size: int) -> int:
    """Return how many micro-batches each rank accumulates in a step.

    Raises:
        ValueError: The ranks cannot share a step evenly; the message lists possible numbers of
            ranks.
    """
    if chunks_per_step % world_size:
        fitting = [str(n) for n in range(1, chunks_per_step + 1) if chunks_per_step % n == 0]
        few = " or ".join(filter(None, [", ".join(fitting[:-1]), fitting[-1]]))
        raise ValueError(
            f"a step of this training takes {counted(chunks_per_step, 'micro-batch[es]')}, which"
            f" {counted(world_size, 'rank[s]')} cannot share evenly; start it on {few}"
            f" {form(int(few == '1'), 'rank[s]')}"
        )
    return chunks_per_step // world_size


def chunks_of_rank(
    num_chunks: int, *, chunks_per_step: int, rank: int, world_size: int, first_step: int = 0
) -> range:
    """Return the numbers of one rank's chunks in an epoch, starting at a step.

    Micro-batch ``a`` of step ``s`` is chunk ``s * chunks_per_step + a * world_size + rank``.
    """
    return range(first_step * chunks_per_step + rank, num_chunks, world_size)


def _whole_steps(chunks: Indices, chunks_per_step: int) -> Indices:
    total = -(-len(chunks) // chunks_per_step) * chunks_per_step
    return chunks[np.arange(total) % len(chunks)]
