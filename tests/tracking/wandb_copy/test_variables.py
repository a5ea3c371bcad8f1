"""W&B's variables work as W&B documents, or are refused in one line."""

from pathlib import Path

import pytest

from dq.tracking.wandb_copy.mirror import Limits
from dq.tracking.wandb_copy.relay_process import Relay
from dq.tracking.wandb_copy.variables import (
    IGNORED,
    job_type_of,
    mode_of,
    name_of,
    project_of,
    tags_of,
    unsupported,
)


@pytest.mark.parametrize(
    ("asked", "environ", "mode"),
    [
        (None, {}, "offline"),
        (None, {"WANDB_MODE": "online"}, "online"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
        (None, {"WANDB_DISABLED": "true"}, "disabled"),
        (None, {"WANDB_DISABLED": "false", "WANDB_MODE": "online"}, "online"),
        ("online", {"WANDB_DISABLED": "true", "WANDB_MODE": "offline"}, "online"),
    ],
)
def test_the_mode(asked: str | None, environ: dict[str, str], mode: str) -> None:
    assert mode_of(asked, environ) == mode


@pytest.mark.parametrize(
    ("asked", "environ", "named"),
    [("on", {}, "--wandb on"), (None, {"WANDB_MODE": "later"}, "WANDB_MODE later")],
)
def test_an_unknown_mode(asked: str | None, environ: dict[str, str], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named} is not known; use online, offline, disabled"):
        mode_of(asked, environ)


def test_names() -> None:
    assert project_of(None, {}) == "dq-launcher"
    assert project_of(None, {"WANDB_PROJECT": "p"}) == "p"
    assert project_of("mine", {"WANDB_PROJECT": "p"}) == "mine"
    assert job_type_of("qat", {}) == "qat"
    assert job_type_of("qat", {"WANDB_JOB_TYPE": "night"}) == "night"
    assert tags_of(["a"], {"WANDB_TAGS": "b, a,,c "}) == ["a", "b", "c"]
    assert tags_of([], {}) == []
    assert name_of("exp", "qat", {}) == "exp/qat"
    assert name_of("exp", "qat", {"WANDB_NAME": "night"}) == "night/qat"


def test_unsupported_variables_are_reported() -> None:
    environ = {"WANDB_DIR": "/x", "WANDB_RUN_ID": "a", "WANDB_NOTES": "n", "WANDB_RESUME": ""}
    lines = unsupported(environ)
    assert [line.split()[0] for line in lines] == ["WANDB_DIR", "WANDB_RUN_ID"]


def test_unsupported_variables_are_hidden_from_wandb(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """W&B reads its variables itself: otherwise a run would join a sweep."""
    seen: dict[str, str] = {}

    def start(*words: object, env: dict[str, str], **options: object) -> None:
        seen.update(env)
        raise OSError("not today")

    for name in IGNORED:
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("WANDB_NOTES", "kept")
    monkeypatch.setattr("dq.tracking.wandb_copy.relay_process.subprocess.Popen", start)
    Relay("offline", tmp_path / "wandb.log", Limits())._start()
    assert seen["WANDB_NOTES"] == "kept"
    assert not seen.keys() & IGNORED.keys()
