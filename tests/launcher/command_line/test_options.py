"""Every option in a message or on a page exists in a parser."""

from __future__ import annotations

import argparse
import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dq.detector.config.mmdet_flags import REFUSED_FLAGS
from launcher.cli import build_parsers, main
from launcher.commands.cluster.submit import add_sweep

ROOT = Path(__file__).resolve().parents[3]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_-]*")
# Options of other programs, by program.
OTHERS = {
    "torchrun": (
        *("--nproc-per-node", "--nnodes", "--standalone", "--local-addr", "--master-port"),
        *("--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rdzv-conf", "--signals-to-handle"),
    ),
    "srun": (
        *("--ntasks-per-node", "--kill-on-bad-exit", "--container-image", "--container-mounts"),
        *("--pty", "--overlap", "--preserve-env", "--gpus-per-task"),
        *("--mem", "--exclude"),
    ),
    "tensorboard": ("--logdir",),
    "sha256sum": ("--check",),
    "wandb": ("--include-online", "--include-synced"),
    "git": ("--porcelain", "--untracked-files", "--short"),
    "pytest": ("--dist", "--durations", "--durations-min"),
    "sinfo": ("--noheader",),
    "docker": ("--shm-size", "--ipc"),
}
PAGES = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *ROOT.glob("slurm/profiles/*")]
SOURCES = [p for name in ("dq", "launcher", "slurm") for p in ROOT.glob(f"{name}/**/*.py")]


def options_of(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield from parser._option_string_actions
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from options_of(child)


@functools.cache
def of_the_launcher() -> frozenset[str]:
    sweep = argparse.ArgumentParser()
    add_sweep(sweep)
    parsers = [build_parsers()[0], sweep]
    return frozenset(name for parser in parsers for name in options_of(parser))


@functools.cache
def of_benchmarks() -> frozenset[str]:
    """Return the options in benchmarks: all strings that are nothing but an option."""
    found = (text for p in ROOT.glob("benchmarks/**/*.py") for _, text in texts(p))
    return frozenset(text for text in found if OPTION.fullmatch(text))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Yield a source's strings with their lines: also docstrings and the parts of f-strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_options_in_messages_exist(path: Path) -> None:
    known = of_the_launcher() | set(REFUSED_FLAGS) | {o for names in OTHERS.values() for o in names}
    # An example in a docstring.
    known |= {"--token"} if path.name == "secrets.py" else set()
    wrong = [
        f"{path.name}:{line}: {option}"
        for line, text in texts(path)
        for option in OPTION.findall(text)
        if option not in known
    ]
    assert not wrong


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_options_on_pages_exist(path: Path) -> None:
    known = of_the_launcher() | of_benchmarks() | set(REFUSED_FLAGS)
    known |= {option for names in OTHERS.values() for option in names}
    lines = path.read_text().splitlines()
    wrong = [
        f"{path.name}:{number}: {option}"
        for number, line in enumerate(lines, 1)
        for option in OPTION.findall(line)
        if option not in known
    ]
    assert not wrong


def test_what_others_understand_is_needed() -> None:
    words = " ".join(p.read_text() for p in (*SOURCES, *PAGES))
    unused = [o for names in OTHERS.values() for o in names if o not in words]
    assert not unused


def test_a_flag_of_another_command_is_named_as_such(capsys: pytest.CaptureFixture[str]) -> None:
    for words, mend in (
        (["jobs", "--work-dir", "x"], "--work-dir is for train, calibrate, quantize, qat"),
        (["train", "c.py", "--trust-checkpont"], "did you mean --trust-checkpoint?"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == 2
        assert mend in capsys.readouterr().err
