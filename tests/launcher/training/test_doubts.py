"""What is said before a quantized training that cannot work, with a training recipe or without."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.stages import quantized_training
from tests.launcher.conftest import Launch

FEW, HIGH = "steps are few for", "the learning rate of QAT is"
RECIPE, WITHOUT = "recipe='qat-int8', passes=0.5, rate=0.1,", ""


@pytest.mark.parametrize(
    ("section", "training", "said"),
    [
        (RECIPE, "{'optimizer.lr': 0.1}", {FEW, HIGH}),
        (WITHOUT, "{'optimizer.lr': 0.1}", {FEW, HIGH}),
        (WITHOUT, "{'optimizer.lr': 0.1, 'runner.max_epochs': 17}", {HIGH}),
        (WITHOUT, "{'optimizer.lr': 1e-4, 'runner.max_epochs': 17}", set()),
        (WITHOUT, "{'optimizer.lr': 1e-4}", {FEW}),
        ("preset='w4a8',", "{'optimizer.lr': 1e-4, 'runner.max_epochs': 17}", {FEW}),
        # The rates of two optimizers cannot be compared.
        (
            WITHOUT,
            "{'optimizer': dict(_delete_=True, type='Adagrad', lr=0.1), 'runner.max_epochs': 17}",
            set(),
        ),
    ],
)
def test_the_log_says_what_cannot_work(
    section: str,
    training: str,
    said: set[str],
    launch: Launch,
    config: Path,
    untrained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def end(*_: object) -> None:
        raise ValueError("far enough")

    monkeypatch.setattr(quantized_training, "_quantized", end)
    path = tmp_path / "doubtful.py"
    quant = f"dict(_delete_=True, {section} training={training})"
    path.write_text(f"_base_ = [{str(config)!r}]\nquant = {quant}\n")
    given = ("--checkpoint", untrained, "--work-dir", tmp_path / "w")
    _, out, err = launch("qat", path, *given)
    assert "far enough" in err
    assert {line for line in (FEW, HIGH) if line in out} == said
