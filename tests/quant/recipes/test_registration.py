"""Observers and targets of a user: they work by name, and what cannot work is refused."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import onnx
import pytest
import torch
from torch import Tensor, nn

import dq.quant as dq
from dq.quant.recipes.presets import PRESETS
from dq.quant.recipes.recipe import OBSERVERS
from dq.quant.targets.registry import TARGETS
from launcher.config import quant_settings
from tests.quant.registered import names_stay

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _names_stay_as_they_were() -> Iterator[None]:
    with names_stay():
        yield


def prepared(recipe: dq.Recipe) -> dq.QuantizedModel:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 2, 1))
    return dq.prepare(net.eval(), recipe, X[:1])


class Doubled(dq.MinMaxObserver):
    def updated(self, old: Any, batch: Any, number: Tensor) -> Any:
        low, high = super().updated(old, batch, number)
        return low, 2 * high


class WholeBins(dq.HistogramObserver):
    """From the first bin with a value to the last."""

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        edges, seen = dq.bin_edges(counts.device), counts.nonzero().squeeze(1)
        return edges[seen[0]], edges[seen[-1] + 1]


def test_an_observer_is_a_name_in_recipes_and_configs_and_survives_a_checkpoint() -> None:
    dq.register_observer("doubled", Doubled)
    dq.register_observer("doubled", Doubled)
    model = prepared(quant_settings({"observer": "doubled"}).recipe)
    dq.calibrate(model, [X])
    observer = model.graph.activations()["input_1/out"].observer
    assert type(observer) is Doubled
    assert float(observer.range_max) == 2 * X.max()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    other = prepared(replace(dq.preset("int8"), observer="doubled"))
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    dq.set_phase(other, dq.Phase.FROZEN)
    assert torch.equal(other(X), model(X))


def test_an_observer_that_searches_finds_its_range_in_all_batches() -> None:
    dq.register_observer("whole_bins", WholeBins)
    model = prepared(replace(dq.preset("int8"), observer="whole_bins"))
    dq.calibrate(model, [X[:2], X[2:]])
    found = model.graph.activations()["input_1/out"].observer
    assert X.max() <= found.range_max <= 1.01 * X.max()
    assert X.min() >= found.range_min >= 1.01 * X.min()


class Reversed(dq.MinMaxObserver):
    def updated(self, old: Any, batch: Any, number: Tensor) -> Any:
        return batch[1], batch[0]


class Joint(dq.MinMaxObserver):
    """The range of all tensors, which are stacked."""

    def updated(self, old: Any, batch: Any, number: Tensor) -> Any:
        return batch[0].min().expand_as(batch[0]), batch[1].max().expand_as(batch[1])


class Demanding(dq.MovingAverageObserver):
    def __init__(self, width: float) -> None:
        super().__init__()


class Unmergeable(dq.MinMaxObserver):
    merge: ClassVar[dict[str, str]] = {"batch_min": "mean"}


class Unfound(dq.MinMaxObserver):
    merge: ClassVar[dict[str, str]] = {"batch_sum": "sum"}


@pytest.mark.parametrize(
    ("name", "observer", "message"),
    [
        ("mine", nn.Module, "give a subclass of MinMaxObserver"),
        ("mine", dq.MinMaxObserver(), "not an object of it"),
        ("mine", Reversed, "gives the range 3 to -1 in a trial"),
        ("mine", Joint, "updated(old, batch, number) must be elementwise"),
        ("mine", Demanding, "fails in a trial: TypeError: "),
        ("mine", dq.HistogramObserver, "fails in a trial: NotImplementedError"),
        ("mine", Unmergeable, "merge has 'batch_min': 'mean'; it names buffers, each with one of"),
        ("mine", Unfound, "no attribute 'batch_sum'"),
        (
            "min_max",
            Doubled,
            "'min_max' exists already (dq.quant.observers.min_max.MinMaxObserver)",
        ),
        ("two words", Doubled, "use letters, digits and _"),
        (3, Doubled, "use letters, digits and _"),
        ("4bit", Doubled, "begin with no digit"),
    ],
)
def test_an_observer_that_cannot_work_is_refused(name: Any, observer: Any, message: str) -> None:
    before = dict(OBSERVERS)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        dq.register_observer(name, observer)
    assert "\n" not in str(raised.value)
    assert before == OBSERVERS


def mine(**more: Any) -> dq.Target:
    return dq.Target(**{"name": "mine", "engine": "Mine", "source": "these tests", **more})


def test_a_target_is_a_preset_and_places_quantizers(tmp_path: Path) -> None:
    dq.register_observer("doubled", Doubled)
    target = mine(
        activation=dq.QuantSpec(bits=8, signed=True, symmetric=True),
        results=dq.Results.ALL,
        fuses=frozenset({"clip"}),
        splits=frozenset({"silu"}),
        fixed={"sigmoid": (0.0, 1.0)},
        observer="doubled",
    )
    dq.register_target(target)
    dq.register_target(
        mine(
            **{k: getattr(target, k) for k in ("activation", "results", "fuses")},
            splits=target.splits,
            fixed=target.fixed,
            observer="doubled",
        )
    )
    recipe = dq.preset("mine")
    assert (recipe.engine, recipe.activation, recipe.observer) == (
        target,
        target.activation,
        "doubled",
    )
    assert quant_settings({"target": "mine", "preset": "w4a8"}).recipe.engine is target
    model = prepared(recipe)
    dq.calibrate(model, [X])
    places = {site.name for site in model.graph.sites}
    assert places - {site.name for site in prepared(dq.preset("int8")).graph.sites}
    path = dq.export_onnx(model, tmp_path / "mine.onnx", X[:1])
    assert {"Sigmoid", "Mul"} <= {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"name": "onnxruntime"}, "'onnxruntime' exists already, as a target or a preset"),
        ({"name": "w4a8"}, "'w4a8' exists already, as a target or a preset"),
        ({"name": "as_written"}, "'as_written' exists already"),
        ({"name": "my engine"}, "use letters, digits and _"),
        ({"observer": "mze"}, "observer 'mze' does not exist; did you mean mse?"),
        ({"fuses": frozenset({"relu"})}, "'relu' in fuses is not possible; did you mean"),
        ({"fuses": frozenset({"swish"})}, "'swish' in fuses is not possible"),
        ({"splits": frozenset({"gelu"})}, "'gelu' in splits is not possible"),
        ({"fixed": {"sigmoid": (1.0, 0.0)}}, "fixed bounds of sigmoid are 1.0 and 0.0"),
        ({"activation": dq.QuantSpec(channel_axis=1)}, "activations have one scale per tensor"),
    ],
)
def test_a_target_that_cannot_work_is_refused(more: dict[str, Any], message: str) -> None:
    before = dict(TARGETS), dict(PRESETS)
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        dq.register_target(mine(**more))
    assert "\n" not in str(raised.value)
    assert before == (TARGETS, PRESETS)


def test_only_a_target_is_a_target() -> None:
    with pytest.raises(ValueError, match="'mine' is not a target"):
        dq.register_target("mine")  # type: ignore[arg-type]
