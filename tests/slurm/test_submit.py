"""``launcher submit`` and related commands without Slurm or torch, or with a fake sbatch."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from launcher.commands.cluster.submit import _reserved
from slurm.copies.config_files import check_config, copy_config
from slurm.copies.snapshot import PACKAGES, copy_code
from slurm.record import chains
from tests.launcher.conftest import ROOT, Launch
from tests.slurm.login_node import login


def test_login_node_needs_no_torch(tmp_path: Path, config: Path) -> None:
    work = tmp_path / "work"
    done = login(
        tmp_path, "submit", "--dry-run", "--cluster", "a100", "run", config, "--work-dir", work
    )
    assert done.returncode == 0, done.stderr
    assert "note: torch and mmdet are not installed here" in done.stdout
    assert done.stdout.count("#!/bin/bash") == 4
    assert not work.exists()
    assert login(tmp_path, "jobs").stdout == "nothing was submitted yet\n"
    broken = tmp_path / "broken.py"
    broken.write_text(f"_base_ = [{str(config)!r}]\nmodel = dict(\n")
    for text, name in ((broken.read_text(), "line 2"), ("_base_ = ['no.py']", "no.py")):
        broken.write_text(text)
        done = login(tmp_path, "submit", "qat", broken, "--checkpoint", config)
        assert done.returncode == 2
        assert name in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--cluster", "local", "qat", "{typo}", "--checkpoint", "{config}"),
            "did you mean optimizer?",
        ),
        (
            ("train", "{config}", "--cfg-options", "model.type=SingleStagDetector"),
            "SingleStageDetector?",
        ),
        (("qat", "{config}", "--checkpoint", "no.pth"), "no.pth does not exist"),
        (("qat", "{config}", "--chekpoint", "no.pth"), "--checkpoint"),
        (("--nodess", "2", "qat", "{config}"), "--nodess"),
        (("jobs",), "submit jobs is not possible"),
        (("--time", "1", "run", "{config}"), "give more --time"),
        (("sweep", "{config}", "--presets", "int9"), "int9"),
    ],
)
def test_mistake_is_refused_before_anything_is_written(
    launch: Launch, config: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    typo = tmp_path / "typo.py"
    typo.write_text(f"_base_ = [{str(config)!r}]\noptimzer = dict()\n")
    given = [word.format(typo=typo, config=config) for word in words]
    if given != ["jobs"]:
        given += ["--work-dir", str(tmp_path / "work")]
    code, _, err = launch("submit", *given)
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert message in err
    assert not (tmp_path / "work").exists()


def test_without_sbatch_one_line_says_so(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, err = launch("submit", "run", config, "--work-dir", tmp_path / "work")
    assert code == 2
    assert "sbatch is not on this machine's PATH" in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "work").exists()


def _slurm(monkeypatch: pytest.MonkeyPatch, folder: Path, *, sbatch: str, scancel: str) -> None:
    """Put shell scripts in the place of Slurm's commands."""
    for name, text in {"sbatch": sbatch, "scancel": scancel, "srun": ""}.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def _takes_one(folder: Path, said: str) -> str:
    """Return a sbatch that takes the first job and refuses the second, as accounting would."""
    refuses = f'echo "sbatch: error: Batch job submission failed: {said}" >&2; exit 1'
    first = f"{folder}/first"
    return f"if [ -e {first} ]; then {refuses}; fi; touch {first}; echo Submitted batch job 7"


@pytest.mark.parametrize(
    ("said", "code", "mend"),
    [
        ("Invalid account or account/partition combination specified", 2, "--account"),
        ("Unable to contact slurm controller (connect failure)", 1, "scontrol ping"),
    ],
)
def test_refusal_of_a_later_stage_cancels_the_former(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    said: str, code: int, mend: str,
) -> None:  # fmt: skip
    sbatch = _takes_one(tmp_path, said)
    _slurm(monkeypatch, tmp_path, sbatch=sbatch, scancel=f'echo "$@" > {tmp_path}/cancelled')
    found, _, err = launch("submit", "run", config, "--work-dir", tmp_path / "work")
    assert found == code
    assert mend in err
    assert len(err.strip().splitlines()) == 1, err
    assert (tmp_path / "cancelled").read_text().split() == ["7"]
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
def test_a_scancel_that_fails_does_not_hide_why_it_was_called(
    launch: Launch,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    trouble: str,
) -> None:
    unable = "echo 'scancel: error: Unable to contact' >&2; exit 1"
    _slurm(monkeypatch, tmp_path, sbatch=_takes_one(tmp_path, "Invalid qos"), scancel=unable)
    run = subprocess.run

    def hangs(words: list[str], **others: Any) -> subprocess.CompletedProcess[str]:
        if words[0] == "scancel" and trouble == "hangs":
            raise subprocess.TimeoutExpired(words, others["timeout"])
        return run(words, **others)

    monkeypatch.setattr(subprocess, "run", hangs)
    code, _, err = launch("submit", "run", config, "--work-dir", tmp_path / "work")
    assert code == 2
    assert "Slurm refuses calibrate: " in err
    assert "job 7 may still be waiting or running: scancel " in caplog.text
    assert "then `scancel 7`" in caplog.text


def test_a_record_that_cannot_be_written_cancels_the_jobs(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancels = f'echo "$@" > {tmp_path}/cancelled'
    _slurm(monkeypatch, tmp_path, sbatch="echo Submitted batch job 7", scancel=cancels)

    def full(path: Path, content: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("slurm.record.write_whole", full)
    code, _, err = launch("submit", "train", config, "--work-dir", tmp_path / "work")
    assert code == 1
    assert "chain.json" in err
    assert (tmp_path / "cancelled").read_text().split() == ["7"]


def test_copied_config_reads_as_the_original(config: Path, tmp_path: Path) -> None:
    from dq.detector.config.read import read_config

    folder = tmp_path / "my own"
    (folder / "sub").mkdir(parents=True)
    (folder / "base.py").write_text(f"_base_ = [\n    {str(config)!r},\n]\nlog_level = 'INFO'\n")
    path = folder / "sub/mine.py"
    path.write_text("_base_ = '../base.py'\ndata_root = '{{ fileDirname }}/x'\nquantize = True\n")
    copy = copy_config(path, tmp_path / "copy")
    wanted = read_config(path)
    (folder / "base.py").write_text("nonsense(")
    assert read_config(copy)._cfg_dict == wanted._cfg_dict
    assert wanted.data_root == f"{folder}/sub/x"


def test_work_dir_of_the_config_is_where_jobs_work(
    launch: Launch, config: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base.py"
    base.write_text(f"_base_ = {str(config)!r}\nwork_dir = {str(tmp_path / 'of base')!r}\n")
    mine = tmp_path / "mine.py"
    mine.write_text("_base_ = 'base.py'\n")
    for words, folder in (
        ([], tmp_path / "of base"),
        (["--cfg-options", f"work_dir={tmp_path}/option"], tmp_path / "option"),
        (["--work-dir", tmp_path / "given"], tmp_path / "given"),
    ):
        code, out, err = launch("submit", "--dry-run", "train", mine, *words)
        assert code == 0, err
        assert f"{folder}/submissions" in out


@pytest.mark.slow
def test_local_executor_runs_a_job_from_its_snapshot(
    launch: Launch, config: Path, float_checkpoint: Path, tmp_path: Path
) -> None:
    work = tmp_path / "it's work"
    code, out, err = launch(
        "submit", "--cluster", "local", "--tasks-per-node", "2", "--cpus-per-task", "2",
        "eval", config, "--checkpoint", float_checkpoint, "--work-dir", work, "--device", "cpu",
    )  # fmt: skip
    assert code == 0, out + err
    chain = chains()[-1]
    assert (work / "eval/summary.json").is_file()
    assert re.search(r"^mAP \d", out, re.MULTILINE), out  # 4.9e-05 is one, too
    assert "checkpoint" not in out.partition("_log.out")[2]
    assert (Path(chain.folder) / "code/launcher/cli.py").is_file()
    assert "rank 0 of 2 on cpu, 2 threads" in chain.log(chain.jobs[0], 0).read_text()
    code, out, _ = launch("jobs", chain.name)
    assert "COMPLETED" in out
    assert time.time() > chain.created


def test_a_snapshot_has_all_that_the_packages_have(tmp_path: Path) -> None:
    copy_code(tmp_path / "code")
    missing = [
        path.relative_to(ROOT)
        for name in PACKAGES
        for path in (ROOT / name).rglob("*")
        if path.is_file()
        and "__pycache__" not in path.parts
        and not (tmp_path / "code" / path.relative_to(ROOT)).is_file()
    ]
    assert missing == []


def test_a_snapshot_has_what_a_package_of_the_user_s_reads(tmp_path: Path) -> None:
    """Whatever the files are called: compiled operators, class names, weights, a linked folder."""
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.py").touch()
    (mine / "linked").symlink_to(tmp_path / "elsewhere")
    (mine / "sub/around").symlink_to(mine)
    wanted = ["ops.so", "kernel.cu", "op.cpp", "op.h", "names.csv", "LICENSE", "prior.npy", "a.pth",
              ".hidden", "run.sh", "sub/data.bin"]  # fmt: skip
    for name in [*wanted, "__pycache__/x.pyc", ".git/config", "old.pyc"]:
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).touch()
    (mine / "run.sh").chmod(0o755)
    copy_code(tmp_path / "code", source=tmp_path / "nothing", more=(mine,))
    copied = {
        str(p.relative_to(tmp_path / "code/mine")) for p in (tmp_path / "code").rglob("*")
        if p.is_file()
    }  # fmt: skip
    assert copied == {*wanted, "linked/b.py"}
    assert os.access(tmp_path / "code/mine/run.sh", os.X_OK)


def test_an_installed_package_has_its_data_too() -> None:
    """Data files next to modules are listed for the wheel as well."""
    named = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    patterns = [
        (package.replace(".", "/"), pattern)
        for package, found in named["package-data"].items()
        for pattern in found
    ]
    for name in ("launcher", "dq", "slurm"):
        for path in (ROOT / name).rglob("*"):
            if path.is_file() and path.suffix not in (".py", ".pyc"):
                assert any(path in (ROOT / folder).glob(p) for folder, p in patterns), path


def test_a_config_that_is_its_own_base_is_refused(tmp_path: Path) -> None:
    for one, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{one}.py").write_text(f"_base_ = './{other}.py'\n")
    with pytest.raises(ValueError, match="is its own base"):
        check_config(tmp_path / "a.py")
    # Two bases with a base in common are no circle.
    (tmp_path / "common.py").write_text("x = 1\n")
    (tmp_path / "b.py").write_text("_base_ = './common.py'\n")
    (tmp_path / "a.py").write_text("_base_ = ['./b.py', './common.py']\n")
    check_config(tmp_path / "a.py")


def test_a_folder_that_cannot_be_created_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(ValueError, match="cannot be created: Not a directory; choose another"):
        _reserved(tmp_path / "runs/doctor/submissions/doctor-1")


def test_two_submissions_of_the_same_second_do_not_meet(
    launch: Launch, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both looked for a free name before either took it; the later one takes another."""
    work = tmp_path / "work"
    names = iter(["same", "same-2"])
    monkeypatch.setattr("slurm.record.new_name", lambda stem, folder: next(names))
    (work / "submissions/same/jobs").mkdir(parents=True)
    (work / "submissions/same/jobs/theirs").write_text("")
    _slurm(monkeypatch, tmp_path, sbatch="echo Submitted batch job 7", scancel="")
    code, out, err = launch("submit", "train", config, "--work-dir", work)
    assert code == 0, err
    assert "same-2" in out
    assert [p.name for p in (work / "submissions/same/jobs").iterdir()] == ["theirs"]
    assert (work / "submissions/same-2/code").is_dir()
