"""Readable messages for what backends report about a lost rank."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dq.dist.errors import lost
from dq.dist.errors.lost import LostRankError, explain_lost_rank, lost_store
from dq.dist.exchange import collectives
from tests.processes.ranks import rank_outcomes


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1", "lost"),
        ("[gloo/transport/tcp/pair.cc] Read error [127.0.0.1]: Connection reset by peer", "lost"),
        ("NCCL error in: x.cpp:1, remote process exited or there was a network error", "lost"),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms", "did not answer"),
        ("wait timeout after 300000ms, keys: /worker/1", "did not answer"),
    ],
)
def test_messages_of_backends(text: str, words: str) -> None:
    sentence = explain_lost_rank(RuntimeError(text))
    assert sentence is not None
    assert words in sentence


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"),
        ValueError("gloo: connection closed by peer"),
        RuntimeError("CUDA out of memory"),
        LostRankError("rank 1 gave no sign of life; the store may have timed out"),
    ],
)
def test_other_errors_keep_their_own_messages(error: Exception) -> None:
    assert explain_lost_rank(error) is None


def test_noise_of_backends_is_left_out() -> None:
    error = RuntimeError(
        "[/w/gloo/transport/tcp/pair.cc:545] Read error [127.0.0.1]: Connection reset by peer. This"
        " is typically caused by another rank's crash\nGLHF!"
    )
    sentence = explain_lost_rank(error)
    assert sentence is not None
    assert sentence.endswith("(Read error [127.0.0.1]: Connection reset by peer)")


def killed() -> str | None:
    collectives.barrier()
    try:
        # Before it has a connection, a rank would wait for the other until the time-out.
        dist.barrier()
        if collectives.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        dist.all_reduce(torch.ones(1))
    except RuntimeError as error:
        return explain_lost_rank(error)
    return "no error"


def test_a_killed_rank_is_called_lost() -> None:
    first, second = rank_outcomes(killed, 2)
    assert "another rank was lost" in first.result
    assert second.error is not None


def silent() -> str | None:
    group = dist.new_group([0, 1], timeout=timedelta(seconds=1.5))
    if collectives.rank() == 1:
        time.sleep(5)
        return None
    try:
        dist.all_reduce(torch.ones(1), group=group)
    except RuntimeError as error:
        return explain_lost_rank(error)
    return "no error"


@pytest.mark.slow
def test_a_silent_rank_is_called_silent() -> None:
    first, _ = rank_outcomes(silent, 2)
    assert "did not answer in time" in first.result


def test_a_lost_store_is_described_in_one_place() -> None:
    error = lost_store(RuntimeError("Connection reset by peer\nC++ frames"), "rank 3 waits, but ")
    assert str(error) == (
        "rank 3 waits, but the store on which ranks meet is gone: the process that held it"
        " (torchrun, else rank 0) has ended, and its log says why (Connection reset by peer)"
    )
    dist = Path(lost.__file__).parents[1]
    texts = {path: path.read_text() for path in dist.rglob("*.py")}
    assert [p.name for p, text in texts.items() if "which ranks meet is gone" in text] == [
        "lost.py"
    ]
