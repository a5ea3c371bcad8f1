"""Every command line on a page is one that its program understands."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import re
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest
from torch.distributed.run import get_args_parser

from dq.shipped import path_of
from launcher.cli import build_parsers
from launcher.command_line import auto
from launcher.command_line.words import ordered
from launcher.commands.cluster.submit import add_sweep
from tests.docs.check_key import check_key
from tests.docs.pages import PAGES, ROOT, blocks, command_lines, inline_code, words_of

SHELL = ("", "sh", "bash", "shell", "console")
MAKEFILE = (ROOT / "Makefile").read_text()
LINES = [
    (block.place, line)
    for page in PAGES
    for block in blocks(page)
    if block.language in SHELL
    for line in command_lines(block.text)
]
# Programs that are no part of this project; what follows them is not read.
OTHERS = ("srun", "pytest", "mkdocs")


class RefusedError(Exception):
    """A parser does not understand a command line."""


class UnderstoodError(Exception):
    """A parser does; the program must not go on."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


def parsed(parser: argparse.ArgumentParser, words: list[str]) -> argparse.Namespace:
    """Parse words, a number in the place of an ``N``.

    Raises:
        RefusedError: With the parser's message.
    """
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        try:
            return parser.parse_args(with_numbers(parser, words))
        except SystemExit as ended:
            if not ended.code:  # --help, --version
                return argparse.Namespace()
            raise RefusedError(output.getvalue().strip()) from None


def with_numbers(parser: argparse.ArgumentParser, words: list[str]) -> list[str]:
    """Return the words with 1 for placeholders of options that are numbers."""
    found = list(words)
    for here, word in enumerate(words[:-1]):
        action = parser._option_string_actions.get(word)
        if action is not None and action.type in (int, float) and words[here + 1].isupper():
            found[here + 1] = "1"
    return found


def check_launcher(words: list[str]) -> None:
    """Raise RefusedError for wrong arguments of the launcher, or a config that is not there."""
    parser, children = build_parsers()
    words = ordered(words, children)
    if words[:1] == ["auto"] or (words and words[0] not in children and words[0].isupper()):
        given = parsed(auto.parser(), words[1:] if words[:1] == ["auto"] else words)
    else:
        child = children.get(words[0]) if words else None
        given = parsed(parser, [*words[:1], *with_numbers(child or parser, words[1:])])
    if getattr(given, "command", None) == "submit":
        if given.job == "sweep":
            sweep = argparse.ArgumentParser(prog="launcher submit sweep", allow_abbrev=False)
            add_sweep(sweep)
            given = parsed(sweep, given.words)
        else:
            check_launcher([given.job, *given.words])
    configs = [getattr(given, "config", None), *(getattr(given, "configs", None) or [])]
    for config in filter(None, configs):
        check_config(config)
    for option in getattr(given, "cfg_options", None) or []:
        check_key(option.partition("=")[0])


def check_config(name: str) -> None:
    """Raise RefusedError for a config that does not ship, unless it is the user's own."""
    is_own = name.isupper() or (Path(name).suffix and not name.startswith("configs/"))
    if not is_own and path_of(name) is None:
        raise RefusedError(f"there is no config {name}")


def parser_of(name: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser | None:
    """Return the parser of a program of ours; None if the program takes no arguments.

    Raises:
        RefusedError: There is no such program.
    """
    try:
        module: Any = importlib.import_module(name)
        if hasattr(module, "__path__"):
            module = importlib.import_module(f"{name}.__main__")
    except ModuleNotFoundError as error:
        raise RefusedError(str(error)) from None
    if not hasattr(module, "main"):
        return None

    def stop(self: argparse.ArgumentParser, *_: Any) -> NoReturn:
        raise UnderstoodError(self)

    with monkeypatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        with pytest.raises(UnderstoodError) as ended:
            module.main()
    return ended.value.parser


def check_module(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise RefusedError if the parser of a program of ours does not understand its arguments."""
    parser = parser_of(name, monkeypatch)
    if parser is not None:
        parsed(parser, words)
    elif words:
        raise RefusedError(f"{name} takes no arguments")


def check_make(words: list[str]) -> None:
    """Raise RefusedError for a target or a variable that the Makefile does not have."""
    targets = {t for line in re.findall(r"^([\w -]+):(?!=)", MAKEFILE, re.M) for t in line.split()}
    variables = set(re.findall(r"^(\w+) \?=", MAKEFILE, re.M))
    for word in words:
        name, is_variable, _ = word.partition("=")
        if name not in (variables if is_variable else targets):
            raise RefusedError(f"the Makefile has no {name}")


def check_pip(words: list[str]) -> None:
    """Raise RefusedError for an extra that the project does not have."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for word in words:
        extras = re.fullmatch(rf"(?:\.|{project['name']})\[([\w,]+)\]", word)
        for name in extras[1].split(",") if extras else ():
            if name not in project["optional-dependencies"]:
                raise RefusedError(f"the project has no extra {name}")


def check(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise RefusedError for a command that its program does not understand."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program = Path(words[0]).name
    rest = words[1:]
    if "-m" in rest and program != "pytest":
        here = rest.index("-m")
        if program == "torchrun":
            parsed(torchrun(), [*without_script(rest[:here]), "-m", rest[here + 1]])
        name, given = rest[here + 1], rest[here + 2 :]
        if name == "launcher":
            check_launcher(given)
        elif name.partition(".")[0] in ("benchmarks", "tests"):
            check_module(name, given, monkeypatch)
        elif name not in OTHERS and name != "pip":
            raise RefusedError(f"python -m {name} is not known here")
    elif program in ("launcher", "dq-launcher"):
        check_launcher(rest)
    elif program == "make":
        check_make(rest)
    elif program == "pip":
        check_pip(rest)
    elif program == "torchrun":
        parsed(torchrun(), [*without_script(rest), "train.py"])
    elif program.startswith("python"):
        raise RefusedError("which file or module?")
    elif program not in OTHERS:
        raise RefusedError(f"{program} is not known here")


@functools.cache
def torchrun() -> argparse.ArgumentParser:
    """Return torchrun's own parser."""
    return get_args_parser()


def without_script(words: list[str]) -> list[str]:
    """Return torchrun's words without a script."""
    return [word for word in words if not word.endswith(".py")]


def test_there_are_many_command_lines() -> None:
    assert len(LINES) > 60


@pytest.mark.parametrize(("place", "line"), LINES)
def test_a_command_line_is_understood(
    place: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for words in words_of(line):
        try:
            check(words, monkeypatch)
        except (RefusedError, LookupError) as refused:
            pytest.fail(f"{place}: {line}\n{refused}")


@pytest.mark.parametrize(
    "line",
    [
        "python -m launcher trian CONFIG",
        "python -m launcher train CONFIG --no-such-option",
        "python -m launcher export CONFIG --format onnx-qqd --checkpoint A.pth",
        "torchrun --nproc-per-nodes 2 -m launcher train CONFIG",
        "python -m launcher run configs/bccd/not_there.py",
        "python -m launcher submit --cluster a100 run CONFIG --no-such-option",
        "python -m launcher train CONFIG --cfg-options quant.schedule.round_aftr=1",
        "python -m benchmarks.bits CONFIG --no-such-option",
        "make no-such-target",
        "make test WORKER=1",
        "pip install -e '.[no_such_extra]'",
        "python",
    ],
)
def test_a_wrong_command_line_is_found(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command_lines(line) == [line]
    with pytest.raises((RefusedError, LookupError)):
        check(words_of(line)[0], monkeypatch)


def fragments(page: Path) -> list[list[str]]:
    """Return the commands of the launcher in a page's text, each without the launcher's name."""
    found = []
    for code in inline_code(page):
        match = re.match(r"(?:\S*python3? -m |torchrun .*-m |dq-)?launcher (.+)", code)
        if match:
            found += words_of(match[1].replace("'", ""))
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_the_text_have_these_options(page: Path) -> None:
    """A command in a sentence may be incomplete, but what is there must be right."""
    _, children = build_parsers()
    wrong = []
    for words in fragments(page):
        command = next((word for word in words if word in children), None)
        parser = auto.parser() if command is None else children[command]
        if command is None and not words[0].isupper() and not words[0].startswith(("-", "configs")):
            wrong.append(f"launcher {words[0]}")
        known = set(parser._option_string_actions) | {"--help", "--version"}
        if command == "submit":
            known |= {o for child in children.values() for o in child._option_string_actions}
            known |= {"--presets", "--seeds"}
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                known |= {o for p in action.choices.values() for o in p._option_string_actions}
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        wrong += [f"launcher {command} {option}" for option in options if option not in known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_programs_in_the_text_have_these_options(
    page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = []
    for code in inline_code(page):
        match = re.match(r"(?:\S*python3? |torchrun .*)-m ((?:benchmarks|tests)[\w.]*)(.*)", code)
        if match:
            parser = parser_of(match[1], monkeypatch)
            known = set() if parser is None else set(parser._option_string_actions)
            wrong += [f"{code}: {o}" for o in re.findall(r"--[\w-]+", match[2]) if o not in known]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_make_targets_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        if re.match(r"make \w", code):
            check_make(code.split()[1:])
