"""A whole quantized detector is one graph for torch.compile, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dq.detector.config.read import finish, read_config
from dq.detector.model.build import build_model
from dq.detector.model.graph import quantize_detector
from dq.quant.quantizers.fake_quantize import update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe

CONFIG = Path(__file__).resolve().parents[3] / "configs/digits/ssd_resnet_fpn_160.py"
NARROW = [
    "model.backbone.base_channels=8",
    "model.backbone.stem_channels=8",
    "model.neck.in_channels=[16,32,64]",
]


def outputs_and_gradients(detector: nn.Module, run: Any, x: Tensor) -> list[Tensor]:
    detector.zero_grad()
    outputs = [tensor for group in run(x) for tensor in group]
    torch.stack([tensor.square().mean() for tensor in outputs]).sum().backward()
    gradients = [p.grad for p in detector.parameters() if p.grad is not None]
    return [*outputs, *gradients]


@pytest.mark.slow
@pytest.mark.parametrize("learned", [None, "lsq"])
def test_training_step_compiles_whole_with_the_same_outputs_and_gradients(
    learned: str | None,
) -> None:
    torch.manual_seed(0)
    config = finish(read_config(CONFIG, NARROW))
    detector = build_model(config, config.classes, initialise=False).eval()
    graph = quantize_detector(detector, Recipe(learned=learned))
    x = torch.randn(2, 3, 64, 64)
    set_phase(detector, Phase.CALIBRATE)
    with torch.no_grad():
        graph(x)
    update_scales_(list(graph.activations().values()))
    set_phase(detector, Phase.TRAIN)
    detector.train()
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    expected = outputs_and_gradients(detector, graph, x)
    detector.load_state_dict(state)
    compiled = torch.compile(lambda img: graph(img), fullgraph=True, backend="aot_eager")
    found = outputs_and_gradients(detector, compiled, x)
    assert len(found) == len(expected) > 90
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
