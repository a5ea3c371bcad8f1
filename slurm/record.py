"""The record of a submission next to its logs; `slurm.index` lists all records of the user."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dq.whole_file import write_whole
from slurm.index import add_to_index, indexed_folders
from slurm.measured import result_digests
from slurm.plan import Element, Job

log = logging.getLogger(__name__)
FILE_NAME = "chain.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """A job, or one element of an array, that was submitted.

    Attributes:
        job_id: The scheduler's number; ``12_3`` for an element of an array; empty before a local
            job starts.
        name: Name of the job within its chain.
        label: Label of the element, empty outside of arrays.
        words: The launcher's command line.
        experiment: Folder that it works in.
        stage: Subfolder of its results; empty if there are several.
        tasks: Number of tasks, each with a log.
        before: The earlier results in its folder; see `slurm.measured.result_digests`.
    """

    job_id: str
    name: str
    label: str
    words: tuple[str, ...]
    experiment: str
    stage: str
    tasks: int
    before: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Jobs that were submitted together.

    Attributes:
        name: Its name for users.
        executor: ``slurm`` or ``local``.
        folder: Folder of snapshot, logs and this record.
        created: Seconds since 1970.
        jobs: In the order of their start.
        process: The process that runs them, on this machine; see `slurm.own_process`.
    """

    name: str
    executor: str
    folder: str
    created: float
    jobs: tuple[Submitted, ...]
    process: str = ""

    def log(self, job: Submitted, rank: int) -> Path:
        """Return the file with the output of a rank."""
        return Path(self.folder, "jobs", f"{job.job_id}_{rank}_log.out")


def recorded(job_id: str, job: Job, element: Element, tasks: int) -> Submitted:
    """Return the record of a job, or of an element of an array.

    Args:
        job_id: The scheduler's number.
        job: The job.
        element: The element of the job.
        tasks: Number of tasks, each with a log.
    """
    return Submitted(
        job_id=job_id,
        name=job.name,
        label=element.label,
        words=element.words,
        experiment=str(element.experiment),
        stage=element.stage,
        tasks=tasks,
        before=result_digests(element.experiment, element.stage),
    )


def keep(chain: Chain) -> None:
    """Write the chain's record, and its folder into the index unless it is there already.

    Jobs run without the index too, so a chain that cannot be listed is only a warning.
    """
    folder = Path(chain.folder)
    write_whole(folder / FILE_NAME, json.dumps(asdict(chain), indent=1))
    try:
        add_to_index(chain.folder)
    except (OSError, RuntimeError) as error:
        log.warning("`launcher jobs` will not list %s: %s", chain.name, error)


def chains() -> list[Chain]:
    """Return all chains whose record is still there, oldest first.

    Raises:
        RuntimeError: The user has no home folder, where the index is.
    """
    found = []
    for line in indexed_folders():
        try:
            content = json.loads(Path(line, FILE_NAME).read_text())
            jobs = tuple(Submitted(**{**j, "words": tuple(j["words"])}) for j in content["jobs"])
            found.append(Chain(**{**content, "jobs": jobs}))
        except (OSError, ValueError, TypeError, KeyError):
            continue  # The experiment was removed together with its record.
    return sorted(found, key=lambda chain: chain.created)


def find_chain(name: str, among: Sequence[Chain]) -> Chain:
    """Return the chain with this name, or the one that has a job with this number.

    Raises:
        ValueError: There is none.
    """
    for chain in reversed(among):
        numbers = {job.job_id for job in chain.jobs if job.job_id}
        if name == chain.name or name in numbers | {n.split("_")[0] for n in numbers}:
            return chain
    known = ", ".join(chain.name for chain in among[-5:]) or "none"
    raise ValueError(
        f"{name} is neither a chain nor a job that was submitted from here; the latest chains:"
        f" {known}"
    )


def find_job(name: str, among: Sequence[Chain]) -> tuple[Chain, Submitted]:
    """Return a job by its number, by ``CHAIN:JOB`` or, if a chain has only one, by the chain.

    Raises:
        ValueError: There is none, or several.
    """
    chain_name, _, job_name = name.partition(":")
    chain = find_chain(chain_name, among)
    fitting = [
        job
        for job in chain.jobs
        if name == job.job_id or (job_name and job_name in (job.name, job.label))
    ]
    if not fitting and not job_name:
        fitting = list(chain.jobs)
    if len(fitting) == 1:
        return chain, fitting[0]
    names = ", ".join(
        f"{job.job_id} ({job.label or job.name})" if job.job_id else f"{chain.name}:{job.name}"
        for job in chain.jobs
    )
    raise ValueError(f"{name} does not name one job; give one of {names}")


def new_name(stem: str, folder: Path) -> str:
    """Return an unused chain name in ``folder``: the experiment's and the time."""
    base = f"{stem}-{time.strftime('%m%d-%H%M%S')}"
    name, number = base, 1
    while (folder / name).exists():
        number += 1
        name = f"{base}-{number}"
    return name
