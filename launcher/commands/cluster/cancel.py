"""``launcher cancel``: cancel the jobs of a submitted chain."""

from __future__ import annotations

import argparse

HELP = "cancel a submitted chain: its running job and its waiting jobs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("chain", metavar="CHAIN", help="its name, or the number of one of its jobs")


def run(arguments: argparse.Namespace) -> int:
    """Cancel the chain and return 0.

    Raises:
        ValueError: There is no such chain.
    """
    from slurm.record import chains, find_chain
    from slurm.state import cancel_chain

    chain = find_chain(arguments.chain, chains())
    cancelled = cancel_chain(chain)
    print(f"{chain.name}: cancelled {', '.join(cancelled)}" if cancelled else
          f"{chain.name}: all its jobs have ended already")  # fmt: skip
    return 0
