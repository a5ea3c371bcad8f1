"""Give a training what it needs from its stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dq.detector.hooks.tracking import Figures
from dq.detector.training.assignment import Workplace
from launcher.stage.stage import Stage


def workplace(
    stage: Stage,
    *,
    meta: Mapping[str, Any],
    figures: Figures | None = None,
    trusted: bool = False,
) -> Workplace:
    """Return the folder, device, tracker and guards of a stage's training; every rank must call it.

    Args:
        stage: With its tracker.
        meta: Entries for each checkpoint's ``meta``.
        figures: Measures the quantizers.
        trusted: Whether ``load_from`` may be unpickled.
    """
    return Workplace(
        work_dir=stage.folder,
        device=stage.place.device,
        supervision=stage.place.supervision(stage.plan.guards),
        tracker=stage.tracker,
        figures=figures,
        key=stage.key,
        meta=meta,
        trusted=trusted,
    )
