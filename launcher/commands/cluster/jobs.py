"""``launcher jobs``: list submitted jobs and their state."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "list submitted jobs: state, nodes, elapsed time, last metrics, log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "chain", nargs="?", metavar="CHAIN", help="a chain or a job (default: the last N chains)"
    )
    parser.add_argument(
        "--last", type=int, default=5, metavar="N", help="list the last N chains (default 5)"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print a table of each chain and return 0.

    Raises:
        ValueError: There is no such chain, or the number of chains is below 1.
    """
    from slurm.measured import last_metrics
    from slurm.record import chains, find_chain
    from slurm.state import states

    if arguments.last < 1:
        raise ValueError(f"--last is {arguments.last}; give a whole number of at least 1")
    known = chains()
    if not known:
        print("nothing was submitted yet")
    chosen = [find_chain(arguments.chain, known)] if arguments.chain else known[-arguments.last :]
    for chain in chosen:
        print(f"{chain.name}  {chain.folder}")
        found = states(chain)
        rows = [("job", "what", "state", "nodes", "elapsed", "last metrics", "log")]
        for job in chain.jobs:
            state = found[job.job_id]
            log = chain.log(job, 0)
            where = str(log.relative_to(chain.folder)) if log.is_file() else ""
            what = job.label or job.name
            measured = last_metrics(Path(job.experiment), job.stage, job.before)
            rows.append((job.job_id, what, state.name, state.nodes, state.elapsed, measured, where))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print(f"  {'  '.join(cells).rstrip()}")
    return 0
