"""A quantized training with learned scales and all optional methods, on a toy detector."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dq.detector.calibration.calibrate import calibrate
from dq.detector.data.datasets import calibration_dataset, calibration_images, dataset_of
from dq.detector.model.build import build_model
from dq.detector.model.graph import quantize_detector
from dq.detector.refinements.extras import added_losses
from dq.detector.step.rank_state import seed_everything
from dq.detector.training.assignment import Quantization, Resume, Workplace
from dq.detector.training.train import train
from dq.dist.files.checkpoint import load_checkpoint
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.factory import learned_parameters
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.distillation import Distill
from dq.quant.training.oscillation import Oscillation
from dq.quant.training.refinements import Refinements
from dq.quant.training.schedule import Schedule
from dq.quant.training.weight_average import Ema

CPU = torch.device("cpu")
RECIPE = Recipe(
    weight=QuantSpec(bits=4, signed=True, symmetric=True, channel_axis=0, narrow=True),
    learned="lsq+",
)
EVERYTHING = Refinements(
    learned_lr=0.5,
    oscillation=Oscillation(momentum=0.1, freeze_above=0.2, dampening=1e-3),
    ema=Ema(momentum=0.2),
    distill=Distill(weight=0.5, features=("neck.*",)),
)
SCHEDULE = Schedule(
    round_after={"iteration": 2},
    freeze_norm_after=1.0,
    freeze_ranges_after={"iteration": 9},
    norm_batches=2,
)


def prepared(config: Any) -> Any:
    seed_everything(0)
    dataset = dataset_of(config, "train")
    detector = build_model(config, tuple(dataset.CLASSES), initialise=True)
    graph = quantize_detector(detector, RECIPE)
    images = calibration_images(calibration_dataset(config), num_images=8, batch_size=4, seed=0)
    calibrate(detector, graph, images, CPU)
    return SimpleNamespace(config=config, dataset=dataset, detector=detector, graph=graph)


def run(it: Any, folder: Path, refinements: Refinements = EVERYTHING, **more: Any) -> None:
    train(
        it.config, it.detector, it.dataset, Workplace(work_dir=folder, device=CPU), seed=0,
        task=Quantization(
            graph=it.graph, recipe=RECIPE, schedule=SCHEDULE, refinements=refinements
        ),
        validate=False, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(tiny: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    folder = tmp_path_factory.mktemp("qat")
    it = prepared(tiny(runner__max_epochs=2, log_config__interval=1, optimizer__lr=0.01))
    it.before = {n: p.detach().clone() for n, p in learned_parameters(it.graph.quantizers).items()}
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    level = logging.getLogger().level
    logging.getLogger().setLevel(logging.INFO)
    try:
        run(it, folder)
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger().setLevel(level)
    it.folder, it.lines = folder, lines
    return it


@pytest.mark.slow
def test_the_phases_follow_the_schedule(trained: Any) -> None:
    phases = [line.split(",")[0] for line in trained.lines if line.startswith("phase ")]
    assert phases == [
        "phase observe from iteration 0",
        "phase train from iteration 2",
        "phase frozen from iteration 9",
    ]


@pytest.mark.slow
def test_every_added_loss_is_logged(trained: Any) -> None:
    text = "\n".join(trained.lines)
    for name in ("loss_cls", "loss_distill:", "loss_distill_features:", "loss_dampening:"):
        assert name in text
    assert "of the weights oscillate" in text
    assert "running statistics are those of 2 training batches" in text


@pytest.mark.slow
def test_scales_were_learned_in_a_separate_parameter_group(trained: Any) -> None:
    after = learned_parameters(trained.graph.quantizers)
    changed = [
        name for name, value in after.items() if not torch.equal(value, trained.before[name])
    ]
    assert len(changed) > 0.8 * len(after)
    assert all(value.isfinite().all() for value in after.values())
    groups = load_checkpoint(trained.folder / "epoch_2.pth")["optimizer"]["param_groups"]
    assert [group["weight_decay"] for group in groups][-1] == 0.0
    assert len(groups[-1]["params"]) == len(after)
    assert groups[-1]["initial_lr"] == pytest.approx(0.5 * groups[0]["initial_lr"])


@pytest.mark.slow
def test_the_checkpoint_has_the_average_and_the_companions_the_rest(trained: Any) -> None:
    content = load_checkpoint(trained.folder / "epoch_2.pth")
    assert not any(key.startswith(CONTAINER) for key in content["state_dict"])
    assert set(content["companions"]) == {"average", "oscillation", "teacher"}
    raw = content["companions"]["average"]["values"]
    name = "bbox_head.cls_convs.0.0.weight"
    averaged = content["state_dict"][name]
    assert not torch.equal(averaged, raw[name])
    assert (averaged - raw[name]).abs().max() < 0.2 * raw[name].abs().max()
    assert content["quantization"]["state"].keys() == trained.graph.quantizers.state_dict().keys()
    # After the training, the detector equals the checkpoint, except for its statistics.
    assert torch.equal(trained.detector.state_dict()[name], averaged)


@pytest.mark.slow
def test_the_result_is_usable_without_remains_of_the_training(trained: Any) -> None:
    detector, graph = trained.detector, trained.graph
    detector.eval()
    set_phase(graph.quantizers, Phase.FROZEN)
    x = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        outputs = detector.bbox_head(detector.extract_feat(x))
    assert all(t.isfinite().all() for t in outputs[0])
    assert "forward_train" not in detector.__dict__
    for own, other in zip(outputs[0], graph(x)[0], strict=True):
        assert torch.equal(own, other)


@pytest.mark.slow
def test_a_resumed_training_continues_from_the_weights_not_from_the_average(
    trained: Any, tiny: Callable[..., Any], tmp_path: Path
) -> None:
    # An optimizer that changes nothing shows the loaded weights.
    config = tiny(runner__max_epochs=2, optimizer__lr=0.0)
    it = prepared(config)
    first = load_checkpoint(trained.folder / "epoch_1.pth")
    for group in first["optimizer"]["param_groups"]:
        group["lr"] = group["initial_lr"] = 0.0
    no_freezing = replace(EVERYTHING, oscillation=Oscillation(momentum=0.1))
    run(it, tmp_path / "qat", no_freezing, resume=Resume(content=first, source="first.pth"))
    second = load_checkpoint(tmp_path / "qat" / "epoch_2.pth")
    name = "bbox_head.cls_convs.0.0.weight"
    raw, resumed = (c["companions"]["average"] for c in (first, second))
    assert torch.equal(raw["values"][name], resumed["values"][name])
    assert resumed["num_updates"] == raw["num_updates"] + 6
    # The average has moved towards the weights.
    before = (first["state_dict"][name] - raw["values"][name]).abs().max()
    after = (second["state_dict"][name] - raw["values"][name]).abs().max()
    assert after < before


def test_loss_terms_are_added_only_inside_the_body() -> None:
    class Detector(torch.nn.Module):
        def forward_train(self) -> dict[str, Any]:
            return {"loss_cls": torch.tensor(1.0)}

    detector = Detector()
    with added_losses(detector, [lambda: {"loss_more": torch.tensor(2.0)}]):
        assert list(detector.forward_train()) == ["loss_cls", "loss_more"]
    assert list(detector.forward_train()) == ["loss_cls"]
