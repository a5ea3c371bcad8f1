"""The watchdog hears of validation losses, which may take longer than any step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dq.detector.training.exact_runner import Training


def test_a_batch_of_validation_losses_is_a_sign_of_life() -> None:
    heard: list[str] = []
    runner: Any = SimpleNamespace(
        call_hook=lambda name: None,
        run_iter=lambda batch, train_mode: None,
        supervision=SimpleNamespace(alive=heard.append),
    )
    Training.validation_losses(runner, "batch")
    assert heard == ["a batch of validation losses"]
