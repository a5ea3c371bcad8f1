from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dq.detector.loading.epoch_order import (
    accumulation,
    chunks_in_sequence,
    chunks_of_epoch,
    chunks_of_rank,
    class_aware_indices,
)

FLAGS = st.lists(st.integers(0, 2), min_size=1, max_size=60).map(lambda v: np.array(v, np.uint8))
WIDTH = st.integers(1, 5)
STEP = st.integers(1, 8)


@settings(max_examples=60, deadline=None)
@given(flags=FLAGS, width=WIDTH, step=STEP, seed=st.integers(0, 2**40), epoch=st.integers(0, 99))
def test_an_epoch_has_every_sample_in_whole_chunks_of_one_group(
    flags: np.ndarray, width: int, step: int, seed: int, epoch: int
) -> None:
    chunks = chunks_of_epoch(flags, epoch, samples_per_chunk=width, chunks_per_step=step, seed=seed)
    sizes = np.bincount(flags)
    enough = sum(-(-size // width) for size in sizes)
    assert chunks.shape == (-(-enough // step) * step, width)
    assert set(chunks.ravel()) == set(range(len(flags)))
    assert (flags[chunks] == flags[chunks][:, :1]).all()
    # Without the repeated chunks, only a group's last chunk has a sample twice.
    counts = np.bincount(chunks[:enough].ravel(), minlength=len(flags))
    assert (counts - 1).sum() == sum(-size % width for size in sizes)


def test_seed_and_epoch_decide_the_order() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        flags = np.arange(40) % 2
        return chunks_of_epoch(
            flags, epoch, samples_per_chunk=4, chunks_per_step=2, seed=seed
        ).tolist()

    assert order(5, 3) == order(5, 3)
    assert len({str(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_the_order_of_a_seed_stays() -> None:
    """A training that resumes, and one that is repeated, see the same images again."""
    flags = np.array([0, 1, 0, 1, 1, 0, 0, 0], np.uint8)
    chunks = chunks_of_epoch(flags, 3, samples_per_chunk=2, chunks_per_step=3, seed=5)
    assert chunks.tolist() == [[7, 2], [3, 4], [6, 0], [5, 7], [1, 4], [7, 2]]
    chunks = chunks_of_epoch(flags, 0, samples_per_chunk=3, chunks_per_step=1, seed=0)
    assert chunks.tolist() == [[0, 2, 5], [1, 3, 4], [5, 7, 6]]


@settings(max_examples=60, deadline=None)
@given(num_steps=st.integers(1, 9), step=STEP, first=st.integers(0, 8))
def test_a_step_has_the_same_chunks_on_any_number_of_ranks(
    num_steps: int, step: int, first: int
) -> None:
    first = min(first, num_steps)
    for world_size in (n for n in range(1, step + 1) if step % n == 0):
        shares = [
            chunks_of_rank(
                num_steps * step,
                chunks_per_step=step,
                rank=rank,
                world_size=world_size,
                first_step=first,
            )
            for rank in range(world_size)
        ]
        each = accumulation(step, world_size)
        assert all(len(share) == (num_steps - first) * each for share in shares)
        for s in range(num_steps - first):
            taken = [n for share in shares for n in share[s * each : (s + 1) * each]]
            assert sorted(taken) == list(range((first + s) * step, (first + s + 1) * step))


@given(count=st.integers(1, 50), width=WIDTH, step=STEP)
def test_a_sequence_is_cut_in_order_and_filled_up_from_its_beginning(
    count: int, width: int, step: int
) -> None:
    chunks = chunks_in_sequence(np.arange(count), samples_per_chunk=width, chunks_per_step=step)
    assert len(chunks) % step == 0
    assert 0 <= chunks.size - count < width * step
    assert chunks.ravel().tolist() == [i % count for i in range(chunks.size)]


def test_classes_take_turns_as_in_mmdets_sampler() -> None:
    from mmdet.datasets.samplers import ClassAwareSampler

    class Labelled:
        """90 images of class 0 and 10 of class 1."""

        def __len__(self) -> int:
            return 100

        def get_cat2imgs(self) -> dict[int, list[int]]:
            return {0: list(range(90)), 1: list(range(90, 100))}

    sampler = ClassAwareSampler(Labelled(), 4, 1, 0, 7)
    drawn = class_aware_indices(sampler, 2)
    assert (drawn >= 90).sum() == 50
    assert drawn.tolist() == class_aware_indices(sampler, 2).tolist()
    assert drawn.tolist() != class_aware_indices(sampler, 3).tolist()


@pytest.mark.parametrize(
    ("step", "ranks", "said"),
    [
        (4, 3, "takes 4 micro-batches, which 3 ranks cannot share evenly; start it on 1, 2 or 4 r"),
        (1, 2, "takes 1 micro-batch, which 2 ranks cannot share evenly; start it on 1 rank"),
        (2, 4, "start it on 1 or 2 ranks"),
    ],
)
def test_ranks_that_cannot_share_a_step_get_a_list_of_possible_numbers(
    step: int, ranks: int, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        accumulation(step, ranks)
