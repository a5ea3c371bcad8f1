"""W&B's variables do what W&B says, or are refused in one line."""

import pytest

from dq.tracking.wandb_variables import ignored, mode_of, name_of, project_of


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
    assert name_of("exp", "qat", {}) == "exp/qat"
    assert name_of("exp", "qat", {"WANDB_NAME": "night"}) == "night/qat"


def test_what_cannot_be_followed_is_said() -> None:
    environ = {"WANDB_DIR": "/x", "WANDB_RUN_ID": "a", "WANDB_NOTES": "n", "WANDB_RESUME": ""}
    lines = ignored(environ)
    assert [line.split()[0] for line in lines] == ["WANDB_DIR", "WANDB_RUN_ID"]
