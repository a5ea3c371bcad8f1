"""The state of a run in words: a few lines with a head each, and a table of its stages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dq.counted import counted
from dq.tracking.live.health import Health
from dq.tracking.live.progress import Progress, SlowRank
from dq.tracking.live.state import RUNNING, WAITING, RunState, StageState

BAR = 24
# Validations that are shown with their values.
SHOWN_VALIDATIONS = 5
# A quantizer beyond these, in decibels and as a share, is worth a look.
LEAST_SQNR, MOST_CLIPPED = 10.0, 0.1
HEADS = ("stage", "state", "result", "bits", "time")
_LEVELS = "▁▂▃▄▅▆▇█"
_MARKS = {"finished": "good", RUNNING: "busy", "stopped": "warn", WAITING: "warn"}
_TABLES = {"calibration": "calibration", "end": "the end"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the view.

    Attributes:
        head: What it is about; empty if it continues the line before.
        text: What is said.
        mark: ``good``, ``busy``, ``warn``, ``bad``, or empty.
    """

    head: str
    text: str
    mark: str = ""


def entries(state: RunState) -> list[Entry]:
    """Return the lines about the stage that is shown."""
    found = [Entry(head="state", text=_headline(state), mark=mark_of(state.state))]
    if state.where:
        found.append(Entry(head="where", text=state.where))
    stages = {each.name: each for each in state.stages}
    shown = stages.get(state.current or "")
    if shown is not None and shown.error:
        found.append(Entry(head="error", text=shown.error, mark="bad"))
    if state.progress is not None:
        found += _of_progress(state.progress, state.state == RUNNING)
    if state.health is not None:
        found += _of_health(state.health)
    return found


def stage_rows(stages: Sequence[StageState]) -> list[tuple[str, ...]]:
    """Return a row of cells for each stage, below `HEADS`."""
    return [
        (
            each.name,
            each.state,
            "" if each.value is None else f"{each.metric} {100 * each.value:.2f} %",
            each.bits or "",
            "" if each.seconds is None else duration(each.seconds),
        )
        for each in stages
    ]


def mark_of(state: str) -> str:
    """Return the mark of a stage's state."""
    return _MARKS.get(state, "warn" if state.startswith("silent") else "bad")


def share_done(progress: Progress) -> float | None:
    """Return the share of the training that is done, 0 to 1; None if its length is unknown."""
    if not progress.steps:
        return None
    return min(1.0, progress.step / progress.steps)


def duration(seconds: float) -> str:
    """Return a time in words, such as ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{counted(whole // 86400, 'day[s]')} {whole % 86400 // 3600} h"


def bar(share: float, width: int = BAR) -> str:
    """Return a bar of characters."""
    full = round(share * width)
    return "█" * full + "░" * (width - full)


def curve(values: Sequence[float]) -> str:
    """Return a curve of characters, scaled from its smallest to its largest value."""
    low, high = min(values), max(values)
    scale = (len(_LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(_LEVELS[round((value - low) * scale)] for value in values)


def _headline(state: RunState) -> str:
    if state.state == WAITING:
        ends = "" if state.is_alive else ", and nothing seems to run; its logs say more"
        return f"not begun: no stage has written a record yet{ends}"
    if state.current is None:
        return "died before a stage had written a record; its logs say more"
    if state.state == RUNNING:
        return f"{state.current} is running"
    text = f"{state.current}: {state.state}"
    trains = state.progress is not None and state.progress.steps is not None
    mend = "--resume continues it" if trains else "start its command again"
    if state.state == "died":
        return f"{text}; its process is gone and did not record its end: {mend}"
    if state.state == "stopped":
        return f"{text} by a signal: {mend}"
    return f"{text}; the command goes on" if state.is_alive else text


def _of_progress(progress: Progress, runs: bool) -> Iterator[Entry]:
    share = share_done(progress)
    parts = [f"step {progress.step:,}" + (f" of {progress.steps:,}" if progress.steps else "")]
    if progress.epoch is not None:
        parts.append(f"epoch {progress.epoch:.2f}")
    if progress.to_go_s is not None:
        parts.append(
            "evaluating now" if share == 1.0
            else f"{duration(progress.to_go_s)} to go"
        )  # fmt: skip
    shown = "" if share is None else f"{bar(share)} {100 * share:.0f} %  "
    if progress.step or progress.steps:
        yield Entry(head="progress", text=shown + ", ".join(parts))
    if runs and progress.quiet_s is not None and progress.quiet_s > 60:
        yield Entry(head="", text=f"last row {duration(progress.quiet_s)} ago")
    yield from _of_last(progress)
    if progress.validations:
        last = progress.validations[-SHOWN_VALIDATIONS:]
        best = max(progress.validations, key=lambda each: each.value)
        values = ", ".join(f"{100 * each.value:.2f} % (epoch {each.epoch:.4g})" for each in last)
        yield Entry(
            head=last[-1].metric,
            text=f"{values}; best {100 * best.value:.2f} % (epoch {best.epoch:.4g})",
        )
    if progress.proof is not None:
        yield Entry(head="ranks", text=f"the same ranges on all at step {progress.proof:,}",
                    mark="good")  # fmt: skip
    for slow in progress.slow:
        yield Entry(head="slow", text=_slow(slow), mark="warn")
    for event in progress.events[-3:]:
        yield Entry(head="event", text=event, mark="warn")


def _of_last(progress: Progress) -> Iterator[Entry]:
    last = progress.last
    if progress.losses:
        parts = [f"{progress.losses[-1]:.4g}  {curve(progress.losses)} "]
        names = (("lr", "learning rate"), ("grad_norm", "gradient norm"))
        parts += [f"{text} {last[n]:.3g}" for n, text in names if _is_number(last.get(n))]
        if "phase" in last:
            parts.append(f"phase {last['phase']}")
        yield Entry(head="loss", text=", ".join(parts).replace(" ,", ",", 1))
    speed = []
    if _is_number(last.get("images_per_s")):
        speed.append(f"{last['images_per_s']:.1f} images/s")
    if _is_number(last.get("loading_share")):
        speed.append(f"{100 * last['loading_share']:.0f} % of it waiting for data")
    memory = (("memory_mib", "memory"), ("gpu_memory_mib", "on the GPU"))
    speed += [f"{text} {last[n] / 1024:.1f} GiB" for n, text in memory if _is_number(last.get(n))]
    if speed:
        yield Entry(head="speed", text=", ".join(speed))
    bad = [
        f"{last[name]} {text}" for name, text in
        (("skipped_steps", "steps were skipped"), ("bad_images", "images could not be read"))
        if last.get(name)
    ]  # fmt: skip
    if bad:
        yield Entry(head="note", text=", ".join(bad), mark="warn")


def _slow(slow: SlowRank) -> str:
    number = f", {counted(slow.reports, 'report[s]')}" if slow.reports > 1 else ""
    return (
        f"rank {slow.rank} at {slow.phase}: {slow.seconds:.1f} s, the others {slow.others:.1f} s"
        f" (step {slow.step:,}{number})"
    )


def _of_health(health: Health) -> Iterator[Entry]:
    when = _TABLES.get(health.when, f"epoch {health.epoch:.4g}")
    text = f"{counted(health.number, 'quantizer[s]')} at {when}"
    if health.sqnr is not None:
        text += f", median SQNR {health.sqnr:.1f} dB"
    yield Entry(head="ranges", text=text)
    if health.noisiest:
        worst = ", ".join(f"{name} {value:.1f} dB" for name, value in health.noisiest)
        mark = "warn" if health.noisiest[0][1] < LEAST_SQNR else ""
        yield Entry(head="", text=f"noisiest: {worst}", mark=mark)
    if health.clipped:
        worst = ", ".join(f"{name} {100 * value:.2g} %" for name, value in health.clipped)
        mark = "warn" if health.clipped[0][1] > MOST_CLIPPED else ""
        yield Entry(head="", text=f"clip most: {worst}", mark=mark)
    if health.oscillating is not None:
        most = f"{100 * health.oscillating:.2g}"
        yield Entry(head="", text=f"oscillating weights: at most {most} % of a layer")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
