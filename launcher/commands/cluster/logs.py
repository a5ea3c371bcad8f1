"""``launcher logs``: print the log of a rank of a submitted job."""

from __future__ import annotations

import argparse

HELP = "print or follow a submitted job's log, of rank 0 or another rank"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("job", metavar="JOB", help="a job number, or CHAIN:NAME, or a chain")
    parser.add_argument(
        "--rank", type=int, default=0, metavar="R", help="rank of the log (default 0)"
    )
    parser.add_argument("--follow", action="store_true", help="continue until the job has ended")


def run(arguments: argparse.Namespace) -> int:
    """Print the log and return 0.

    Raises:
        ValueError: There is no such job or rank.
    """
    from slurm.follow import await_begin, lines_of
    from slurm.record import chains, find_job
    from slurm.state import states

    chain, job = find_job(arguments.job, chains())
    if arguments.follow and not job.job_id:
        chain, job = await_begin(chain, job)
    if not job.job_id:
        raise ValueError(
            f"{job.name} of {chain.name} has not begun (it is {states(chain)[''].name}); wait for"
            " it with --follow"
        )
    if not 0 <= arguments.rank < job.tasks:
        raise ValueError(f"job {job.job_id} has ranks 0 to {job.tasks - 1}, not {arguments.rank}")
    path = chain.log(job, arguments.rank)
    follow = arguments.follow
    if not path.is_file() and not follow:
        state = states(chain)[job.job_id]
        raise ValueError(
            f"job {job.job_id} has not begun to write {path} (it is {state.name}); wait for it with"
            " --follow"
        )
    ended = (lambda: states(chain)[job.job_id].has_ended) if follow else None
    for text in lines_of(path, has_ended=ended):
        print(text, end="", flush=True)
    return 0
