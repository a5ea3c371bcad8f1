"""The comparison as a W&B report, with the optional package wandb-workspaces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dq.tracking.record.run import Run, read_run
from dq.tracking.reports.comparison import Line, markdown
from dq.tracking.reports.experiments import STAGES, Experiment
from dq.tracking.reports.table import markdown_cell

MISSING = "a W&B report needs wandb-workspaces: pip install 'dq-launcher[report]'"
PANELS = {
    "Training and validation": ("train/loss", "train/lr", "val/mAP"),
    "Quantizers": tuple(
        f"quantizers/{name}_mean" for name in ("sqnr", "network_sqnr", "clipped", "oscillating")
    ),
}


def runs_of(experiments: Sequence[Experiment]) -> list[Run]:
    """Return the runs of all stages that these experiments have started."""
    found = (read_run(e.folder / stage) for e in experiments for stage in STAGES)
    return [run for run in found if run is not None]


def build_report(
    module: Any,
    lines: Sequence[Line],
    runs: Sequence[Run],
    changed: Mapping[str, Mapping[str, Any]],
    *,
    entity: str,
) -> Any:
    """Return an unsaved report: the table, the settings that differ, and curves of these runs.

    Args:
        module: ``wandb_workspaces.reports.v2``.
        lines: Rows of the table.
        runs: At least one.
        changed: From `dq.tracking.reports.comparison.differences`.
        entity: W&B's team or user, for runs that have none.
    """
    blocks = [module.H1("Which experiment won"), module.MarkdownBlock(markdown(lines))]
    if changed:
        text = "| setting | " + " | ".join(markdown_cell(line.name) for line in lines) + " |\n"
        text += "| --- " * (len(lines) + 1) + "|\n"
        for name, values in changed.items():
            cells = (markdown_cell(str(values.get(line.name, ""))) for line in lines)
            text += f"| `{name}` | " + " | ".join(cells) + " |\n"
        blocks += [module.H1("Settings that differ"), module.MarkdownBlock(text)]
    by_place: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        by_place.setdefault((run.entity or entity, run.project), []).append(run.id)
    sets = [
        # Only these runs: a project may have others too.
        module.Runset(entity=owner, project=project, name=project, filters=f"ID in {ids!r}")
        for (owner, project), ids in by_place.items()
    ]
    for title, names in PANELS.items():
        panels = [module.LinePlot(title=name, x="step", y=[name]) for name in names]
        blocks += [module.H1(title), module.PanelGrid(runsets=sets, panels=panels)]
    owner, project = next(iter(by_place))
    title = " against ".join(line.name for line in lines[:2])
    if len(lines) > 2:
        title = f"{lines[0].name} and {len(lines) - 1} more"
    return module.Report(entity=owner, project=project, title=title, blocks=blocks)


def publish(
    lines: Sequence[Line],
    experiments: Sequence[Experiment],
    changed: Mapping[str, Mapping[str, Any]],
) -> str:
    """Save the comparison as a report in W&B and return its URL.

    Raises:
        ValueError: The extra is not installed, or no experiment has a run.
        RuntimeError: W&B refused it.
    """
    try:
        import wandb
        import wandb_workspaces.reports.v2 as module
    except ImportError:
        raise ValueError(MISSING) from None
    runs = runs_of(experiments)
    if not runs:
        raise ValueError("none of these experiments has a run.json, so W&B has no run of them")
    try:
        entity = runs[0].entity or wandb.Api().default_entity
        report = build_report(module, lines, runs, changed, entity=entity or "")
        report.save()
        return str(report.url)
    except Exception as error:
        raise RuntimeError(f"W&B did not take the report: {error}; `wandb login`?") from error
