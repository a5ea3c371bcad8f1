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
_OF_SBATCH = "sbatch's option of this name"
# Names that a job can have: the stages of a chain, a sweep, and commands that are submitted alone.
STAGES = (
    *("float", "calibrate", "qat", "eval", "sweep", "train", "quantize", "analyze", "export"),
    *("bench", "init", "data", "coverage", "compare", "show", "watch", "sync", "doctor"),
    *("configs", "completion"),
)


def _option(default: Any, help_text: str, *, sbatch: str | None = None, least: int = 1) -> Any:
    """Return a field that ``launcher submit`` has as a flag.

    Args:
        default: Its value.
        help_text: For the flag.
        sbatch: Name of sbatch's option with the same value; None if the job's text is made from it
            in another way, see `slurm.text`.
        least: The smallest number.
    """
    metadata = {"help": help_text, "sbatch": sbatch, "least": least}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The resources and set-up of one kind of job; the keys of a profile's TOML file.

    Attributes:
        executor: ``slurm``; ``local`` runs here in processes of their own, ``debug`` in this one.
        partition: sbatch's option of that name.
        account: sbatch's option of that name.
        qos: sbatch's option of that name.
        constraint: sbatch's option of that name.
        exclusive: sbatch's option of that name: whole nodes.
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
        stages: Other values for single stages, ``[stages.calibrate]``: those of a chain (``float``,
            ``calibrate``, ``qat``, ``eval``), ``sweep``, or a command that is submitted alone.
    """

    executor: str = "slurm"
    partition: str | None = _option(None, _OF_SBATCH, sbatch="partition")
    account: str | None = _option(None, _OF_SBATCH, sbatch="account")
    qos: str | None = _option(None, _OF_SBATCH, sbatch="qos")
    constraint: str | None = _option(None, _OF_SBATCH, sbatch="constraint")
    exclusive: bool = False
    time: int | str = _option("24:00:00", "limit of one attempt: 90, 1:30:00, 1-12 (default a day)")
    nodes: int = _option(1, "how many (default 1)", sbatch="nodes")
    gpus_per_node: int = _option(0, "GPUs of a node, a rank each (default 0)", least=0)
    gpu_type: str | None = None
    tasks_per_node: int | None = _option(
        None, "ranks of a node where there are no GPUs (default 1)"
    )
    cpus_per_task: int | None = _option(None, "CPUs of a rank")
    mem_gb: int | None = _option(None, "memory of a node")
    signal_delay_s: int = _option(
        120, "how long before the limit ranks are warned, to write a checkpoint (120)", least=10
    )
    max_restarts: int = _option(
        20, "how often a job is started again, for whatever reason (default 20)", least=0
    )
    parallel: int = _option(4, "elements of a sweep at a time (default 4)")
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
        for each in fields(self):
            value, least = getattr(self, each.name), each.metadata.get("least")
            if least is None or value is None or "str" in str(each.type):
                continue
            if not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{each.name} is {value!r}; it must be a number of at least {least}"
                )
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
        if not values:
            return self
        _check_kind(values, "Mapping", f"stages.{name}")
        return _with(self, values, f"stages.{name}")


def flags() -> dict[str, tuple[type, str]]:
    """Return the type and help text of each field that ``launcher submit`` has as a flag."""
    return {
        each.name: (str if "str" in str(each.type) else int, each.metadata["help"])
        for each in fields(Profile)
        if "help" in each.metadata
    }


def sbatch_options(profile: Profile) -> dict[str, Any]:
    """Return the values that are sbatch's own and not its default, by sbatch's names."""
    found = {each.metadata.get("sbatch"): getattr(profile, each.name) for each in fields(profile)}
    return {name: value for name, value in found.items() if name and value is not None}


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
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"cluster profile {path} cannot be read: {error}") from error
    profile = _with(_with(Profile(), content, str(path)), given, "command line")
    for stage in profile.stages:
        if stage not in STAGES:
            raise ValueError(f"{path}: [stages.{stage}] is no stage; {hint(stage, STAGES)}")
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
    if isinstance(value, list | tuple):
        fits = fits and all(isinstance(each, str) for each in value)
    if not fits:
        in_toml = {"tuple": "list of texts", "Mapping": "table"}
        kinds = " or ".join(in_toml.get(name, name) for name in names)
        raise ValueError(f"{where} is {value!r}; it must be a {kinds}")
