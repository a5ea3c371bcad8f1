"""A cluster profile: options for sbatch, set-up of a job, number of restarts."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from dq.names import hint
from slurm.time_limit import minutes_of

FOLDER = Path(__file__).parent / "profiles"
EXECUTORS = ("slurm", "local", "debug")
# Slurm checks limits every 30 s, and a rank needs about as long until it handles signals.
START_UP_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The resources and set-up of one kind of job; the keys of a profile's TOML file.

    Attributes:
        executor: ``slurm``; ``local`` runs here in processes of their own, ``debug`` in this one.
        partition: sbatch's option of that name, like all others up to ``exclusive``.
        time: Limit of one attempt, in minutes or in Slurm's notation.
        nodes: Number of nodes.
        gpus_per_node: GPUs, and also ranks unless ``tasks_per_node`` is set.
        gpu_type: As in ``--gpus-per-node=a100:8``.
        tasks_per_node: Ranks on a node.
        cpus_per_task: CPUs of a rank, including its loader processes.
        mem_gb: Memory of a node.
        signal_delay_s: Seconds before the time limit at which the ranks are warned.
        max_restarts: How often a job may be restarted, for any reason.
        parallel: How many elements of an array run at a time.
        torchrun: Start one torchrun on each node instead of one task per rank.
        setup: Shell lines before the job starts: modules, conda.
        python: The interpreter in the job; default: the one that submits.
        container: An image for srun's ``--container-image`` (enroot with pyxis).
        container_mounts: For ``--container-mounts``.
        srun: More options of srun.
        sbatch: More options of sbatch, ``{reservation = "night"}``.
        environment: Variables of the job.
        stages: Other values for single stages: ``[stages.calibrate]``.
    """

    executor: str = "slurm"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclusive: bool = False
    time: int | str = "24:00:00"
    nodes: int = 1
    gpus_per_node: int = 0
    gpu_type: str | None = None
    tasks_per_node: int | None = None
    cpus_per_task: int | None = None
    mem_gb: int | None = None
    signal_delay_s: int = 120
    max_restarts: int = 20
    parallel: int = 4
    torchrun: bool = False
    setup: tuple[str, ...] = ()
    python: str | None = None
    container: str | None = None
    container_mounts: tuple[str, ...] = ()
    srun: tuple[str, ...] = ()
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    stages: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.executor not in EXECUTORS:
            raise ValueError(f"executor {self.executor!r} is not known; use {', '.join(EXECUTORS)}")
        least = {"nodes": 1, "gpus_per_node": 0, "max_restarts": 0, "parallel": 1}
        least |= {"tasks_per_node": 1, "cpus_per_task": 1, "mem_gb": 1, "signal_delay_s": 10}
        for name, minimum in least.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < minimum):
                raise ValueError(f"{name} is {value!r}; it must be a number of at least {minimum}")
        if self.minutes * 60 <= self.signal_delay_s + START_UP_S:
            raise ValueError(
                f"time is {self.minutes} min, of which the last {self.signal_delay_s} s follow the"
                " warning: the signal would strike a job that is still starting; give more --time"
                " or a shorter --signal-delay-s"
            )

    @property
    def minutes(self) -> int:
        """Return the time limit in minutes."""
        return minutes_of(self.time)

    @property
    def ranks_per_node(self) -> int:
        """Return the number of ranks on a node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    def alone(self) -> Profile:
        """Return the same for one rank, with at most one GPU."""
        gpus = min(1, self.gpus_per_node)
        return replace(self, nodes=1, gpus_per_node=gpus, tasks_per_node=1, torchrun=False)

    def of_stage(self, name: str) -> Profile:
        """Return the same with the values of ``[stages.NAME]``."""
        values = self.stages.get(name)
        return self if not values else _with(self, values, f"stages.{name}")


def read_profile(name: str | None, overrides: Mapping[str, Any]) -> Profile:
    """Return a cluster profile, overridden by the command line.

    Args:
        name: A TOML file, the name of a profile of this package (``a100``), ``local``, ``debug``,
            or None for sbatch's own defaults.
        overrides: Keyed by the fields of `Profile`; None for options that were not given.

    Raises:
        ValueError: There is no such profile, or it has an unknown key or a wrong value.
    """
    given = {key: value for key, value in overrides.items() if value is not None}
    if name in (None, "local", "debug"):
        return _with(Profile(executor=name or "slurm"), given, "command line")
    path = Path(str(name))
    if not path.is_file() and (FOLDER / f"{name}.toml").is_file():
        path = FOLDER / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(["local", "debug", *sorted(p.stem for p in FOLDER.glob("*.toml"))])
        raise ValueError(f"--cluster {name} is neither a file nor one of {known}")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"cluster profile {path} cannot be read: {error}") from error
    profile = _with(_with(Profile(), content, str(path)), given, "command line")
    for stage in profile.stages:
        profile.of_stage(stage)  # Report a mistake in it now, not when its stage starts.
    return profile


def _with(profile: Profile, values: Mapping[str, Any], where: str) -> Profile:
    known = {f.name: f.type for f in fields(Profile)}
    for key, value in values.items():
        if key not in known:
            raise ValueError(
                f"{where}: {key} is not a setting of a cluster profile; {hint(key, known)}"
            )
        _check_kind(value, str(known[key]), f"{where}: {key}")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return replace(profile, **values)


def _check_kind(value: object, kind: str, where: str) -> None:
    wanted = {"tuple": (list, tuple), "Mapping": Mapping, "bool": bool, "str": str, "int": int}
    names = [name for name in wanted if name in kind.partition("[")[0]]
    # A bool is an int in Python, but not in a profile.
    fits = any(
        isinstance(value, wanted[n]) and not (n == "int" and isinstance(value, bool))  # type: ignore[arg-type]
        for n in names
    )
    if not fits:
        raise ValueError(f"{where} is {value!r}; it must be a {' or '.join(names)}")
