"""The estimated cost of a training."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.cost import cost_of, hours, main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "configs/ssd/ssd_mobilenet_fpn.py"


def test_images_are_those_of_the_schedule() -> None:
    cost = cost_of(CONFIG, 100)
    # 24 epochs of ten passes, and two of QAT.
    assert (cost.float_images, cost.quantized_images) == (24_000, 2_000)
    # MobileNetV2 has 0.3 G at 224x224, 1.57 G at 512x512 (its last convolution included); the
    # rest is the pyramid and the heads.
    assert 3e9 < cost.multiplications < 10e9
    once = hours(cost, cost.float_images, 10.0)
    assert hours(cost, cost.float_images, 20.0) == pytest.approx(once / 2)


def test_table_has_a_row_for_each_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(CONFIG), "--images", "100"]) == 0
    assert "| ssd_mobilenet_fpn | 6.8 G | 0.02 M |" in capsys.readouterr().out
