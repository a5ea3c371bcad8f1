"""The whole text of a job, and its arguments."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.cli import COMMANDS
from slurm.plan import Element, Job, chain, float_links, single, sweep
from slurm.profile import STAGES, Profile, read_profile
from slurm.text import FAILURE_MARK, Place, check_place, job_text, mark_name

PLACE = Place(
    chain="tiny-1",
    folder=Path("/runs/o'k/submissions/tiny-1"),
    cwd=Path("/home/me/my work"),
    group="it's mine",
)
NO_OPTIONS = dict.fromkeys(("train", "calibrate", "qat", "eval"), ())
WHOLE = """\
#!/bin/bash

# Parameters
#SBATCH --account=vision
#SBATCH --array=0-1%1
#SBATCH --chdir='/home/me/my work'
#SBATCH --cpus-per-task=8
#SBATCH --dependency=afterok:41
#SBATCH --gpus-per-node=a100:4
#SBATCH --job-name=tiny-1:qat
#SBATCH --kill-on-invalid-dep=yes
#SBATCH --mem=64GB
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/runs/o'"'"'k/submissions/tiny-1/jobs/%A_%a_0_log.out'
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation='the night'
#SBATCH --signal=USR2@180
#SBATCH --time=750

# setup
export NCCL_SOCKET_IFNAME=ib0
module load cuda
# The code at submission; other modules come from the folder of the submission.
export PYTHONPATH='/runs/o'"'"'k/submissions/tiny-1/code'"${PYTHONPATH:+:$PYTHONPATH}":'/home/me/my work' PYTHONSAFEPATH=1
# The last element has the array's own job number, which means all elements.
self="$SLURM_JOB_ID"
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || self="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
# Where the ranks meet: the first node, on a free port. Do not try the next port:
# the array's next element uses it and may be starting there too.
export MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((20000 + (MASTER_PORT + 1009) % 10000)); done
export MASTER_PORT
# For W&B, if it is used.
export WANDB_RUN_GROUP=${WANDB_RUN_GROUP:-'it'"'"'s mine'}
export WANDB_NOTES="${WANDB_NOTES:+$WANDB_NOTES; }slurm job $self on $SLURM_JOB_NODELIST"
export WANDB_TAGS="${WANDB_TAGS:+$WANDB_TAGS,}slurm-$self,array-$SLURM_ARRAY_TASK_ID"
# The warning is for the ranks; this script ignores it, so that it can requeue the job.
trap : TERM USR1 USR2

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output '/runs/o'"'"'k/submissions/tiny-1/jobs/%A_%a_%t_log.out' --kill-on-bad-exit=1 --cpus-per-task=8 --container-image=/images/dq.sqsh --container-mounts=/data:/data,/home:/home --mpi=pmix python3 -u -m submitit.core._submit '/runs/o'"'"'k/submissions/tiny-1/jobs'


# teardown
code=$?
# The first rank leaves a mark if a signal stopped it after it wrote a checkpoint. A job
# that was cancelled, or that Slurm requeues itself, is no longer RUNNING.
mark='/runs/o'"'"'k/submissions/tiny-1/jobs'/"${self}_${SLURM_RESTART_COUNT:-0}"
# A task that is only starting cannot handle a warning and is killed by it.
case "$code" in 138 | 140) touch "${mark}_requeue";; esac
# When a rank dies or fails, srun sends SIGTERM to the others, which stop as if they were
# asked to. The rank would fail again, so the job is not requeued.
why=
case "$code" in 132 | 133 | 134 | 135 | 136 | 137 | 139) why="a rank died (exit code $code)";; esac
[ ! -e "${mark}_failed" ] || why="a rank failed"
if [ -e "${mark}_requeue" ] && [ -n "$why" ]; then
    echo "error: $why, and its log says more; the job is not requeued"
elif [ -e "${mark}_requeue" ]; then
    for _ in 1 2 3 4 5 6; do  # Slurm's controller may be down for a while.
        if state="$(squeue -h -j "$self" -o %T)"; then
            [ "$state" = RUNNING ] || break
            scontrol requeue "$self" && sleep 60 && break  # Slurm ends the script here.
        fi
        sleep 10
    done
fi
exit $code"""  # noqa: E501


def test_whole_text_of_an_array() -> None:
    profile = Profile(
        partition="gpu",
        account="vision",
        time="12:30:00",
        nodes=2,
        gpus_per_node=4,
        gpu_type="a100",
        cpus_per_task=8,
        mem_gb=64,
        signal_delay_s=180,
        parallel=1,
        setup=("module load cuda",),
        python="python3",
        container="/images/dq.sqsh",
        container_mounts=("/data:/data", "/home:/home"),
        srun=("--mpi=pmix",),
        sbatch={"reservation": "the night"},
        environment={"NCCL_SOCKET_IFNAME": "ib0"},
    )
    elements = tuple(Element(words=("qat", c), experiment=Path("/runs")) for c in "ab")
    job = Job(name="qat", elements=elements, profile=profile, after="calibrate")
    assert job_text(job, PLACE, "41") == WHOLE


def test_default_profile_requests_nothing() -> None:
    job = Job(
        name="eval",
        elements=(Element(words=("eval",), experiment=Path("/r")),),
        profile=Profile(),
    )
    text = job_text(job, PLACE)
    for word in ("gpu", "partition", "account", "mem", "array", "dependency", "container", "wckey"):
        assert f"--{word}" not in text
    assert "#SBATCH --time=1440\n" in text


def test_torchrun_is_one_task_a_node() -> None:
    profile = Profile(gpus_per_node=4, cpus_per_task=8, torchrun=True)
    text = job_text(*((single(["qat", "c.py"], Path("/r"), profile)[0]), PLACE))
    assert "--ntasks-per-node=1" in text
    assert "--cpus-per-task=32" in text


def test_place_that_slurm_would_misread_is_refused() -> None:
    with pytest.raises(ValueError, match="'%'"):
        check_place(replace(PLACE, folder=Path("/runs/100%/x")))


def test_chain_passes_checkpoints_and_calibrates_on_one_gpu() -> None:
    jobs = chain(
        config="/s/c.py",
        experiment=Path("/r/c"),
        profile=Profile(nodes=2, gpus_per_node=4, stages={"qat": {"time": 90}}),
        options={
            "train": ["--seed", "3", "--no-validate"],
            "calibrate": ["--seed", "3"],
            "qat": ["--seed", "3", "--no-validate"],
            "eval": ["--seed", "3"],
        },
    )
    assert [(j.name, j.after) for j in jobs] == [
        ("float", None), ("calibrate", "float"), ("qat", "calibrate"), ("eval", "qat"),
    ]  # fmt: skip
    words = {job.name: " ".join(job.elements[0].words) for job in jobs}
    assert words == {
        "float": "train /s/c.py --work-dir /r/c --seed 3 --no-validate --reuse --resume",
        "calibrate": "calibrate /s/c.py --checkpoint /r/c/float/float.pth --work-dir /r/c --seed 3"
        " --reuse",
        "qat": "qat /s/c.py --checkpoint /r/c/calibrated/calibrated.pth --work-dir /r/c --seed 3"
        " --no-validate --reuse --resume",
        "eval": "eval /s/c.py --checkpoint /r/c/qat/qat.pth --table --work-dir /r/c --seed 3",
    }
    wants = {j.name: (j.profile.nodes, j.profile.gpus_per_node, j.profile.minutes) for j in jobs}
    assert wants == {
        "float": (2, 4, 1440), "calibrate": (1, 1, 1440), "qat": (2, 4, 90), "eval": (2, 4, 1440),
    }  # fmt: skip


def test_sweep_trains_in_float_once_for_all_presets() -> None:
    jobs = sweep(
        configs=[("a", "/s/a.py"), ("b", "/s/b.py")],
        presets=["int8", "w4a8"],
        seeds=[0, 1],
        folder=Path("/r"),
        profile=Profile(parallel=2),
        options={"train": ["--sync-bn", "off"], "run": ["--sync-bn", "off"]},
        cfg_options=["optimizer.lr=0.1"],
    )
    assert jobs[0].elements[0].words == (
        "train", "/s/a.py", "--work-dir", "/r/a-seed0", "--seed", "0", "--reuse", "--resume",
        "--sync-bn", "off", "--cfg-options", "optimizer.lr=0.1",
    )  # fmt: skip
    assert [(job.name, len(job.elements), job.after) for job in jobs] == [
        ("float", 4, None), ("sweep", 8, "float"),
    ]  # fmt: skip
    assert float_links(jobs)[Path("/r/b-seed1-w4a8/float")] == Path("/r/b-seed1/float")
    assert jobs[1].elements[-1].words == (
        "run", "/s/b.py", "--work-dir", "/r/b-seed1-w4a8", "--seed", "1", "--sync-bn", "off",
        "--resume", "--cfg-options", "optimizer.lr=0.1", "quant.preset=w4a8",
    )  # fmt: skip
    assert "--array=0-7%2" in job_text(jobs[1], PLACE)


@pytest.mark.parametrize("turned", [False, True])
def test_each_run_of_a_sweep_links_to_its_own_float_training(turned: bool) -> None:
    names = ["a", "a-seed1", "a-seed1-b", "a-seed1-int8"]
    jobs = sweep(
        configs=[(name, f"/s/{name}.py") for name in (names[::-1] if turned else names)],
        presets=["int8", "b"],
        seeds=[1, 11],
        folder=Path("/r"),
        profile=Profile(),
        options={"train": [], "run": []},
        cfg_options=[],
    )
    floats = {
        Path(f"/r/{name}-seed{seed}-{preset}/float"): Path(f"/r/{name}-seed{seed}/float")
        for name in names
        for seed in (1, 11)
        for preset in ("int8", "b")
    }
    assert float_links(jobs) == floats


@pytest.mark.parametrize("name", ["gpu", "a100", "h100"])
def test_included_profiles_make_a_job(name: str) -> None:
    profile = read_profile(name, {"nodes": 2, "time": None})
    jobs = chain(config="c.py", experiment=Path("/r"), profile=profile, options=NO_OPTIONS)
    texts = [job_text(job, PLACE, "1") for job in jobs]
    assert "#SBATCH --nodes=2" in texts[2]
    assert "--gpus-per-node=1\n" in texts[1]
    assert "exclusive" not in texts[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin = 'gpu'", "did you mean partition"),
        ("nodes = 0", "at least 1"),
        ("nodes = 'two'", "must be a int"),
        ("exclusive = 1", "must be a bool"),
        ("setup = 'module load'", "must be a list of texts"),
        ("srun = [1]", "must be a list of texts"),
        ("[stages]\nqat = 3", "stages.qat is 3; it must be a table"),
        ("time = 'soon'", "not a duration"),
        ("time = 3\nsignal_delay_s = 150", "the last 150 s"),
        ("[stages.qat]\nnods = 3", "stages.qat: nods"),
        ("[stages.calibration]\nnodes = 3", r"stages.calibration\] .*; did you mean calibrate\?"),
        ("[stages.run]\nnodes = 3", r"stages.run\] is no stage"),
        ("nodes = ", "cannot be read"),
    ],
)
def test_mistake_in_a_profile_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_profile(str(path), {})


def test_the_stages_of_profiles_are_the_names_of_jobs() -> None:
    # `submit run` is the chain, whose jobs are named after its stages.
    alone = set(COMMANDS) - {"submit", "jobs", "logs", "cancel", "run"}
    chained = chain(config="c.py", experiment=Path("/r"), profile=Profile(), options=NO_OPTIONS)
    swept = sweep(
        configs=[("a", "a.py")],
        presets=["int8", "w4a8"],
        seeds=[0],
        folder=Path("/r"),
        profile=Profile(),
        options={"train": (), "run": ()},
    )
    named = {job.name for job in [*chained, *swept]}
    named |= {single([word], Path("/r"), Profile())[0].name for word in alone}
    assert named == set(STAGES)


def test_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match="local, debug, a100, gpu, h100"):
        read_profile("nowhere", {})


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), (90, 90), ("90:30", 91), ("1:30:00", 90), ("1-12", 2160), ("1-0:30", 1470),
     ("2-01:02:03", 2943)],
)  # fmt: skip
def test_durations_of_slurm(text: str | int, minutes: int) -> None:
    assert Profile(time=text).minutes == minutes


@pytest.mark.parametrize(
    ("variables", "meant"),
    [
        ({"SLURM_JOB_ID": "7"}, "7"),
        # The last element of an array: its number is the array's own.
        ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),
        ({"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0"}, "7_0"),
    ],
)
@pytest.mark.parametrize(
    ("state", "failures", "requeued"),
    [("RUNNING", 0, True), ("RUNNING", 2, True), ("COMPLETING", 0, False), ("PENDING", 1, False)],
)
def test_a_job_asks_for_and_requeues_itself_alone(
    tmp_path: Path, variables: dict[str, str], meant: str, state: str, failures: int,
    requeued: bool,
) -> None:  # fmt: skip
    """The Slurm commands that the text uses; each fails ``failures`` times before it answers."""
    tools, jobs = tmp_path / "bin", tmp_path / "sub/jobs"
    tools.mkdir()
    jobs.mkdir(parents=True)
    away = f"echo >> {tmp_path}/$(basename $0); [ $(wc -l < {tmp_path}/$(basename $0)) -gt {failures} ] || exit 1;"  # noqa: E501
    words = {
        "squeue": f'{away} [ "$3" = {meant} ] && echo {state}',
        "scontrol": f'{away} echo "$@" >> {tmp_path}/asked',
        "sleep": "true",
    }
    for name, text in words.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    place = replace(PLACE, folder=tmp_path / "sub")
    elements = (Element(words=("run", "c.py"), experiment=tmp_path),)
    lines = job_text(Job(name="qat", elements=elements, profile=Profile()), place).splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("self="))
    text = [*lines[first : first + 2], "(exit 75)", *lines[lines.index("code=$?") :]]
    (jobs / mark_name(variables)).touch()
    environ = {"PATH": f"{tools}:/usr/bin:/bin", **variables}
    done = subprocess.run(["bash", "-c", "\n".join(text)], env=environ, check=False)
    assert done.returncode == 75
    asked = (tmp_path / "asked").read_text().split() if (tmp_path / "asked").exists() else []
    assert asked == (["requeue", meant] if requeued else [])


@pytest.mark.parametrize(
    ("code", "failed", "requeued"),
    [(75, False, True), (143, False, True), (137, False, False), (139, False, False),
     (134, False, False), (75, True, False), (1, True, False)],
)  # fmt: skip
def test_a_rank_that_died_or_failed_is_not_started_again(
    tmp_path: Path, code: int, failed: bool, requeued: bool
) -> None:
    """The first rank was stopped by srun because of it, and has left its mark."""
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / mark_name({"SLURM_JOB_ID": "7"})).touch()
    assert _ends(tmp_path, code, failed=failed) is requeued


@pytest.mark.parametrize(("code", "requeued"), [(138, True), (140, True), (0, False), (1, False)])
def test_a_task_that_was_warned_while_it_started_is_started_again(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    """Without handlers, SIGUSR1 and SIGUSR2 end a process; no rank could leave a mark."""
    (tmp_path / "jobs").mkdir()
    assert _ends(tmp_path, code, failed=False) is requeued


def _ends(tmp_path: Path, code: int, *, failed: bool) -> bool:
    """Run the end of a job's text; return whether it requeues the job."""
    variables = {"SLURM_JOB_ID": "7"}
    (tmp_path / "squeue").write_text("#!/bin/bash\necho RUNNING\n")
    (tmp_path / "scontrol").write_text(f"#!/bin/bash\ntouch {tmp_path}/asked\n")
    (tmp_path / "sleep").write_text("#!/bin/bash\n")
    for name in ("squeue", "scontrol", "sleep"):
        (tmp_path / name).chmod(0o755)
    place = replace(PLACE, folder=tmp_path)
    elements = (Element(words=("run", "c.py"), experiment=tmp_path),)
    lines = job_text(Job(name="qat", elements=elements, profile=Profile()), place).splitlines()
    text = ["self=7", f"(exit {code})", *lines[lines.index("code=$?") :]]
    if failed:
        (place.jobs / mark_name(variables, FAILURE_MARK)).touch()
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    done = subprocess.run(
        ["bash", "-c", "\n".join(text)], env=environ, check=False, capture_output=True, text=True
    )
    assert done.returncode == code
    requeued = (tmp_path / "asked").exists()
    marked = (place.jobs / mark_name(variables)).exists()
    assert done.stdout.count("error: a rank ") == int(marked and not requeued)
    return requeued


def test_every_mention_of_a_job_is_by_array_and_index() -> None:
    """The last element's plain number is the array's; only the port may be derived from it."""
    elements = tuple(Element(words=("qat", c), experiment=Path("/runs")) for c in "ab")
    text = job_text(Job(name="qat", elements=elements, profile=Profile(torchrun=True)), PLACE)
    mentions = [line for line in text.splitlines() if "SLURM_JOB_ID" in line]
    assert [line[:5] for line in mentions] == ["self=", "MASTE"]
