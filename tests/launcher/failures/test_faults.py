"""The fault table of docs/faults.md: each row is a test with real processes and a real fault.

Most tests start ranks as srun does, so that nothing ends the others when one dies. With
DQ_FAULT_TABLE=FILE each test appends its measured row to that file.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.detector.training.checkpoint_order import newest_training
from dq.dist.files.checkpoint import load_checkpoint
from dq.exit_codes import STOPPED_CODE
from tests.launcher.conftest import Launch
from tests.launcher.failures.strikes import Ending, run_ranks_alone, run_torchrun, started
from tests.processes.warm import session

pytestmark = pytest.mark.slow

# Time limit from the fault until all ranks have ended, also on a busy machine.
LIMIT_S = 60.0
STAGE = """
_base_ = [{base!r}]
custom_imports = dict(imports=['tests.launcher.failures.fault_hook'], allow_failed_imports=False)
runner = dict(max_epochs={epochs})
data = dict(workers_per_gpu={workers})
log_config = dict(interval=1)
checkpoint_config = dict(steps=2)
quant = dict(training={{'runner.max_epochs': {epochs}}})
{more}
"""
HOOK = "custom_hooks = [dict(type='FaultHook', what={what!r}, rank={rank}, step={step}, marker={marker!r}, argument={argument!r})]"  # noqa: E501
IMAGE = """
test_pipeline = [
    dict(type='FaultAtImage', by={by}, victim={victim}, image={image}, marker={marker!r},
         what={what!r}, named={named!r}),
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(96, 96), flip=False, transforms=[
        dict(type='Resize', keep_ratio=False),
        dict(type='Normalize', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True),
        dict(type='ImageToTensor', keys=['img']),
        dict(type='Collect', keys=['img']),
    ])
]
data = dict(val=dict(pipeline=test_pipeline), test=dict(pipeline=test_pipeline))
"""


def config_with(
    config: Path, folder: Path, more: str, *, epochs: int = 2, workers: int = 0
) -> Path:
    """Write the tiny config with more lines."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "faulty.py"
    path.write_text(STAGE.format(base=str(config), epochs=epochs, workers=workers, more=more))
    return path


def hook(folder: Path, what: str, *, rank: int, step: int, argument: object = None) -> str:
    """Return the config's line for a fault in training."""
    marker = str(folder / "struck{rank}")
    return HOOK.format(what=what, rank=rank, step=step, marker=marker, argument=argument)


def record(
    row: str, lost: str, ending: Ending, *, reads: str = "", recovered: bool = False
) -> None:
    """Append a measured row to the table of $DQ_FAULT_TABLE, if it is set.

    Args:
        row: The fault.
        lost: The work that is lost.
        ending: How the job ended.
        reads: A pattern of the line that the user reads; by default that of an error.
        recovered: Whether the job continues to its end, so that its time is not recorded.
    """
    if "DQ_FAULT_TABLE" not in os.environ:
        return
    said = re.search(f"^.*(?:{reads or 'error: '}).*$", ending.output, re.MULTILINE)
    words = said[0] if said else "nothing"
    words = re.sub(r"/\S*/w/|/\S*/(?=disk/)", "", words)  # Of this test's folders.
    words = re.sub(r" \(traceback in .*|^\d\d:\d\d:\d\d \w ", "", words)
    after = "continues" if recovered else f"{max(1, round(ending.seconds))} s"
    codes = ", ".join(map(str, ending.codes))
    with Path(os.environ["DQ_FAULT_TABLE"]).open("a") as file:
        file.write(f"| {row} | {lost} | {after} | {codes} | {words} |\n")


def must_have_ended(ending: Ending, *, errors: int = 1) -> None:
    """Assert that no process is left and that the user reads one line."""
    assert ending.left == []
    assert ending.seconds < LIMIT_S
    assert len(ending.errors) == errors, ending.output[-5000:]


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("stage", ["train", "qat"])
def test_rank_killed_in_training(
    config: Path, float_checkpoint: Path, tmp_path: Path, stage: str, victim: int
) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "kill", rank=victim, step=5))
    words = [stage, path, "--work-dir", tmp_path / "w", "--no-validate"]
    words += ["--checkpoint", float_checkpoint] if stage == "qat" else []
    ending = run_ranks_alone(2, *words, folder=tmp_path)
    must_have_ended(ending)
    assert ending.codes[victim] == -signal.SIGKILL
    assert ending.codes[1 - victim] == 1
    # Rank 0 holds the store here: its loss is seen in a collective or at the store, by chance.
    said = "another rank was lost"
    said += "|the process that held it .* rank 0.* has ended" if victim == 0 else ""
    assert re.search(said, ending.errors[0])
    folder = tmp_path / "w" / ("float" if stage == "train" else "qat")
    newest = newest_training(folder)
    assert newest is not None
    assert newest[1]["training"]["iteration"] == 4
    record(f"kill -9 of rank {victim} in `{stage}`", "steps since the last checkpoint", ending)


@pytest.mark.parametrize(
    ("command", "victim"), [(c, v) for c in ("calibrate", "eval") for v in (0, 1)]
)
def test_rank_killed_in_calibration_and_evaluation(
    config: Path, float_checkpoint: Path, tmp_path: Path, command: str, victim: int
) -> None:
    more = IMAGE.format(by=0, victim=victim, image=3, marker=str(tmp_path / "struck"),
                        what="kill", named="")  # fmt: skip
    path = config_with(config, tmp_path, more)
    ending = run_ranks_alone(
        2, command, path, "--checkpoint", float_checkpoint, "--work-dir", tmp_path / "w",
        folder=tmp_path, environ={"FAULT_FOLDER": str(tmp_path)},
    )  # fmt: skip
    must_have_ended(ending)
    assert ending.codes[victim] == -signal.SIGKILL
    assert ending.codes[1 - victim] == 1
    assert not list((tmp_path / "w").glob("*/*.pth"))
    record(f"kill -9 of rank {victim} in `{command}`", "the stage, which starts again", ending)


@pytest.mark.parametrize("command", ["calibrate", "eval"])
def test_a_rank_that_holds_its_interpreters_lock_lives(
    config: Path, float_checkpoint: Path, tmp_path: Path, command: str
) -> None:
    step = f"dict(type='HoldAtImage', seconds=9, marker={str(tmp_path / 'struck')!r})"
    more = re.sub(r"dict\(type='FaultAtImage'.*?\),\n", f"{step},\n", IMAGE, flags=re.DOTALL)
    path = config_with(config, tmp_path, more)
    words = [command, path, "--checkpoint", float_checkpoint, "--work-dir", tmp_path / "w"]
    ending = run_ranks_alone(2, *words, "--timeout", "5", folder=tmp_path)
    must_have_ended(ending, errors=0)
    assert ending.codes == [0, 0], ending.output[-3000:]
    assert (tmp_path / "struck").exists()
    record(f"rank 0 busy in `{command}` with what stops its threads, for longer than `--timeout`",
           "nothing", ending, reads="mAP", recovered=True)  # fmt: skip


@pytest.mark.parametrize(
    ("named", "kept"),
    [("train", set()), ("test", {"calibrated.pth"})],
    ids=["in the calibration", "in its evaluation"],
)
def test_sigterm_in_a_stage_without_steps_loses_nothing_that_was_done(
    config: Path, float_checkpoint: Path, tmp_path: Path, named: str, kept: set[str]
) -> None:
    more = IMAGE.format(by=0, victim=-1, image=3, marker=str(tmp_path / "struck"),
                        what="SIGTERM", named=named)  # fmt: skip
    path = config_with(config, tmp_path, more)
    words = ["run", path, "--checkpoint", float_checkpoint, "--work-dir", tmp_path / "w",
             "--no-validate", "--resume"]  # fmt: skip
    ending = run_ranks_alone(2, *words, folder=tmp_path, environ={"FAULT_FOLDER": str(tmp_path)})
    must_have_ended(ending, errors=0)
    assert ending.codes == [STOPPED_CODE, STOPPED_CODE], ending.output[-3000:]
    folder = tmp_path / "w/calibrated"
    assert {p.name for p in folder.glob("*.pth")} == kept
    assert not (folder / "summary.json").exists()
    assert not [p for p in folder.iterdir() if "tmp" in p.name or "partial" in p.name]
    record(f"SIGTERM to all ranks in {'an evaluation' if kept else 'a calibration'}",
           "nothing that was done", ending, reads="stopped by")  # fmt: skip
    done = run_ranks_alone(2, *words, folder=tmp_path, environ={"FAULT_FOLDER": str(tmp_path)})
    assert done.codes == [0, 0], done.output[-3000:]
    assert ("finished before this stage was stopped" in done.output) is bool(kept)
    assert (tmp_path / "w/qat/summary.json").is_file()


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_signal_to_one_rank_stops_all_after_the_same_step(
    config: Path, tmp_path: Path, name: str
) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, name, rank=1, step=3), epochs=4)
    words = ["train", path, "--work-dir", tmp_path / "w", "--no-validate"]
    ending = run_ranks_alone(2, *words, folder=tmp_path)
    must_have_ended(ending, errors=0)
    assert ending.codes == [STOPPED_CODE, STOPPED_CODE], ending.output[-3000:]
    newest = newest_training(tmp_path / "w/float")
    assert newest is not None
    assert newest[1]["training"]["iteration"] in (4, 5)
    assert f"stopped by {name}" in ending.output
    record(f"{name} to one rank in training", "nothing", ending, reads="stopped by")


def test_sigterm_to_torchrun_loses_nothing(config: Path, tmp_path: Path) -> None:
    # As `kill` does, or Slurm at the time limit of a job: the agent forwards it to its ranks.
    path = config_with(config, tmp_path, hook(tmp_path, "delay", rank=0, step=3, argument=1.0),
                       epochs=60)  # fmt: skip

    def terminate() -> None:
        while not list(tmp_path.glob("struck*")):
            time.sleep(0.2)
        time.sleep(1.5)
        for pid, line in list(_processes(tmp_path)):
            if "torch.distributed.run" in line:
                os.kill(pid, signal.SIGTERM)

    thread = threading.Thread(target=terminate, daemon=True)
    thread.start()
    ending = run_torchrun(
        2, "train", path, "--work-dir", tmp_path / "w", "--no-validate", folder=tmp_path
    )
    must_have_ended(ending, errors=0)
    assert "stopped by SIGTERM" in ending.output
    newest = newest_training(tmp_path / "w/float")
    assert newest is not None
    said = re.findall(r"Epoch \[(\d+)\]\[(\d+)/3\]", ending.output)
    last = max(3 * (int(epoch) - 1) + int(step) for epoch, step in said)
    assert newest[1]["training"]["iteration"] == last
    record("SIGTERM to torchrun", "nothing", ending, reads="stopped by")


def _processes(folder: Path) -> Iterator[tuple[int, str]]:
    """Yield the processes whose command line names a folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if str(folder) in line:
                    yield int(entry.name), line


def test_disk_full_at_a_checkpoint(config: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)],
        capture_output=True, check=False, text=True,
    )  # fmt: skip
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        path = config_with(
            config, tmp_path, "checkpoint_config = dict(max_keep_ckpts=-1)", epochs=9
        )
        ending = run_ranks_alone(2, "train", path, "--work-dir", disk / "w", "--no-validate",
                                 folder=tmp_path)  # fmt: skip
        must_have_ended(ending)
        assert ending.codes == [1, 1]
        assert re.search(r"checkpoint .* could not be written: No space left", ending.errors[0])
        newest = newest_training(disk / "w/float")
        assert newest is not None
        assert not list((disk / "w/float").glob(".*tmp"))
        record("disk full at a checkpoint", "steps since the one before", ending)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.parametrize("how", ["cut", "flipped"])
def test_damaged_checkpoint_is_passed_over(
    launch: Launch, config: Path, tmp_path: Path, how: str
) -> None:
    path = config_with(config, tmp_path, "")
    words = ("train", path, "--work-dir", tmp_path / "w", "--no-validate")
    assert launch(*words)[0] == 0
    newest = tmp_path / "w/float/epoch_2.pth"
    content = bytearray(newest.read_bytes())
    if how == "cut":
        del content[-100:]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    code, out, err = launch(*words, "--resume", "auto")
    assert code == 0, err
    assert re.search(r"skipped: .*epoch_2.pth does not match its checksum", out)
    assert re.search(r"resumed from .*step_12.pth|resumed from .*step_10.pth", out), out
    ending = Ending(codes=[code], errors=[], output=out, seconds=0.0, left=[])
    record(f"newest checkpoint {how}", "steps since the one before", ending, reads="skipped: ",
           recovered=True)  # fmt: skip


def test_loader_process_killed(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "kill_worker", rank=0, step=1), workers=2)
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending, errors=0)
    assert ending.codes == [0, 0], ending.output[-3000:]
    assert "a worker process was lost" in ending.output
    record(
        "a worker process killed",
        "nothing",
        ending,
        reads="a worker process was lost",
        recovered=True,
    )


def test_image_deleted_in_training(config: Path, digits: Path, tmp_path: Path) -> None:
    import shutil

    own = Path(shutil.copytree(digits, tmp_path / "own"))
    name = (own / "ImageSets/Main/train.txt").read_text().split()[0]
    image = own / "JPEGImages" / f"{name}.jpg"
    more = hook(tmp_path, "remove", rank=0, step=1, argument=str(image))
    path = config_with(config, tmp_path, f"{more}\ndata_root = {str(own)!r}")
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending, errors=0)
    assert ending.codes == [0, 0], ending.output[-3000:]
    logs = "".join(p.read_text() for p in (tmp_path / "w/logs").glob("rank_*.log"))
    assert image.name in logs
    record("an image deleted in training", "that image", ending, reads=image.name, recovered=True)


def test_nan_of_one_rank_is_named(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "nan", rank=1, step=3))
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending)
    assert ending.codes == [1, 1]
    assert re.search(r"step 4: loss\w* is nan.* on rank 1 \(images \w+\.jpg", ending.errors[0])
    record("NaN on one rank", "steps since the last checkpoint", ending)


def test_nan_of_one_rank_is_left_out_where_asked_for(config: Path, tmp_path: Path) -> None:
    more = hook(tmp_path, "nan", rank=1, step=3) + "\nguards = dict(nonfinite='skip')"
    path = config_with(config, tmp_path, more)
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending, errors=0)
    assert ending.codes == [0, 0], ending.output[-3000:]
    assert re.search(r"step 4 is skipped, number 1 so far: loss\w* is nan", ending.output)
    tensors = load_checkpoint(tmp_path / "w/float/float.pth")["state_dict"].values()
    assert all(bool(t.isfinite().all()) for t in tensors)
    record("the same, `nonfinite='skip'`", "that step", ending, reads="left out", recovered=True)


@pytest.mark.parametrize(
    ("what", "named", "shown"),
    [
        ("lose_gpu", "the GPU of a rank fails", "a GPU of .* failed .unspecified launch failure"),
        ("fill_memory", "the memory of a GPU is full", "the memory of a GPU on .* is full"),
    ],
)
def test_gpu_of_one_rank(config: Path, tmp_path: Path, what: str, named: str, shown: str) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, what, rank=1, step=3))
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending)
    assert ending.codes == [1, 1]
    assert re.search(shown, ending.errors[0]), ending.errors
    assert "Traceback" not in ending.output
    record(named, "steps since the last checkpoint", ending)


def test_losses_of_one_rank_alone_are_refused(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "extra_loss", rank=1, step=2))
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending)
    assert ending.codes == [2, 2]
    assert "losses differ between ranks: loss_extra on rank 1 of 2 alone" in ending.errors[0]
    record("a loss that one rank alone has", "steps since the last checkpoint", ending)


def test_rank_that_diverges_stops_the_job(config: Path, tmp_path: Path) -> None:
    more = hook(tmp_path, "diverge", rank=1, step=3) + "\nguards = dict(compare_every=1)"
    path = config_with(config, tmp_path, more)
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    must_have_ended(ending)
    assert ending.codes == [1, 1]
    assert "differs between ranks" in ending.errors[0]
    record("a weight of one rank changed", "steps since the last checkpoint", ending)


def test_rank_that_never_arrives_is_named(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, "")
    ending = run_ranks_alone(3, "train", path, "--work-dir", tmp_path / "w",
                             "--arrival-timeout", "8", folder=tmp_path, absent=(2,))  # fmt: skip
    must_have_ended(ending)
    assert ending.codes == [1, 1]
    assert re.search(r"rank 2\b.* (did not|has not) arrive", ending.errors[0])
    record("a rank never arrives, `--arrival-timeout 8`", "nothing", ending)


def test_frozen_rank_ends_the_job_with_stacks(config: Path, tmp_path: Path) -> None:
    more = hook(tmp_path, "freeze", rank=1, step=3) + "\nguards = dict(quiet_s=4)"
    path = config_with(config, tmp_path, more)

    def thaw() -> None:  # Continue it, so that the processes of the test can end.
        while len(started(tmp_path)) < 2 or session(started(tmp_path)[0]):
            time.sleep(0.5)
        os.kill(started(tmp_path)[1], signal.SIGCONT)

    threading.Thread(target=thaw, daemon=True).start()
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             "--timeout", "12", folder=tmp_path)  # fmt: skip
    assert ending.left == []
    assert ending.codes[0] != 0
    assert "has not finished" in ending.output
    stacks = (tmp_path / "w/logs/rank_0.stacks").read_text()
    assert "backward" in stacks
    record("a rank stands still, `--timeout 12`", "steps since the last checkpoint", ending)


def test_lost_store_ends_the_job(config: Path, tmp_path: Path) -> None:
    # Under torchrun the agent holds the store.
    path = config_with(config, tmp_path, hook(tmp_path, "delay", rank=0, step=3, argument=1.0),
                       epochs=400)  # fmt: skip

    def kill_agent() -> None:
        while not list(tmp_path.glob("struck*")):
            time.sleep(0.2)
        for pid, line in list(_processes(tmp_path)):
            if "torch.distributed.run" in line:
                os.kill(pid, signal.SIGKILL)

    threading.Thread(target=kill_agent, daemon=True).start()
    ending = run_torchrun(
        2, "train", path, "--work-dir", tmp_path / "w", "--no-validate", folder=tmp_path,
        outlived=True,
    )  # fmt: skip
    assert ending.left == []
    assert ending.seconds < LIMIT_S
    assert re.search(r"error: .*(the store on which ranks meet is gone|lost)", ending.output)
    record("torchrun's agent killed, and with it the store", "steps since the last checkpoint",
           ending)  # fmt: skip


def test_slow_rank_is_named(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "delay", rank=1, step=4, argument=3.0))
    ending = run_ranks_alone(2, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    assert ending.codes == [0, 0], ending.output[-3000:]
    assert re.search(r"rank 1 .*slow|slow.* rank 1", ending.output)
    record("a rank delayed by 3 s", "nothing", ending, reads="is slow at", recovered=True)


def test_second_signal_ends_at_once(config: Path, tmp_path: Path) -> None:
    path = config_with(config, tmp_path, hook(tmp_path, "delay", rank=0, step=3, argument=30.0))

    def interrupt_twice() -> None:
        while not list(tmp_path.glob("struck*")):
            time.sleep(0.2)
        for _ in range(2):
            for pid in started(tmp_path):
                os.kill(pid, signal.SIGINT)
            time.sleep(2)

    threading.Thread(target=interrupt_twice, daemon=True).start()
    ending = run_ranks_alone(1, "train", path, "--work-dir", tmp_path / "w", "--no-validate",
                             folder=tmp_path)  # fmt: skip
    assert ending.codes == [128 + signal.SIGINT]
    assert ending.seconds < 20
