"""The result of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a check has found.

    Attributes:
        status: `OK`; `WARN` if something is slower or missing; `FAIL` if nothing can train.
        said: What is there, on one line.
        mend: What to do; empty if nothing.
    """

    status: str
    said: str
    mend: str = ""

    def line(self, name: str) -> str:
        """Return it as a line, with the name of its check."""
        return f"{self.status:<4}  {name:<10}  {'; '.join(filter(None, (self.said, self.mend)))}"


# A check may raise anything; its exception is a `FAIL`.
Check = Callable[[], Finding]


def good(said: str) -> Finding:
    """Return the finding that a part works."""
    return Finding(status=OK, said=said)


def warning(said: str, mend: str) -> Finding:
    """Return the finding that a part is missing or slow that training can do without."""
    return Finding(status=WARN, said=said, mend=mend)


def failure(said: str, mend: str) -> Finding:
    """Return the finding that a part is missing or broken that every training needs."""
    return Finding(status=FAIL, said=said, mend=mend)
