"""The three modules wrap a detector as in the origin."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from dq.detector.origin.modules import (
    QuantCalibrateModule,
    QuantTestModule,
    QuantTrainModule,
    origin_recipe,
)
from dq.quant.numerics.affine import quantize
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import Recipe


def images(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(seed))


def batch(seed: int = 0) -> dict[str, Any]:
    meta = {"img_shape": (96, 96, 3), "pad_shape": (96, 96, 3), "scale_factor": np.ones(4)}
    boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0], [30.0, 20.0, 60.0, 50.0]])
    return {
        "img": images(seed),
        "img_metas": [dict(meta) for _ in range(2)],
        "gt_bboxes": [boxes, boxes + 5],
        "gt_labels": [torch.tensor([1, 2]), torch.tensor([3, 0])],
    }


def calibrated(detector: Any, **kwargs: Any) -> QuantCalibrateModule:
    model = QuantCalibrateModule(detector, **kwargs)
    for seed in range(3):
        model(images(seed))
    return model


def test_calibration_changes_no_weight_and_evaluation_is_quantized(detector: Any) -> None:
    before = copy.deepcopy(detector.state_dict())
    reference = [
        t.clone() for t in QuantCalibrateModule(copy.deepcopy(detector)).eval()(images())[0]
    ]
    model = calibrated(detector)
    assert model.calibrated
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.eval()
    rounded = model(images())
    assert not any(t.requires_grad for t in rounded[0])
    assert any(not torch.equal(a, b) for a, b in zip(rounded[0], reference, strict=True))
    results = model(img=[images()], img_metas=[batch()["img_metas"]], return_loss=False)
    assert len(results) == 2


def test_every_batch_has_equal_weight(detector: Any) -> None:
    model = calibrated(detector, recipe=Recipe(observer="moving_average"))
    observer = next(iter(model.graph.activations().values())).observer
    lowest = [images(seed).min().item() for seed in range(3)]
    assert observer.range_min.item() == pytest.approx(sum(lowest) / 3)
    assert observer.momentum == 0.01


def test_training_observes_first_then_fake_quantizes_and_learns(detector: Any) -> None:
    model = QuantTrainModule(detector, None, total_epochs=10, per_channel_q=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for seed in range(3):
        losses = model(**batch(seed))
        loss = sum(torch.as_tensor(part).sum() for v in losses.values() for part in v)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        assert all(q.phase is Phase.TRAIN for q in model.quantizers)
    assert model.calibrated
    model.eval()
    assert all(q.phase is Phase.FROZEN for q in model.quantizers)


def test_norms_and_ranges_freeze_around_the_middle(detector: Any) -> None:
    model = QuantTrainModule(detector, total_epochs=6)
    seen = []
    norm = next(m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d))
    for _ in range(6):
        model.train()
        seen.append((norm.training, model.quantizers[0].phase))
    assert [training for training, _ in seen] == [True, True, False, False, False, False]
    assert [phase for _, phase in seen] == [Phase.TRAIN] * 4 + [Phase.FROZEN] * 2


def test_a_test_module_gives_the_trained_results_and_needs_ranges(detector: Any) -> None:
    fresh = copy.deepcopy(detector)
    model = calibrated(detector).eval()
    test = QuantTestModule(fresh)
    with pytest.raises(ValueError, match="no ranges"):
        test(images())
    test.load_state_dict(model.checkpoint())
    test.train()
    assert not any(m.training for m in test.modules())
    for own, other in zip(test(images(7))[1], model(images(7))[1], strict=True):
        assert torch.equal(own, other)


def test_float_checkpoints_load_and_others_are_refused(detector: Any) -> None:
    state = {name: value + 1 for name, value in detector.state_dict().items()}
    model = QuantCalibrateModule(detector)
    model.load_state_dict({"state_dict": {f"module.{k}": v for k, v in state.items()}})
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    state.popitem()
    with pytest.raises(ValueError, match="another model: 1 missing"):
        model.load_state_dict(state)


def test_the_origins_arguments_become_a_recipe() -> None:
    recipe = origin_recipe(bitwidth_weights=4, bitwidth_activations=16)
    assert (recipe.weight.bits, recipe.activation.bits) == (4, 16)
    assert recipe.weight.channel_axis is None
    assert recipe.weight.power_of_two
    assert recipe.activation.power_of_two
    recipe = origin_recipe(per_channel_q=True, power2_activation_range=True, quantize_out=False)
    assert recipe.weight.channel_axis == 0
    assert not recipe.weight.power_of_two
    assert recipe.activation.power_of_two
    assert not recipe.outputs


def test_the_input_is_not_quantized_on_request(detector: Any) -> None:
    with_input = QuantCalibrateModule(copy.deepcopy(detector))
    without = QuantCalibrateModule(detector, quantize_in=False)
    assert len(with_input.quantizers) - len(without.quantizers) == 1


def test_power_of_two_scales_are_powers_of_two(detector: Any) -> None:
    model = calibrated(detector)
    scales = torch.stack([q.scale for q in model.quantizers])
    assert torch.equal(torch.log2(scales), torch.log2(scales).round())
    _, quantized, layer, norm = next(iter(model.graph.layers()))
    weight, scale, zero_point = quantized.quantized_weight(layer, norm)
    integers = quantize(weight, scale, zero_point, quantized.weight.spec)
    assert integers.abs().max() <= 127
