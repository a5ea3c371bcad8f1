from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from mmdet.core.hook import YOLOXModeSwitchHook

from dq.detector.loading.training_loader import TrainingLoader, training_loader
from dq.dist.exchange import collectives
from tests.conftest import ROOT
from tests.detector.small_set import built, config, content, mixed, names, section


def loader(digits: Path, *, kind: Any = section, **options: Any) -> TrainingLoader:
    own = {key: options.pop(key) for key in ("chunks_per_step", "max_bad") if key in options}
    return training_loader(config(**options), built(kind(digits)), seed=7, **own)


def flat(steps: Iterator[list[Any]]) -> list[Any]:
    return [content(batch) for batch in chain.from_iterable(steps)]


def workers() -> list[Any]:
    # mmdet's metrics leave process pools, which end when Python collects them.
    children = multiprocessing.active_children()
    return [child for child in children if child.daemon and "PoolWorker" not in child.name]


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    if workers():  # A loader may be part of a cycle. A collection takes long, so only if needed.
        gc.collect()
    assert workers() == []


@pytest.fixture
def copy(digits: Path, tmp_path: Path) -> Path:
    """The digits, to be damaged."""
    return Path(shutil.copytree(digits, tmp_path / "digits"))


@pytest.mark.parametrize("kind", [section, mixed])
def test_batches_are_the_same_from_any_number_of_workers(kind: Any, digits: Path) -> None:
    alone = flat(loader(digits, kind=kind).steps(1))
    assert len(alone) == 12
    assert len(set(map(str, alone))) == 12
    for number in (1, 3):
        assert flat(loader(digits, kind=kind, workers_per_gpu=number).steps(1)) == alone


@pytest.mark.parametrize("number", [0, 2])
def test_an_epoch_resumes_from_any_step(number: int, digits: Path) -> None:
    whole = loader(digits, workers_per_gpu=number, chunks_per_step=2)
    before = flat(whole.steps(1))
    for epoch, first in ((1, 4), (0, 1), (1, 6)):
        again = flat(loader(digits, workers_per_gpu=number, chunks_per_step=2).steps(epoch, first))
        assert again == flat(whole.steps(epoch))[2 * first :]
    assert flat(islice(whole.steps(1), 3)) == before[:6]
    assert flat(whole.steps(1)) == before


def test_a_step_has_the_same_images_on_any_number_of_ranks(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(world_size: int) -> list[list[Any]]:
        """Return for each step the micro-batches of all ranks."""
        monkeypatch.setattr(collectives, "world_size", lambda group=None: world_size)
        shares = []
        for rank in range(world_size):
            monkeypatch.setattr(collectives, "rank", lambda group=None, rank=rank: rank)
            own = loader(digits, samples_per_gpu=3, chunks_per_step=4)
            assert own.accumulate == 4 // world_size
            assert len(own) == 2
            shares.append([[content(batch) for batch in step] for step in own.steps(2)])
        steps = zip(*shares, strict=True)
        return [sorted(chain.from_iterable(step), key=str) for step in steps]

    assert run(1) == run(2) == run(4)


def test_steps_count_the_micro_batches_of_all_ranks(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda group=None: 2)
    settings = config(samples_per_gpu=3)
    settings.accumulate = 2
    own = training_loader(settings, built(section(digits)), seed=0)
    assert (own.chunks_per_step, own.accumulate, len(own)) == (4, 2, 2)
    assert [len(step) for step in own.steps(0)] == [2, 2]


def test_plain_iteration_yields_micro_batches_of_the_first_epoch(digits: Path) -> None:
    own = loader(digits, chunks_per_step=3)
    assert [content(batch) for batch in own] == flat(own.steps(0))


@pytest.mark.parametrize("persistent", [False, True])
def test_one_epoch_after_the_other(persistent: bool, digits: Path) -> None:
    own = loader(digits, workers_per_gpu=2, persistent_workers=persistent)
    plain = loader(digits)
    orders = []
    for epoch in range(3):
        steps = list(own.steps(epoch))
        assert flat(iter(steps)) == flat(plain.steps(epoch))
        orders.append([name for step in steps for name in names(step[0])])
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])
    assert orders[0] != orders[1] != orders[2]
    # Persistent worker processes restart at once, even in the middle of an epoch.
    assert flat(islice(own.steps(0), 2)) == flat(islice(plain.steps(0), 2))
    assert flat(own.steps(1, 9)) == flat(plain.steps(1, 9))


@pytest.mark.parametrize("number", [0, 2])
def test_the_generators_of_the_rank_are_restored(number: int, digits: Path) -> None:
    own = loader(digits, workers_per_gpu=number)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    list(own.steps(0))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    assert after == before


def test_images_come_in_the_data_sets_order_without_shuffle(digits: Path) -> None:
    listed = (digits / "ImageSets/Main/train.txt").read_text().split()
    own = loader(digits, samples_per_gpu=5, shuffle=False)
    seen = [name for step in own.steps(3) for name in names(step[0])]
    assert seen == listed + listed[:1]


def test_classes_take_turns_with_mmdets_class_aware_sampler(digits: Path) -> None:
    own = loader(digits, class_aware_sampler={"num_sample_class": 1})
    seen = [name for step in own.steps(0) for name in names(step[0])]
    assert len(seen) == 24
    assert len(set(seen)) < 24
    assert flat(own.steps(1, 3)) == flat(own.steps(1))[3:]


@pytest.mark.parametrize("persistent", [False, True])
def test_killed_processes_are_replaced_and_no_batch_is_lost(
    persistent: bool, digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = flat(loader(digits).steps(1)) + flat(loader(digits).steps(2))
    own = loader(digits, workers_per_gpu=2, persistent_workers=persistent)
    seen = []
    with caplog.at_level(logging.WARNING):
        for number, step in enumerate(chain(own.steps(1), own.steps(2))):
            seen += [content(batch) for batch in step]
            if number in (0, 7, 11):
                os.kill(workers()[0].pid, signal.SIGKILL)
                # The rank is busy when it happens, and must not be interrupted.
                until = time.monotonic() + 0.2
                while time.monotonic() < until:
                    torch.ones(10).sum()
    assert seen == expected
    lost = 3 if persistent else 2
    assert f"signal 9, Killed); restarted at the same batch, number {lost} of 3" in caplog.text
    assert len(caplog.records) == lost


def test_a_process_killed_while_the_rank_waits_for_its_batch_is_replaced(
    copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    expected = flat(loader(copy).steps(0))
    dataset = built(section(copy))
    once = copy / "once"

    def die_once(results: Any) -> Any:
        if not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return results

    dataset.pipeline.transforms.insert(0, die_once)
    own = training_loader(config(workers_per_gpu=2), dataset, seed=7)
    began = time.monotonic()
    assert flat(own.steps(0)) == expected
    assert time.monotonic() - began < 30
    assert "restarted at the same batch, number 1 of 3" in caplog.text


def test_a_process_that_is_killed_repeatedly_ends_the_run(
    digits: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = built(section(digits))
    dataset.pipeline.transforms.insert(0, lambda _: os.kill(os.getpid(), signal.SIGKILL))
    own = training_loader(config(workers_per_gpu=1), dataset, seed=7)
    said = r"^a worker process was lost 4 times, last process \d+: signal 9, Killed; if memory or"
    with pytest.raises(RuntimeError, match=said) as raised:
        next(own.steps(0))
    assert "\n" not in str(raised.value)
    assert len(caplog.records) == 3


def test_a_process_that_hangs_ends_the_run_after_the_timeout(digits: Path) -> None:
    dataset = built(section(digits))
    dataset.pipeline.transforms.insert(0, lambda _: time.sleep(600))
    own = training_loader(config(workers_per_gpu=1, timeout=1), dataset, seed=7)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="no worker process returned a batch") as raised:
        next(own.steps(0))
    assert "\n" not in str(raised.value)
    assert time.monotonic() - began < 20


LEFT_WITH_PROCESSES_AT_WORK = """
import os, signal, sys
from pathlib import Path
import dq.dist.watch.signals
dq.dist.watch.signals.ignore_first_sigterm = lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN)
from tests.detector.loading.test_training_loader import loader, workers
own = loader(Path(sys.argv[1]), workers_per_gpu=2, persistent_workers=True)
steps = own.steps(0)
next(steps)
print(*(worker.pid for worker in workers()))
os.kill(workers()[0].pid, signal.SIGSTOP)
"""


@pytest.mark.slow
def test_no_process_outlives_the_rank_or_blocks_it(digits: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEFT_WITH_PROCESSES_AT_WORK, str(digits)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )
    pids = done.stdout.split()
    assert len(pids) == 2
    assert not [pid for pid in pids if Path("/proc", pid).exists()]


def test_an_error_in_a_process_is_raised_unchanged(digits: Path) -> None:
    dataset = built(section(digits))

    def broken(results: Any) -> Any:
        raise KeyError("scale")

    dataset.pipeline.transforms.insert(2, broken)
    own = training_loader(config(workers_per_gpu=1), dataset, seed=7)
    with pytest.raises(KeyError, match="scale"):
        next(own.steps(0))


@pytest.mark.parametrize("number", [0, 2])
def test_images_that_vanish_are_named_once_and_the_epoch_continues(
    number: int, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = loader(copy, workers_per_gpu=number, max_bad=2)
    gone = sorted((copy / "JPEGImages").glob("train_*"))[4:6]
    gone[0].unlink()
    gone[1].write_bytes(b"no image")
    seen = [name for epoch in (0, 1) for step in own.steps(epoch) for name in names(step[0])]
    assert len(seen) == 48
    assert not {path.stem for path in gone} & set(seen)
    told = sorted(record.getMessage() for record in caplog.records)
    assert len(told) == 2
    assert f"image {gone[0]} cannot be read: No such file or directory; others take its" in told[0]
    assert f"image {gone[1]} cannot be read: it is not an image; others take its place" in told[1]
    assert "(bad image 2, 2 allowed)" in "".join(told)


@pytest.mark.parametrize("number", [0, 2])
@pytest.mark.parametrize("max_bad", [0, 3])
def test_too_many_bad_images_end_the_run(
    number: int, max_bad: int, copy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own = loader(copy, workers_per_gpu=number, max_bad=max_bad)
    for path in sorted((copy / "JPEGImages").glob("train_*"))[: max_bad + 1]:
        path.unlink()
    with pytest.raises(ValueError, match="repair it or remove it from the image list") as raised:
        list(own.steps(0))
    assert "\n" not in str(raised.value)
    assert str(copy / "JPEGImages") in str(raised.value)
    assert len(caplog.records) == max_bad


def test_with_bad_images_batches_do_not_depend_on_workers(copy: Path) -> None:
    for path in sorted((copy / "JPEGImages").glob("train_*"))[:5]:
        path.write_bytes(b"")
    own = [loader(digits, workers_per_gpu=number) for digits, number in ((copy, 0), (copy, 3))]
    assert flat(own[0].steps(0)) == flat(own[1].steps(0))


def test_a_disk_that_is_gone_ends_the_run(copy: Path) -> None:
    own = loader(copy, workers_per_gpu=1, max_bad=100)
    shutil.rmtree(copy / "JPEGImages")
    with pytest.raises(
        RuntimeError, match=r"no image could be read in place of .*is the disk gone"
    ):
        next(own.steps(0))


@pytest.mark.parametrize("persistent", [False, True])
def test_mmdets_yolox_hook_switches_mosaic_off(persistent: bool, digits: Path) -> None:
    own = loader(digits, kind=mixed, workers_per_gpu=2, persistent_workers=persistent)
    runner = SimpleNamespace(
        data_loader=own,
        max_epochs=3,
        model=torch.nn.Module(),
        logger=logging.getLogger("test"),
    )
    runner.model.bbox_head = SimpleNamespace(use_l1=False)
    hook = YOLOXModeSwitchHook(num_last_epochs=1)
    seen = []
    for runner.epoch in range(3):
        hook.before_train_epoch(runner)
        seen.append(flat(own.steps(runner.epoch)))
    # It acts when this number of epochs is left after the one that begins.
    plain = loader(digits, kind=mixed)
    mosaic = [flat(plain.steps(epoch)) for epoch in range(3)]
    plain.dataset.update_skip_type_keys(["Mosaic", "RandomAffine", "MixUp"])
    without = [flat(plain.steps(epoch)) for epoch in range(3)]
    assert seen == [mosaic[0], without[1], without[2]]
    assert without[1] != mosaic[1]
    assert runner.model.bbox_head.use_l1


def test_processes_use_one_thread_and_ignore_the_ranks_signals(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cv2

    from dq.dist.watch import signals

    spared: list[bool] = []
    monkeypatch.setattr(signals, "ignore_first_sigterm", lambda: spared.append(True))
    dataset = built(section(digits))

    def report(results: Any) -> Any:
        assert spared == [True]
        assert (cv2.getNumThreads(), torch.get_num_threads()) == (1, 1)
        return results

    dataset.pipeline.transforms.insert(0, report)
    own = training_loader(config(workers_per_gpu=1), dataset, seed=7)
    assert len(flat(own.steps(0))) == 12
    assert spared == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"sample_per_gpu": 2}, "sample_per_gpu is not a setting; did you mean samples_per_gpu"),
        ({"samples_per_gpu": 0}, "samples_per_gpu is 0; give a number from 1 up"),
        ({"workers_per_gpu": -1}, "workers_per_gpu is -1; give a number from 0 up"),
        ({"workers_per_gpu": 1, "prefetch_factor": 0}, "prefetch_factor is 0; give a number from"),
        ({"timeout": "long"}, "timeout is 'long'; give a number from 0 up"),
        ({"class_aware_sampler": {"num_sample": 1}}, "did you mean num_sample_class"),
        ({"class_aware_sampler": True}, r"is True; use dict\(num_sample_class=1\)"),
        ({"workers_per_gpu": 1, "multiprocessing_context": "thread"}, "valid start method"),
        ({"chunks_per_step": 0}, "chunks_per_step is 0"),
    ],
)
def test_invalid_options_are_refused(options: dict[str, Any], said: str, digits: Path) -> None:
    with pytest.raises(ValueError, match=said):
        loader(digits, **options)


@pytest.mark.parametrize("accumulate", [0, -1, 1.5, True, "2"])
def test_accumulate_is_a_number(accumulate: Any, digits: Path) -> None:
    settings = config()
    settings.accumulate = accumulate
    with pytest.raises(ValueError, match=r"accumulate is .*; give a number from 1 up"):
        training_loader(settings, built(section(digits)), seed=7)


def test_ranks_that_cannot_share_a_step_are_refused(
    digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collectives, "world_size", lambda group=None: 3)
    with pytest.raises(ValueError, match="start it on 1, 2 or 4 ranks"):
        loader(digits, chunks_per_step=4)


def test_options_of_worker_processes_have_no_effect_without_them(digits: Path) -> None:
    own = loader(digits, persistent_workers=True, prefetch_factor=4, timeout=3)
    assert len(flat(own.steps(0))) == 12
