"""Checks of Slurm, W&B and the checkout."""

from __future__ import annotations

import netrc
import os
import shutil
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from dq.counted import counted
from dq.detector.doctor.finding import Finding, failure, good, warning

LIMIT_S = 20.0


def slurm() -> Finding:
    """Ask Slurm for its partitions, if it is here."""
    if shutil.which("sbatch") is None:
        return good("not here; `launcher submit` needs it")
    words = ("sinfo", "--noheader", "--format=%P %a")
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except FileNotFoundError:
        return warning("sbatch is here and sinfo is not", "add Slurm's bin folder to PATH")
    except subprocess.TimeoutExpired:
        return warning(f"sinfo has not answered for {LIMIT_S:.0f} s", "ask the cluster's staff")
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        return warning(f"sinfo ended with {done.returncode}: {said}", "is slurmctld running?")
    rows = [line.split() for line in done.stdout.splitlines() if line.strip()]
    up = [row[0] for row in rows if row[-1] == "up"]
    if not up:
        return warning("no partition is up", "wait, or ask the cluster's staff")
    return good(f"partitions {', '.join(dict.fromkeys(up))}")


def wandb() -> Finding:
    """Check W&B's mode, and in online mode whether somebody is logged in."""
    import wandb as module

    from dq.tracking.wandb_copy.variables import mode_of, unsupported

    mode = mode_of(None, os.environ)
    said = f"{module.__version__}, {mode}"
    unused = unsupported(os.environ)
    if mode == "online" and not _has_login():
        return failure(f"{said}, but nobody is logged in", "wandb login, or WANDB_MODE=offline")
    if unused:
        return warning(f"{said}; {unused[0]}", f"unset {unused[0].split()[0]}")
    later = "; `launcher sync` sends runs later" if mode == "offline" else ""
    return good(f"{said}{later}")


def _has_login() -> bool:
    """Return whether there is a key for W&B's server; the key itself is not read."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname
    try:
        return host in netrc.netrc(os.environ.get("NETRC")).hosts
    except (OSError, netrc.NetrcParseError):
        return False


def checkout() -> Finding:
    """Name the commit of the source that runs."""
    folder = Path(__file__).resolve().parents[3]
    words = ("git", "-C", str(folder), "rev-parse", "--short", "HEAD")
    inside = (folder / ".git").exists()
    if not inside:
        return good(f"none: installed in {folder}")
    if shutil.which("git") is None:
        return warning(f"{folder}, but git is missing", "install git, so that runs name a commit")
    done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    if done.returncode:
        said = " ".join(done.stderr.split())[:200]
        return warning(f"{folder}: {said}", "runs do not name their commit; see git's message")
    status = ("git", "-C", str(folder), "status", "--porcelain")
    state = subprocess.run(status, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    changed = len(state.stdout.splitlines())
    more = f", {counted(changed, 'changed file[s]')}" * bool(changed)
    return good(f"{done.stdout.strip()} in {folder}{more}")
