"""Set up what a command runs in: ranks, device, logs, process group, work dir."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dq.counted import counted
from dq.detector import removed_names
from dq.detector.step.guards import Guards
from dq.detector.step.supervision import Supervision, Watch
from dq.dist.errors.lost import LostRankError, explain_lost_rank
from dq.dist.errors.notes import note, notes_on
from dq.dist.group.claim import claim_report, wait_for_reports
from dq.dist.group.process_group import process_group
from dq.dist.rendezvous.environment import Environment, read_environment
from dq.dist.watch.agreement import Agreement, CudaMarks
from dq.dist.watch.signals import Stopped, StopSignals, stop_signals
from dq.tracking.wandb_copy.mirror import Limits
from dq.tracking.wandb_copy.relay_process import Relay
from dq.tracking.wandb_copy.variables import mode_of, unsupported
from launcher.command_line.bar import progress_bar
from launcher.command_line.json_result import json_result
from launcher.failure import exit_code, log_traceback, say
from launcher.logs import logging_to
from launcher.output import output_may_fail
from launcher.plan import surroundings
from launcher.threads import threads_of
from launcher.work_dir import WorkDir, held

log = logging.getLogger(__name__)
# The watchdog waits longer than a collective, whose timeout ends the rank with a better message.
WATCH_MARGIN_S = 60.0
# torchrun or Slurm soon kills or restarts a job that was stopped or has failed.
HURRY_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What every stage of a command needs to know about the process that it runs in.

    Attributes:
        environment: This process's rank, node and number of ranks.
        device: Of this rank.
        experiment: The experiment's folder; each stage has a subfolder.
        calibration_rank: The rank that calibrates for all.
        signals: The signals that stop the command.
        watch: The file for the stacks of a rank that hangs, and the time limit.
        work_dir: The folders that only this command may write.
        wandb: ``online``, ``offline`` or ``disabled``.
        results: What ``--json`` prints beside the stages' summaries.
    """

    environment: Environment
    device: torch.device
    experiment: Path
    calibration_rank: int
    signals: StopSignals
    watch: Watch
    work_dir: WorkDir
    wandb: str = "disabled"
    results: dict[str, Any] = field(default_factory=dict)
    _relays: list[Relay] = field(default_factory=list)

    def relay(self, init_s: float, finish_s: float) -> Relay | None:
        """Return the relay that copies this command's runs to W&B, or None; for the main rank.

        Args:
            init_s: Time limit for W&B to start a run, in seconds.
            finish_s: Time limit for W&B to finish at the end of the command, in seconds.
        """
        if self.wandb == "disabled":
            return None
        if not self._relays:
            for line in unsupported(os.environ):
                log.warning("%s", line)
            limits = Limits(init_s=init_s, finish_s=finish_s)
            self._relays.append(Relay(self.wandb, self.experiment / "logs" / "wandb.log", limits))
        return self._relays[0]

    def supervision(self, guards: Guards) -> Supervision:
        """Return the supervision of a training; every rank must call it."""
        marks = CudaMarks(self.device) if self.device.type == "cuda" else None
        return Supervision(
            agreement=Agreement(marks=marks),
            signals=self.signals,
            watch=self.watch,
            guards=guards,
        )


@contextmanager
def session(arguments: argparse.Namespace) -> Iterator[Session]:
    """Set up logs, process group and work dir for a command; take them down after it in any case.

    The first rank with an error prints it, once for the job. Every rank writes its error with the
    traceback into its own log.

    Args:
        arguments: Parsed, with the options of `launcher.command_line.arguments.add_common`.
    """
    environment = read_environment()
    wandb = mode_of(arguments.wandb, os.environ)
    debug = bool(getattr(arguments, "debug", False))
    asked = surroundings(arguments)
    device = choose_device(asked.device, environment)
    experiment = asked.experiment
    with (
        json_result(experiment, wanted=arguments.json, prints=environment.is_main) as results,
        output_may_fail(),
        progress_bar(wanted=environment.is_main and not (arguments.quiet or arguments.json)),
        logging_to(experiment / "logs", rank=environment.rank, quiet=arguments.quiet) as log_file,
    ):
        _quieten_libraries()
        removed_names.say()
        torch.set_num_threads(threads_of(arguments.threads, environment))
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with (
            stop_signals() as signals,
            _closed_relays(signals) as relays,
            _reported(log_file, debug=debug),
            process_group(
                environment,
                device=device,
                shares_device=asked.device.startswith("cuda:"),
                timeout_s=arguments.timeout,
                arrival_s=arguments.arrival_timeout,
            ),
        ):
            log.info(
                "rank %d of %d on %s, %s",
                environment.rank,
                environment.world_size,
                device,
                counted(torch.get_num_threads(), "thread[s]"),
            )
            with (
                _reported(log_file, debug=debug, signals=signals),
                held(arguments, experiment) as work_dir,
            ):
                yield Session(
                    environment=environment,
                    device=device,
                    experiment=experiment,
                    calibration_rank=_calibration_rank(arguments, environment),
                    signals=signals,
                    watch=Watch(
                        stacks=experiment / "logs" / f"rank_{environment.rank}.stacks",
                        limit_s=arguments.timeout + WATCH_MARGIN_S,
                    ),
                    work_dir=work_dir,
                    wandb=wandb,
                    results=results,
                    _relays=relays,
                )


@contextmanager
def _closed_relays(signals: StopSignals) -> Iterator[list[Relay]]:
    """Yield a list for relays and close them at the end, after an error with a short time limit.

    The process group has ended by then, so no other rank waits for W&B.

    Args:
        signals: A signal that comes while this waits for W&B no longer stops the command.
    """
    relays: list[Relay] = []
    hurry_s: float | None = HURRY_S
    try:
        yield relays
        hurry_s = None
    finally:
        signals.settle()
        for relay in relays:
            relay.close(hurry_s)


@contextmanager
def _reported(log_file: Path, *, debug: bool, signals: StopSignals | None = None) -> Iterator[None]:
    """Report an error of the body, unless that is done.

    Args:
        log_file: Of this rank.
        debug: Print the traceback too.
        signals: Given while there is a process group: a rank that is lost after a signal then
            counts as stopped by it, not as an error.
    """
    try:
        yield
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # SystemExit of a user's code, panics of other languages, ...
        if signals is not None:
            _stop_if_asked(error, signals)
        if not notes_on(error).reported:
            _report(error, log_file, debug=debug)
        raise


def _calibration_rank(arguments: argparse.Namespace, environment: Environment) -> int:
    rank: int = arguments.calibration_rank
    if not 0 <= rank < environment.world_size:
        raise ValueError(
            f"--calibration-rank {rank}: there is no such rank, only"
            f" {counted(environment.world_size, 'rank[s]')}"
        )
    return rank


def choose_device(asked: str, environment: Environment) -> torch.device:
    """Return this rank's device.

    Raises:
        ValueError: ``asked`` is not auto, cpu, cuda or cuda:N, or this GPU does not exist.
    """
    numbered = re.fullmatch(r"cuda:(\d+)", asked)
    if asked not in ("auto", "cpu", "cuda") and not numbered:
        raise ValueError(f"--device {asked} is not known; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if asked == "cpu" or (asked == "auto" and count == 0):
        return torch.device("cpu")
    if numbered and int(numbered[1]) < count:
        return torch.device("cuda", int(numbered[1]))
    if numbered:
        raise ValueError(f"--device {asked}: this machine has {count} GPUs, numbered from 0")
    if count == 1 and _has_own_gpu(environment, os.environ):
        return torch.device("cuda", 0)
    if environment.local_rank >= count:
        raise ValueError(
            f"local rank {environment.local_rank} has no GPU, this machine has {count}; start at"
            f" most {counted(count, 'rank[s]')} here (--nproc-per-node) or use --device cpu"
        )
    return torch.device("cuda", environment.local_rank)


def _has_own_gpu(environment: Environment, variables: Mapping[str, str]) -> bool:
    """Return whether Slurm gives each task of a node its own GPU, which the task sees as GPU 0."""
    if "SLURM_PROCID" not in variables:
        return False
    on_node = variables.get("SLURM_GPUS_ON_NODE", "")
    enough = on_node.isdigit() and int(on_node) >= environment.local_world_size
    return enough or variables.get("SLURM_GPUS_PER_TASK", "").endswith("1")


def _quieten_libraries() -> None:
    """Keep mmcv and mmdet from adding handlers of their own to their loggers."""
    from mmcv.utils import logging as mmcv_logging

    for name in ("mmcv", "mmdet"):
        mmcv_logging.logger_initialized[name] = True
        # mmcv logs a line for every tensor that it initialises.
        logging.getLogger(name).setLevel(logging.WARNING)


def _stop_if_asked(error: BaseException, signals: StopSignals) -> None:
    """Raise Stopped if other ranks were lost because the whole job was asked to stop.

    After another error a signal changes nothing any more: srun sends one to the other ranks when
    the first of them ends with an error.
    """
    if signals.settled or isinstance(error, Stopped):
        return
    if not isinstance(error, LostRankError) and explain_lost_rank(error) is None:
        signals.settle()
    elif signals.first is not None:
        stopped = Stopped(signals.first[1])
        log.info("stopped by %s, as other ranks", stopped)
        note(stopped, reported=True)
        raise stopped from error


def _report(error: BaseException, log_file: Path, *, debug: bool) -> None:
    """Print the error unless another rank has printed one; log it with its traceback always."""
    if isinstance(error, Stopped):
        log.info("stopped by %s", error)
        note(error, reported=True)
        return
    log_traceback(error)
    code = exit_code(error)
    # If one rank worked for all and failed, that rank reports the error.
    if not notes_on(error).reported_elsewhere:
        reported = claim_report(code)
        if reported is None:
            say(_explained(error), log_file, debug=debug)
        else:
            code = reported
            note(error, exit_code=code)
    if explain_lost_rank(error) is None:
        wait_for_reports(code)
    note(error, reported=True)


def _explained(error: BaseException) -> BaseException:
    """Return the error, in plain words if another rank's end caused it."""
    words = explain_lost_rank(error)
    return error if words is None else LostRankError(words)
