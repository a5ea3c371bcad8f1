"""The order of the packages inside each part, and their imports; `drawing` draws them."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Each package, the lowest first, with the packages that it may import.
ORDER: dict[str, dict[str, tuple[str, ...]]] = {
    "dq/quant": {
        "numerics": (),
        "kernels": ("numerics",),
        "observers": ("numerics", "kernels"),
        "quantizers": ("numerics", "kernels", "observers"),
        "targets": ("numerics",),
        "recipes": ("numerics", "observers", "quantizers", "targets"),
        "graph": ("numerics", "kernels", "quantizers", "recipes", "targets"),
        "training": ("numerics", "quantizers", "graph"),
        "analysis": ("numerics", "quantizers", "graph", "training"),
        "ptq": ("numerics", "observers", "quantizers", "recipes", "graph", "analysis"),
        "search": ("recipes", "ptq"),
        "integer": ("numerics", "kernels", "quantizers", "graph"),
        "export": ("numerics", "graph", "integer"),
        "verify": ("quantizers", "graph"),
        "latency": ("numerics", "targets", "export", "verify"),
        "model": ("graph", "recipes", "quantizers", "ptq", "integer", "export"),
    },
    "dq/detector": {
        "config": (),
        "metrics": (),
        "data": ("config", "metrics"),
        "loading": ("data",),
        "model": ("config", "data"),
        "calibration": ("model",),
        "evaluation": ("config", "metrics", "data", "loading"),
        "export": ("config", "data", "model"),
        "engines": ("data", "model", "evaluation", "export"),
        "search": ("config", "data", "model", "calibration", "evaluation", "export", "engines"),
        "step": ("config", "loading"),
        "hooks": ("config", "calibration", "evaluation", "step"),
        "refinements": ("loading", "model", "hooks"),
        "training": ("config", "data", "loading", "model", "step", "hooks", "refinements"),
        "recipes": ("config",),
        "survey": ("config",),
        "new_config": ("config", "model"),
        "pictures": ("config", "data", "evaluation", "loading", "metrics", "model", "engines"),
        "doctor": ("model",),
        "origin": ("model",),
    },
    "dq/dist": {
        "errors": (),
        "rendezvous": (),
        "exchange": ("errors", "rendezvous"),
        "group": ("errors", "rendezvous", "exchange"),
        "norm": ("exchange",),
        "equality": ("exchange",),
        "watch": ("errors", "rendezvous", "exchange"),
        "work": ("errors", "rendezvous", "exchange", "group", "watch"),
        "files": (),
    },
    "dq/tracking": {
        "record": (),
        "wandb_copy": ("record",),
        "pictures": (),
        "reports": ("record", "pictures"),
        "live": ("record", "pictures", "reports"),
    },
    "launcher": {
        "command_line": (),
        "stage": (),
        "stages": ("stage",),
        "coverage": (),
        "commands": ("command_line", "stages", "coverage"),
    },
    "slurm": {"copies": ()},
}


def packages_of(place: str) -> set[str]:
    return {p.name for p in (ROOT / place).iterdir() if (p / "__init__.py").is_file()}


def imported(path: Path, place: str) -> set[str]:
    """Return the packages of ``place`` that a file imports, anywhere in it."""
    prefix = place.replace("/", ".") + "."
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {
        name.removeprefix(prefix).partition(".")[0] for name in names if name.startswith(prefix)
    }
