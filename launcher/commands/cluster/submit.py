"""``launcher submit``: run a command, the whole chain or a grid of chains as Slurm jobs."""

from __future__ import annotations

import argparse
import importlib.util
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dq.names import hint
from dq.shipped import located
from dq.whole_file import FULL
from launcher.command_line.arguments import add_checkpoint, add_control, add_shared, add_training
from launcher.command_line.forwarded import forwarded
from launcher.failure import DEBUG
from launcher.output import output_may_fail
from slurm.profile import flags, read_profile

HELP = "run a command, the whole chain (`run`) or a grid (`sweep`) on Slurm, or here as Slurm would"


HELP_OF_SWEEP = "run every config with every preset and seed, as an array of jobs"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--cluster",
        metavar="FILE.toml|NAME",
        help="cluster profile: a file, or gpu, a100 or h100 (included), local (on this machine, in"
        " separate processes), debug (in this process)",
    )
    for name, (kind, help_text) in flags().items():
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X",
            help=help_text,
        )  # fmt: skip
    parser.add_argument(
        "--torchrun", action="store_true", default=None,
        help="start one torchrun per node instead of one task per rank",
    )  # fmt: skip
    parser.add_argument("--group", metavar="NAME", help="group in W&B (default: the chain's name)")
    parser.add_argument(
        "--include", metavar="PATH", action="append", default=[],
        help="add a module or package that the config imports to the snapshot of the code",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print the job scripts; submit and write nothing"
    )
    parser.add_argument("job", metavar="COMMAND", help="a command of the launcher, or `sweep`")
    parser.add_argument(
        "words", metavar="...", nargs=argparse.REMAINDER, help="its own arguments, CONFIG first"
    )


def add_sweep(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``submit sweep``."""
    parser.add_argument("configs", metavar="CONFIG", nargs="+", help="mmdet 2.x config files")
    parser.add_argument(
        "--presets", nargs="+", default=[], metavar="NAME", help="presets of each: int8 w4a8 ..."
    )
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], metavar="N", help="seeds of each (default 0)"
    )
    add_shared(parser)
    add_checkpoint(parser, what="a float checkpoint for all", required=False)
    add_training(parser)
    add_control(parser)
    parser.add_argument(DEBUG, action="store_true", help="print the traceback of an error")


def run(arguments: argparse.Namespace) -> int:
    """Check the command, copy code and configs, submit the jobs; return the exit code."""
    # The jobs go on, here or on the cluster, if this command's output can no longer be written.
    with output_may_fail():
        return _submit(arguments)


def _submit(arguments: argparse.Namespace) -> int:
    from slurm.here import run_here, run_in_process
    from slurm.submission import need_slurm, submit
    from slurm.text import job_text

    overrides = {name: getattr(arguments, name) for name in (*flags(), "torchrun")}
    profile = read_profile(arguments.cluster, overrides)
    order = _order(arguments)
    for line in _check(order):
        print(line)
    jobs, place = _compose(arguments, order, profile)
    if arguments.dry_run:
        for job in jobs:
            print(f"# ---- {job.name}" + (f", after {job.after}" if job.after else ""))
            for element in job.elements:
                print(f"# launcher {shlex.join(element.words)}")
            print(job_text(job, place, f"<job of {job.after}>" if job.after else None))
        return 0
    if profile.executor == "slurm":
        need_slurm()
    while not _reserved(place.folder):
        # Another submission has taken this name in the meantime, so try the next one.
        jobs, place = _compose(arguments, order, profile)
    with _removed_unless_submitted(place.folder):
        _write(arguments, order, jobs, place)
        chain = submit(jobs, place) if profile.executor == "slurm" else None
    if chain is None:
        start = run_in_process if profile.executor == "debug" else run_here
        return start(jobs, place)
    for submitted in chain.jobs:
        print(f"{submitted.label or submitted.name:<12} job {submitted.job_id}")
    print(f"chain        {chain.name}  (launcher jobs, logs JOB, cancel {chain.name})")
    print(f"logs         {place.jobs}")
    return 0


class _Order:
    """The command to submit, parsed.

    Attributes:
        name: The command, or ``sweep``.
        words: Its arguments.
        parsed: Its arguments, parsed by its own parser.
        configs: The configs in its arguments.
        experiment: Absolute path of its work dir.
    """

    def __init__(self, name: str, words: list[str], parsed: argparse.Namespace) -> None:
        self.name, self.words, self.parsed = name, words, parsed
        single = [parsed.config] if getattr(parsed, "config", None) else []
        self.configs: list[str] = list(getattr(parsed, "configs", single))
        stem = Path(self.configs[0]).stem if self.configs else name
        default = Path("runs") / ("sweep" if name == "sweep" else stem)
        given = getattr(parsed, "work_dir", None) or _work_dir_of(parsed)
        self.experiment = Path(given or default).absolute()


def _work_dir_of(parsed: argparse.Namespace) -> str | None:
    """Return the ``work_dir`` of ``--cfg-options`` or of the config, or None."""
    for option in getattr(parsed, "cfg_options", None) or []:
        if option.startswith("work_dir="):
            return str(option.partition("=")[2])
    if not getattr(parsed, "config", None):
        return None
    from slurm.copies.config_files import check_config, literal_setting

    check_config(Path(parsed.config))
    return literal_setting(Path(parsed.config), "work_dir")


def _order(arguments: argparse.Namespace) -> _Order:
    from launcher.cli import COMMANDS, Parser, parse

    name, words = arguments.job, list(arguments.words)
    if name == "sweep":
        parser = Parser(prog="launcher submit sweep", allow_abbrev=False)
        add_sweep(parser)
        parsed = parser.parse_args(words)
        parsed.configs = [located(config) for config in parsed.configs]
        return _Order(name, words, parsed)
    able = [c for c in COMMANDS if c not in ("submit", "jobs", "logs", "cancel")]
    if name not in able:
        raise ValueError(f"submit {name} is not possible; {hint(name, [*able, 'sweep'])}")
    parsed = parse([name, *words])
    return _Order(name, list(parsed.command_line[1:]), parsed)


def _check(order: _Order) -> list[str]:
    """Check configs and checkpoint before submitting.

    Returns:
        Lines about what could not be checked here.

    Raises:
        ValueError: A config or a checkpoint is wrong or missing.
    """
    from slurm.copies.config_files import check_config

    given = getattr(order.parsed, "checkpoint", None) or []
    for checkpoint in [given] if isinstance(given, str) else given:
        if not Path(checkpoint).is_file():
            raise ValueError(f"checkpoint {checkpoint} does not exist")
    if len({Path(config).stem for config in order.configs}) < len(order.configs):
        raise ValueError("two configs of a sweep have the same name; rename one")
    if not order.configs:
        return []
    for config in order.configs:
        check_config(Path(config))
    if any(importlib.util.find_spec(name) is None for name in ("torch", "mmcv", "mmdet")):
        return [
            "note: torch and mmdet are not installed here; it was checked that the config and its"
            " bases exist and are valid Python; its settings are checked when the job starts"
        ]
    for config in order.configs:
        for preset in getattr(order.parsed, "presets", None) or [None]:
            _read(order, config, preset)
    return []


def _read(order: _Order, config: str, preset: str | None) -> None:
    from dq.detector.data.datasets import test_classes
    from dq.detector.model.build import build_model
    from launcher.plan import read_plan

    options = [*order.parsed.cfg_options, *([f"quant.preset={preset}"] if preset else [])]
    seed = getattr(order.parsed, "seed", None)
    plan = read_plan(argparse.Namespace(config=config, cfg_options=options, seed=seed))
    # Building the model checks the types and arguments of its modules; it needs no data.
    build_model(plan.config, test_classes(plan.config), initialise=False)


def _compose(arguments: argparse.Namespace, order: _Order, profile: Any) -> tuple[list[Any], Any]:
    """Return the jobs and their folders; nothing is written."""
    from slurm import plan
    from slurm.record import new_name
    from slurm.text import Place, check_place

    submissions = order.experiment / "submissions"
    name = new_name(order.experiment.name, submissions)
    debug = profile.executor == "debug"
    place = Place(
        chain=name,
        folder=submissions / name,
        cwd=Path.cwd(),
        group=arguments.group or name,
        snapshot=not debug,
    )
    check_place(place)
    copies = {config: _copy_of(config, place, debug) for config in order.configs}
    if order.name == "sweep":
        jobs = _sweep(order, copies, profile, plan)
    elif order.name == "run":
        jobs = _chain(order, copies, profile, plan)
    else:
        words = _with_copy(order, copies)
        jobs = plan.single([order.name, *words], order.experiment, profile)
    return jobs, place


def _copy_of(config: str, place: Any, debug: bool) -> str:
    path = Path(config)
    return config if debug else str(place.folder / "config" / path.stem / path.name)


def _with_copy(order: _Order, copies: dict[str, str]) -> list[str]:
    words = [copies.get(word, word) for word in order.words]
    if order.configs and order.parsed.work_dir is None:
        words += ["--work-dir", str(order.experiment)]
    return words


# Arguments that the plan of a chain or a sweep sets itself.
_PLANNED = ("help", "work_dir", "checkpoint", "fresh", "reuse", "table")
# Only QAT has several ranks of which one calibrates. The calibration job has one rank, and stages
# may have different numbers of ranks.
_OF_QAT = ("calibration_rank",)


def _options_for(given: argparse.Namespace, *commands: str, without: Sequence[str]) -> Any:
    """Return the options to forward to each of the commands, by command."""
    from launcher.cli import build_parsers

    if given.resume not in (None, "auto"):
        raise ValueError(
            f"--resume {given.resume} is of one training, and these are several; submit that one"
            " alone: submit train ... --resume FILE.pth, or submit qat"
        )
    parsers = build_parsers()[1]
    found = {}
    for command in commands:
        skipped = [*_PLANNED, *without, *(() if command in ("qat", "run") else _OF_QAT)]
        found[command] = forwarded(given, parsers[command], without=skipped)
    return found


def _chain(order: _Order, copies: dict[str, str], profile: Any, plan: Any) -> list[Any]:
    given = order.parsed
    jobs: list[Any] = plan.chain(
        config=copies[order.configs[0]],
        experiment=order.experiment,
        profile=profile,
        options=_options_for(given, "train", "calibrate", "qat", "eval", without=()),
        checkpoint=str(Path(given.checkpoint).absolute()) if given.checkpoint else None,
        fresh=given.fresh,
    )
    return jobs


def _sweep(order: _Order, copies: dict[str, str], profile: Any, plan: Any) -> list[Any]:
    given = order.parsed
    jobs: list[Any] = plan.sweep(
        configs=[(Path(config).stem, copies[config]) for config in order.configs],
        presets=given.presets,
        seeds=given.seeds,
        folder=order.experiment,
        profile=profile,
        options=_options_for(given, "train", "run", without=("cfg_options", "seed", "resume")),
        cfg_options=given.cfg_options,
        checkpoint=str(Path(given.checkpoint).absolute()) if given.checkpoint else None,
    )
    return jobs


@contextmanager
def _removed_unless_submitted(folder: Path) -> Iterator[None]:
    """Remove the folder if the body fails, and then its empty parents."""
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in (folder.parent, folder.parent.parent):
            with suppress(OSError):
                parent.rmdir()
        raise


def _reserved(folder: Path) -> bool:
    """Create the folder of a submission; return False if another submission has it already.

    Raises:
        ValueError: The folder cannot be created.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno in FULL:
            raise
        raise ValueError(
            f"{folder} cannot be created: {error.strerror}; choose another --work-dir"
        ) from error
    return True


def _write(arguments: argparse.Namespace, order: _Order, jobs: Sequence[Any], place: Any) -> None:
    """Copy code and configs, and create the folders that the jobs need."""
    from slurm.copies.config_files import copy_config
    from slurm.copies.snapshot import copy_code
    from slurm.plan import float_links

    place.jobs.mkdir()
    if place.snapshot:
        copy_code(place.folder / "code", more=tuple(Path(p) for p in arguments.include))
        for config in order.configs:
            copy_config(Path(config), place.folder / "config" / Path(config).stem)
    for link, target in float_links(jobs).items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists() and not link.is_symlink():
            link.symlink_to(target)
