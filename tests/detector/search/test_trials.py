"""A candidate is timed whatever its detector's ``eval`` returns."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from dq.detector.search import trials
from dq.detector.search.trials import Trials


class Distils(nn.Linear):
    """Returns nothing from ``train`` and ``eval``, as mmdet's distilling detectors do."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


def test_a_detector_that_distils_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    detector, timed = Distils(1, 1), []

    def fast(config: Any, given: Any, graph: Any, engine: str) -> float:
        timed.append((given, given.training))
        return 2.0

    monkeypatch.setattr(trials, "times_as_fast", fast)
    monkeypatch.setattr(trials, "engine_of_target", lambda target: "onnxruntime")
    stored = SimpleNamespace(detector=detector, graph=object())
    monkeypatch.setattr(Trials, "stored", lambda *_: stored)
    search: Any = Trials.__new__(Trials)
    search._setting = SimpleNamespace(key="k", folder=tmp_path, config=None)
    candidate: Any = SimpleNamespace(recipe=SimpleNamespace(target="int8"), repair=None)
    assert search.speed(candidate) == 2.0
    assert timed == [(detector, False)]
