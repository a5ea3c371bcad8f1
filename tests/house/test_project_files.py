"""The files for GitHub, pre-commit and containers: they parse, and run what the Makefile runs."""

from __future__ import annotations

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.cli import build_parser
from tests.conftest import ROOT

TEMPLATES = ROOT / ".github/ISSUE_TEMPLATE"
YAML = sorted([*ROOT.glob(".github/**/*.yml"), *ROOT.glob(".*.yaml")])


def recipe(target: str) -> list[str]:
    """Return the commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:.*\n((?:\t.*\n?)+)", text, re.M)
    assert found is not None, target
    lines = [line.strip() for line in found[1].splitlines()]
    return [line.replace("$(VENV)", ".venv") for line in lines]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def instructions() -> list[tuple[str, str]]:
    """Return the instructions of the Dockerfile with their arguments, lines joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_yaml_is_read(path: Path) -> None:
    assert isinstance(loaded(path), dict)


def test_the_workflow_runs_what_ci_runs_and_nothing_else() -> None:
    for path in ROOT.glob(".github/workflows/*.yml"):
        for job in loaded(path)["jobs"].values():
            commands = [step["run"] for step in job["steps"] if "run" in step]
            assert commands == [".ci/run"]
            uses = [step["uses"].partition("@")[0] for step in job["steps"] if "uses" in step]
            assert uses == ["actions/checkout", "actions/setup-python", "actions/cache"]
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_the_workflow_caches_the_wheels_where_the_set_up_keeps_them() -> None:
    (cache,) = (
        step["with"]
        for step in loaded(ROOT / ".github/workflows/ci.yml")["jobs"]["test"]["steps"]
        if "cache" in step.get("uses", "")
    )
    assert cache["path"] == "~/.cache/dq-launcher/wheels"
    source = (ROOT / "setup/mmcv_wheel.py").read_text()
    assert 'Path.home() / ".cache"' in source
    assert '"dq-launcher" / "wheels"' in source
    for pattern in re.findall(r"'([^']+)'", cache["key"]):
        assert list(ROOT.glob(pattern)), pattern


def test_hooks_are_the_checks_of_the_makefile() -> None:
    (repository,) = loaded(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    hooks = [hook["entry"].replace(" --force-exclude", "") for hook in repository["hooks"]]
    assert hooks == [command.removesuffix(" .") for command in recipe("check")]
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}


def test_a_bug_report_asks_for_commands_that_exist() -> None:
    text = (TEMPLATES / "bug_report.yml").read_text()
    commands = re.findall(r"`launcher ([^`]+)`", text)
    assert "doctor --json" in commands
    for command in commands:
        words = shlex.split(command)
        if words == ["--version"]:
            with pytest.raises(SystemExit) as ended:
                build_parser().parse_args(words)
            assert ended.value.code == 0
        else:
            assert build_parser().parse_args(words).command == words[0]


@pytest.mark.parametrize("name", ["bug_report", "feature_request"])
def test_fields_of_a_template_have_names_of_their_own(name: str) -> None:
    form = loaded(TEMPLATES / f"{name}.yml")
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields) >= 3
    assert all(field["attributes"]["label"] for field in fields)


def test_the_image_has_what_the_readme_names_and_is_set_up_by_make() -> None:
    found = instructions()
    stages = [words.split() for name, words in found if name == "FROM"]
    assert stages[0][0].startswith("python:3.11")
    assert "Python 3.11, gcc, make" in (ROOT / "README.md").read_text()
    runs = [words for name, words in found if name == "RUN"]
    assert {"gcc", "g++", "make"} <= set(runs[0].split())
    assert runs[-1].endswith("make setup")
    (entry,) = (words for name, words in found if name == "ENTRYPOINT")
    assert json.loads(entry) == ["python", "-m", "launcher"]
    (path,) = (words for name, words in found if name == "ENV")
    copied = next(words for name, words in found if name == "WORKDIR")
    assert path == f"PATH={copied}/.venv/bin:$PATH"


def test_the_image_does_not_copy_what_git_ignores() -> None:
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().split()}
    left_out = {line.removeprefix("**/") for line in (ROOT / ".dockerignore").read_text().split()}
    assert ignored <= left_out
    assert ".git" in left_out


def test_the_devcontainer_is_a_stage_of_the_image() -> None:
    content = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    build = content["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    stages = [words.split()[-1] for name, words in instructions() if name == "FROM"]
    assert build["target"] in stages
    assert content["postCreateCommand"] == "make setup"
