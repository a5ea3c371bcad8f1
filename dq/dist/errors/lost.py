"""Readable messages for what backends report when another rank is gone or silent."""

from __future__ import annotations

import re

import torch.distributed as dist

# The texts of gloo and NCCL, collected by killing and stopping real ranks.
_LOST = re.compile(
    r"connection closed by peer|connection reset by peer|broken pipe|socket closed|connection"
    r" refused|remote process exited|ncclRemoteError|unhandled system error|failed to recv|software"
    r" caused connection abort|no route to host|network is unreachable",
    re.IGNORECASE,
)
_SILENT = re.compile(r"timed out|timeout|time out|application timeout", re.IGNORECASE)
_COLLECTIVE = re.compile(
    r"gloo|nccl|\bwait\b|collective|allreduce|\bstore\b|socket|backend|\[tcp", re.IGNORECASE
)
# Text that gloo adds: source locations before the reason, advice after it.
_PLACE = re.compile(r"^\[\S*\.(?:cc|cpp|h):\d+\]\s*")
_ADVICE = re.compile(r"\.?\s*This is typically caused.*", re.DOTALL)


class LostRankError(RuntimeError):
    """Another rank is gone or late; the message says so."""


def lost_store(error: BaseException, before: str = "") -> LostRankError:
    """Return the error for a store that is gone, together with the process that held it.

    Args:
        error: Raised by the store.
        before: What was to happen, as the beginning of the sentence.
    """
    return LostRankError(
        f"{before}the store on which ranks meet is gone: the process that held it (torchrun, else"
        f" rank 0) has ended, and its log says why ({reason(error)})"
    )


def explain_lost_rank(error: BaseException) -> str | None:
    """Return a sentence for an error caused by another rank's end or silence, None for others.

    Args:
        error: Raised by a collective or by the store.
    """
    # Backends raise exactly these two types; our own subclasses have their own messages.
    if type(error) is not RuntimeError and not isinstance(error, dist.DistError):
        return None
    text = str(error)
    if not _COLLECTIVE.search(text):
        return None
    first = reason(error)
    if _LOST.search(text):
        return (
            "another rank was lost during a collective: it was killed, or ended with an error of"
            f" its own, which its log names ({first})"
        )
    if _SILENT.search(text):
        return (
            "another rank did not answer in time: it hangs or is much slower; the stacks of all"
            f" ranks are next to their logs, and --timeout sets the limit ({first})"
        )
    return None


def reason(error: BaseException) -> str:
    """Return the first line of a backend's message, without source locations and advice."""
    first = " ".join(str(error).partition("\n")[0].split())
    return _ADVICE.sub("", _PLACE.sub("", first))
