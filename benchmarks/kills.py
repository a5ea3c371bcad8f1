"""Kill `run --resume` repeatedly, change file times, and compare with an undisturbed run.

    python -m benchmarks.kills [--times 60] [--ranks 1 2 3] [--seed 0] [--write FILE]

A chain (float training, calibration, quantized training with learned scales, a weight average and
oscillation, each evaluated) on a few embedded images is killed with SIGKILL at random moments: at
any time, while a file is written, in a training, in the calibration, in an evaluation. Usually all
ranks are killed, sometimes one. Between two attempts every file gets a random time, in the past or
in the future, as if clocks had been changed. Then it is resumed. Its results must be those of an
undisturbed run: every tensor of every checkpoint bit for bit, every metric and logged loss, and the
names of all files. No process may be left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import socket
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dq.data.digits import write_digits
from dq.dist.files.checkpoint import load_checkpoint
from tests.processes.warm import WarmProcess, session

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("float", "calibrated", "qat")
LIMIT_S = 1200.0
# A rank that has lost another must end by itself.
LEFT_ALONE_S = 120.0
CONFIG = """
_base_ = [{base!r}]
data_root = {data_root!r}
size = (96, 96)
model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(
        in_channels=(16, 16, 16),
        anchor_generator=dict(
            _delete_=True, type='SSDAnchorGenerator', scale_major=False, input_size=96,
            strides=[8, 16, 32], ratios=([2], [2], [2]),
            min_sizes=[10, 17, 27], max_sizes=[17, 27, 42])))
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion', brightness_delta=24),
    dict(type='Resize', img_scale=size, keep_ratio=False),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=size, flip=False, transforms=[
        dict(type='Resize', keep_ratio=False),
        dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ])
]
data = dict(
    samples_per_gpu=2,
    workers_per_gpu=0,
    train=dict(times=1, dataset=dict(pipeline=train_pipeline)),
    val=dict(pipeline=test_pipeline),
    test=dict(pipeline=test_pipeline))
optimizer = dict(lr=1e-3)
lr_config = dict(by_epoch=True, warmup_iters=2)
log_config = dict(interval=1)
evaluation = dict(interval=1)
checkpoint_config = dict(interval=1, steps=1, max_keep_ckpts=2)
runner = dict(max_epochs=2)
quant = dict(
    _delete_=True,
    learned='lsq',
    oscillation=dict(dampening=1e-4),
    ema=dict(momentum=0.1),
    schedule=dict(calibration_batches=2, calibration_batch_size=4, round_after=dict(iteration=1)),
    training={{'optimizer.lr': 4e-3, 'runner.max_epochs': 2, 'lr_config.warmup_iters': 2,
              'evaluation.interval': 1}})
"""
# Times and speeds, and random names of files and runs.
OF_CHANCE = re.compile(r"time|seconds|_s$|share|memory|eta|sha256|run_id|parent|finished|^key$")
STAMP = re.compile(r"\d{8}_\d{6}")


Times = Mapping[Path, int]


def times_of(folder: Path) -> Times:
    """Return when each file was written, to recognize new files later."""
    found = {}
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat(follow_symlinks=False).st_mtime_ns
    return found


def is_new(path: Path, before: Times) -> bool:
    """Whether a file exists and was written after the times ``before`` were taken."""
    with contextlib.suppress(FileNotFoundError):
        return path.stat(follow_symlinks=False).st_mtime_ns != before.get(path)
    return False


def writing(folder: Path, before: Times) -> bool:
    """Whether a file is being written."""
    return any(True for _ in folder.glob("*/.*.tmp*"))


def calibrating(folder: Path, before: Times) -> bool:
    """Whether the calibration has started and has no result."""
    place = folder / "calibrated"
    return is_new(place / "run.json", before) and not (place / "calibrated.pth").exists()


def evaluating(folder: Path, before: Times) -> bool:
    """Whether a stage has a result that is not evaluated yet."""
    places = [(folder / stage, f"{stage}.pth") for stage in STAGES]
    return any(
        is_new(place / name, before) and not (place / "summary.json").exists()
        for place, name in places
    )


def training(folder: Path, before: Times) -> bool:
    """Whether a training has done some more steps and has no result."""
    return any(
        not (folder / stage / f"{stage}.pth").exists()
        and any(is_new(path, before) for path in (folder / stage).glob("step_*.pth"))
        for stage in ("float", "qat")
    )


MOMENTS: Mapping[str, Callable[[Path, Times], bool]] = {
    "any time": lambda *_: True,
    "a file is written": writing,
    "training": training,
    "calibration": calibrating,
    "evaluation": evaluating,
}
ENDED = "it had ended"


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """When and how an attempt is killed.

    Attributes:
        moment: A key of `MOMENTS`.
        later_s: Seconds after that moment.
        victim: The rank to kill; None for all of them.
    """

    moment: str
    later_s: float
    victim: int | None


class Job:
    """Ranks of a launcher, started as srun starts them.

    Args:
        ranks: Number of ranks.
        words: The launcher's command line.
        output: File for their output.
        mark: A variable in the environment of each process, to find processes that are left.
    """

    def __init__(self, ranks: int, words: Sequence[str], output: Path, mark: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.output, self.processes = output, []
        for rank in range(ranks):
            place = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks,
                "GROUP_RANK": 0, "GROUP_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1, "WANDB_MODE": "disabled", "DQ_KILLS": mark,
            }  # fmt: skip
            environ = {**os.environ, **{name: str(value) for name, value in place.items()}}
            with output.open("ab") as file:
                self.processes.append(WarmProcess(list(words), environ=environ, output=file))

    def ended(self) -> bool:
        """Whether all ranks have ended."""
        return all(process.poll() is not None for process in self.processes)

    def wait(self, limit_s: float) -> list[int]:
        """Return the exit codes; ranks that exceed the limit are killed."""
        end = time.monotonic() + limit_s
        while not self.ended() and time.monotonic() < end:
            time.sleep(0.05)
        self.kill()
        return [process.wait() for process in self.processes]

    def kill(self, victim: int | None = None) -> None:
        """Kill one rank, or all of them with their child processes."""
        for rank, process in enumerate(self.processes):
            if victim in (None, rank):
                for pid in session(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


def strike(job: Job, folder: Path, planned: Strike, limit_s: float) -> str:
    """Kill a job as planned and return the moment; `ENDED` if the job ended before."""
    end = time.monotonic() + limit_s
    before, is_moment = times_of(folder), MOMENTS[planned.moment]
    while not is_moment(folder, before):
        if job.ended():
            return ENDED
        if time.monotonic() > end:
            job.kill()
            raise RuntimeError(f"neither ended nor at {planned.moment!r} within {limit_s:g} s")
        time.sleep(0.002)
    began = time.monotonic()
    while time.monotonic() - began < planned.later_s:
        if job.ended():
            return ENDED
        time.sleep(0.002)
    job.kill(planned.victim)
    codes = job.wait(LEFT_ALONE_S)
    others = [code for rank, code in enumerate(codes) if rank != planned.victim]
    if planned.victim is not None and -signal.SIGKILL in others:
        raise RuntimeError(f"ranks left alone had not ended after {LEFT_ALONE_S:g} s: {codes}")
    return planned.moment


def set_clocks(folder: Path, chance: random.Random) -> None:
    """Set the time of every file to a random one, up to a week before or after now."""
    week = 7 * 86400
    for path in folder.rglob("*"):
        when = time.time() + chance.uniform(-week, week)
        with contextlib.suppress(FileNotFoundError):
            os.utime(path, (when, when), follow_symlinks=False)


def alive(mark: str) -> list[int]:
    """Return the processes that were started with a mark."""
    wanted = f"DQ_KILLS={mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def differences(one: Any, other: Any, where: str) -> Iterator[str]:
    """Yield the places where two results differ; tensors are compared bit for bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.dtype != other.dtype or not torch.equal(one, other):
            yield where
    elif isinstance(one, Mapping) and isinstance(other, Mapping):
        for name in {**one, **other}:
            if not OF_CHANCE.search(str(name)):
                yield from differences(one.get(name), other.get(name), f"{where}/{name}")
    elif isinstance(one, list | tuple) and isinstance(other, list | tuple):
        if len(one) != len(other):
            yield f"{where} ({len(one)} and {len(other)} of them)"
        for number, pair in enumerate(zip(one, other, strict=False)):
            yield from differences(*pair, f"{where}/{number}")
    elif str(one) != str(other):
        yield f"{where} ({one} and {other})"


def results(folder: Path) -> dict[str, Any]:
    """Return all results of a chain except random values and times."""
    found: dict[str, Any] = {"files": sorted(names_of(folder))}
    for stage in STAGES:
        for path in sorted((folder / stage).glob("*.pth")):
            content = load_checkpoint(path)
            meta = content["meta"]
            content["meta"] = {k: meta.get(k) for k in ("epoch", "iter", "hook_msgs", "start")}
            found[f"{stage}/{path.name}"] = _without(content, str(folder))
        found[f"{stage} summary"] = json.loads((folder / stage / "summary.json").read_text())
        lines = (folder / stage / "metrics.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        found[f"{stage} rows"] = [row for row in rows if row["kind"] != "straggler"]
    return found


def names_of(folder: Path) -> set[str]:
    """Return the names of all files without the times in them, except logs and previous rows.

    Checksum files are excepted too: a kill may leave a checkpoint without its checksum.
    """
    paths = [path for path in folder.rglob("*") if not path.is_dir()]
    names = {STAMP.sub("TIME", str(path.relative_to(folder))) for path in paths}
    apart = ("previous", ".sha256")
    return {n for n in names if not n.startswith("logs/") and not any(a in n for a in apart)}


def _without(value: Any, words: str) -> Any:
    """Return a nested value with some words removed from its texts."""
    if isinstance(value, str):
        return value.replace(words, "")
    if isinstance(value, dict):
        return {name: _without(item, words) for name, item in value.items()}
    return value


def planned(chance: random.Random, folder: Path, ranks: int, seconds: float) -> Strike:
    """Choose a random moment that is still to come, and the ranks to kill."""
    moments = ["any time", "a file is written", "evaluation"]
    if not (folder / "calibrated/calibrated.pth").exists():
        moments.append("calibration")
    if not (folder / "float/float.pth").exists() or "calibration" not in moments:
        moments.append("training")
    moment = chance.choice(moments)
    longest = {"any time": seconds, "a file is written": 0.02}.get(moment, seconds / 10)
    alone = ranks > 1 and chance.random() < 0.15
    victim = chance.randrange(ranks) if alone else None
    return Strike(moment=moment, later_s=chance.uniform(0, longest), victim=victim)


def prove(
    ranks: int, times: int, folder: Path, chance: random.Random, say: Callable[[str], None]
) -> tuple[Counter[str], list[str], int]:
    """Kill repeatedly; return the moments, the differences, and the number of finished chains."""
    config = folder / "config.py"
    mark, output = uuid.uuid4().hex, folder / f"output{ranks}.txt"

    def words(work: Path) -> list[str]:
        place = ["--resume", "--work-dir", str(work), "--threads", "1"]
        return ["run", str(config), "--seed", "3", *place]

    whole = folder / f"whole{ranks}"
    began = time.monotonic()
    codes = Job(ranks, words(whole), output, mark).wait(LIMIT_S)
    seconds = time.monotonic() - began
    if any(codes):
        raise RuntimeError(f"the undisturbed run failed: {codes}, see {output}")
    wanted = results(whole)
    say(f"{ranks} ranks: undisturbed in {seconds:.0f} s")
    struck: Counter[str] = Counter()
    wrong: list[str] = []
    chains = 0
    while sum(struck.values()) < times:
        chains += 1
        work = folder / f"killed{ranks}-{chains}"
        mine = 0
        while True:
            last = sum(struck.values()) >= times
            plan = planned(chance, work, ranks, seconds)
            job = Job(ranks, words(work), output, mark)
            moment = ENDED if last else strike(job, work, plan, LIMIT_S)
            if moment == ENDED:
                break
            struck[moment] += 1
            mine += 1
            set_clocks(work, chance)
        codes = job.wait(LIMIT_S)
        found = [f"exit codes {codes}"] if any(codes) else []
        found += [] if any(codes) else differences(wanted, results(work), "")
        found += [f"process {pid} is left" for pid in alive(mark)]
        wrong += [f"{work.name}: {what}" for what in found]
        say(f"{ranks} ranks, chain {chains}: {mine} kills, {len(found)} differences {found[:3]}")
    return struck, wrong, chains


def table(found: Mapping[int, tuple[Counter[str], list[str], int]]) -> str:
    """Return the results as Markdown."""
    names = list(MOMENTS)
    lines = [f"| ranks | kills | {' | '.join(names)} | chains | differences |"]
    lines.append("|---" * (len(names) + 4) + "|")
    for ranks, (struck, wrong, chains) in found.items():
        each = " | ".join(str(struck[name]) for name in names)
        total = sum(struck.values())
        lines.append(f"| {ranks} | {total} | {each} | {chains} | {len(wrong)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Kill, compare and print a table; return 1 if anything differs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=60, help="kills in all (default 60)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--write", type=Path, help="a file for the table")
    parser.add_argument("--work-dir", type=Path, help="kept; by default a temporary folder")
    given = parser.parse_args(argv)
    with contextlib.ExitStack() as stack:
        if given.work_dir is None:
            name = stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-"))
        else:
            given.work_dir.mkdir(parents=True)
            name = str(given.work_dir.resolve())
        folder = Path(name)
        digits = write_digits(
            folder / "digits", num_train=24, num_val=3, num_test=5, image_size=160, seed=3
        )
        base = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
        (folder / "config.py").write_text(CONFIG.format(base=base, data_root=str(digits)))
        found = {}
        for number, ranks in enumerate(given.ranks):
            share = given.times // len(given.ranks) + (number < given.times % len(given.ranks))
            chance = random.Random(given.seed + ranks)
            found[ranks] = prove(ranks, share, folder, chance, lambda line: print(line, flush=True))
    made = table(found)
    wrong = [what for _, differing, _ in found.values() for what in differing]
    print(made, *wrong, sep="\n")
    if given.write:
        given.write.write_text(f"Made by `python -m benchmarks.kills`.\n\n{made}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
