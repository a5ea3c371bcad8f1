"""W&B's own environment variables: which ones are used here, and which ones cannot be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

MODES = ("online", "offline", "disabled")
_TRUE = ("1", "true", "t", "yes", "y", "on")
IGNORED = {
    "WANDB_DIR": "a run is in its stage's folder, where `launcher sync` finds it",
    "WANDB_RUN_ID": "each stage is a run of its own, with an id that its checkpoints carry",
    "WANDB_RESUME": "a resumed stage continues its own run, another starts a new one",
    "WANDB_SWEEP_ID": "W&B's sweeps start runs themselves",
    "WANDB_RESUME_FROM": "a stage resumes from its own checkpoint",
    "WANDB_FORK_FROM": "a stage records the checkpoint it starts from by its parent's id",
    "WANDB_CONSOLE": "a command's output is in <work dir>/logs",
    "WANDB_SAVE_CODE": "no code is sent; the commit is in the run's config",
}


def mode_of(asked: str | None, environ: Mapping[str, str]) -> str:
    """Return the mode: the argument, else ``WANDB_DISABLED``, else ``WANDB_MODE``, else offline.

    Raises:
        ValueError: There is no such mode.
    """
    if asked is None and environ.get("WANDB_DISABLED", "").lower() in _TRUE:
        return "disabled"
    mode = asked or environ.get("WANDB_MODE") or "offline"
    mode = {"dryrun": "offline", "run": "online"}.get(mode, mode)
    if mode not in MODES:
        name = "--wandb" if asked else "WANDB_MODE"
        raise ValueError(f"{name} {mode} is not known; use {', '.join(MODES)}")
    return mode


def project_of(asked: str | None, environ: Mapping[str, str]) -> str:
    """Return the project: the config's, else ``WANDB_PROJECT``, else ``dq-launcher``."""
    return asked or environ.get("WANDB_PROJECT") or "dq-launcher"


def name_of(experiment: str, stage: str, environ: Mapping[str, str]) -> str:
    """Return the name of a stage's run in W&B: ``WANDB_NAME`` or the experiment, and the stage."""
    return f"{environ.get('WANDB_NAME') or experiment}/{stage}"


def job_type_of(stage: str, environ: Mapping[str, str]) -> str:
    """Return the run's job type: ``WANDB_JOB_TYPE``, else the stage."""
    return environ.get("WANDB_JOB_TYPE") or stage


def tags_of(tags: Iterable[str], environ: Mapping[str, str]) -> list[str]:
    """Return the config's tags and those of ``WANDB_TAGS``, without duplicates."""
    more = (tag.strip() for tag in environ.get("WANDB_TAGS", "").split(","))
    return list(dict.fromkeys([*tags, *filter(None, more)]))


def unsupported(environ: Mapping[str, str]) -> list[str]:
    """Return a message for each variable that is set and cannot be used."""
    return [
        f"{name} is not supported: {reason}"
        for name, reason in IGNORED.items()
        if environ.get(name)
    ]
