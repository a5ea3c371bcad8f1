"""A request of one rank is acted on by all ranks after the same step."""

from __future__ import annotations

import queue
import threading
import time

import torch

from dq.dist.exchange import collectives
from dq.dist.watch.agreement import Agreement
from tests.processes.ranks import run_ranks

STEPS = 12


def ask_and_step(asking: list[tuple[int, int, str]], check_every: int) -> dict[str, list[int]]:
    """Run steps with a collective each; return the steps after which each request was due."""
    agreement = Agreement(check_every=check_every)
    due: dict[str, list[int]] = {}
    for step in range(1, STEPS + 1):
        for rank, at, what in asking:
            if (rank, at) == (collectives.rank(), step):
                agreement.ask(what, f"of rank {rank}")
        # Ranks read the store at different times after the collective.
        time.sleep(0.01 * ((collectives.rank() + step) % 3))
        collectives.all_reduce_(torch.ones(1))
        for what in agreement.due(step):
            due.setdefault(what, []).append(step)
    return due


def test_a_request_of_one_rank_is_due_on_all_after_the_same_step() -> None:
    got = run_ranks(ask_and_step, 3, [(1, 3, "stop")], 1)
    assert got == [{"stop": [4]}] * 3


def test_requests_of_several_ranks_are_all_met_once() -> None:
    got = run_ranks(ask_and_step, 3, [(0, 2, "save"), (2, 2, "save"), (1, 6, "stop")], 1)
    assert got == [{"save": [3], "stop": [7]}] * 3


def test_rare_checks_delay_all_ranks_alike() -> None:
    got = run_ranks(ask_and_step, 2, [(1, 2, "stop")], 4)
    assert got == [{"stop": [8]}] * 2


class Device:
    """Runs the collectives that a host queues later and in order, like a GPU's stream."""

    def __init__(self) -> None:
        self.queue: queue.Queue[threading.Event | None] = queue.Queue()
        self.done, self.former = 0, threading.Event()
        self.former.set()
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        while True:
            mark = self.queue.get()
            if mark is None:
                collectives.all_reduce_(torch.ones(1))
                self.done += 1
            else:
                mark.set()

    def pass_one(self) -> None:
        mark = threading.Event()
        self.queue.put(mark)
        assert self.former.wait(30)
        self.former = mark


def ask_and_run_ahead(asking: list[tuple[int, int]]) -> tuple[list[int], int]:
    """Queue steps; return those after which a stop was due, and the largest lead of the host."""
    device = Device()
    agreement = Agreement(marks=device)
    due, ahead = [], 0
    for step in range(1, STEPS + 1):
        device.queue.put(None)
        ahead = max(ahead, step - device.done)
        if (collectives.rank(), step) in asking:
            agreement.ask("stop")
            # The other ranks' hosts and devices have come as far as they can.
            time.sleep(0.3)
        due += [step] * len(agreement.due(step))
    assert device.former.wait(30)
    return due, ahead


def test_where_the_host_runs_ahead_of_its_device_a_request_takes_two_further_steps() -> None:
    for asking in ([(0, 3)], [(1, 3)], [(0, 4), (2, 4)]):
        got = run_ranks(ask_and_run_ahead, 3, asking)
        assert [due for due, _ in got] == [[asking[0][1] + 2]] * 3
        assert max(ahead for _, ahead in got) > 1


def test_alone_a_request_is_due_at_once_and_keeps_its_first_reason() -> None:
    agreement = Agreement()
    assert agreement.due(1) == {}
    agreement.ask("stop", "first")
    agreement.ask("stop", "second")
    assert agreement.due(2) == {"stop": "first"}
    assert agreement.due(3) == {}
