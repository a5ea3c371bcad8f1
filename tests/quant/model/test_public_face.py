"""``import dq.quant``: a model goes the whole way in a training loop of one's own."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dq.quant as dq

onnxruntime = pytest.importorskip("onnxruntime")


class Net(nn.Module):
    """A convolution with its norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.head(self.stem(images).mean(dim=(2, 3)))
        return result


class Several(nn.Module):
    """Inputs by position and by name, a dict for a result."""

    def __init__(self) -> None:
        super().__init__()
        # Layers that are called like an input and an output.
        self.image, self.size = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(2, 6)
        self.output = nn.Linear(6, 3)

    def forward(self, image: Tensor, size: Tensor, *, bias: Tensor) -> dict[str, Any]:
        mixed = torch.relu(self.image(image).mean(dim=(2, 3)) + self.size(size))
        return {"scores": self.output(mixed) + bias, "features": [mixed]}


def images(seed: int, number: int = 4) -> Tensor:
    return torch.randn(number, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def calibrated(seed: int = 0) -> dq.QuantizedModel:
    torch.manual_seed(seed)
    model = dq.prepare(Net().eval(), dq.preset("int8"), images(0, 1))
    assert dq.calibrate(model, [images(1), images(2)]) == 8
    return model


def run(path: Path, *values: Tensor) -> list[np.ndarray[Any, Any]]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    given = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    found: list[np.ndarray[Any, Any]] = session.run(None, given)
    return found


def test_all_that_is_promised_is_there() -> None:
    assert sorted(dq.__all__) == list(dq.__all__)
    assert all(getattr(dq, name).__doc__ for name in dq.__all__)
    assert (Path(dq.__file__).parents[1] / "py.typed").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["weighted_mse", "moving_average"])
def test_the_whole_way(observer: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net()
    keys = set(model.state_dict())
    example = images(0, 1)
    expected = copy.deepcopy(model).eval()(example)
    graph = dq.prepare(model, replace(dq.preset("int8"), observer=observer), example)
    assert torch.equal(graph.eval()(example), expected)
    assert {k for k in graph.state_dict() if not k.startswith("quantizers.")} == keys
    dq.calibrate(graph, [(images(seed), torch.zeros(4)) for seed in range(3)])
    dq.set_phase(graph, dq.Phase.TRAIN)
    graph.train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    losses, scales = [], []
    for step in range(12):
        x = images(step % 3)
        loss = nn.functional.cross_entropy(graph(x), torch.arange(4))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dq.update_ranges(graph)
        losses.append(float(loss))
        scales.append([float(q.scale) for q in graph.graph.activations().values()])
    assert losses[-1] < losses[0]
    # Ranges that calibration searched for stay, observed ones follow.
    assert (scales[0] == scales[-1]) == (observer == "weighted_mse")
    dq.set_phase(graph, dq.Phase.FROZEN)
    path = dq.export_onnx(graph.eval(), tmp_path / "model.onnx", example)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    x = images(7, 5)
    with torch.no_grad():
        wanted = graph(x).numpy()
    (found,) = run(path, x)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
    assert np.abs(found - model(x).detach().numpy()).max() > 0


@pytest.mark.slow
def test_several_inputs_by_position_and_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Several().eval()
    size, bias = torch.randn(4, 2), torch.randn(3)
    expected = model(images(0), size, bias=bias)
    graph = dq.prepare(model, dq.preset("int8"), images(0), size, bias=bias)
    assert graph.inputs.names == ("image", "size", "bias")
    for found in (
        graph(images(0), size, bias=bias),
        graph(images(0), size, bias),
        graph(bias=bias, size=size, image=images(0)),
    ):
        assert found.keys() == expected.keys()
        assert torch.equal(found["scores"], expected["scores"])
        assert torch.equal(found["features"][0], expected["features"][0])
    named = {"image": images(1), "size": size, "bias": bias, "target": torch.zeros(4)}
    assert dq.calibrate(graph, [(images(0), size, bias), named]) == 8
    path = dq.export_onnx(graph, tmp_path / "several.onnx", images(0), size, bias=bias)
    with torch.no_grad():
        wanted = graph(images(2), size, bias=bias)["scores"].numpy()
    found = run(path, images(2), size, bias)
    assert len(found) == 2
    # In the order of the dict's keys.
    assert np.abs(found[0] - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g, x: g(), "inputs images, and is called with 0 by position"),
        (lambda g, x: g(x, x), "is called with 2 by position"),
        (lambda g, x: g(image=x), "0 by position and image by name"),
        (lambda g, x: g(x, images=x), "1 by position and images by name"),
        (lambda g, x: dq.calibrate(g, []), "no image to calibrate with"),
        (lambda g, x: dq.calibrate(g, [{"other": x}]), "prepared with the inputs images"),
        (lambda g, x: dq.prepare(g.graph.root, g.recipe, x), "is prepared already"),
        (lambda g, x: dq.prepare(g, g.recipe, x), "is prepared already"),
        (lambda g, x: dq.prepare(Net(), g.recipe), "needs an example of each input"),
        (lambda g, x: dq.prepare(Net(), g.recipe, x, x), "Net.forward: too many positional"),
        (lambda g, x: dq.prepare(Net(), g.recipe, x, flag=x), "unexpected keyword argument 'flag'"),
        (
            lambda g, x: dq.prepare(Net(), g.recipe, x[:, :2]),
            "does not run on the examples, of shape",
        ),
        (lambda g, x: dq.prepare(Net(), g.recipe, x.numpy()), "input 0 is a ndarray, not a tensor"),
        (lambda g, x: dq.export_onnx(g, "x.onnx", x, opset=3), "opset 3 is too low"),
        (lambda g, x: dq.export_onnx(g, "x.onnx", y=x), "prepared with the inputs images"),
    ],
)
def test_mistakes_are_named(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(calibrated(), images(0))


def test_without_calibration_nothing_is_exported_or_frozen(tmp_path: Path) -> None:
    graph = dq.prepare(Net().eval(), dq.preset("int8"), images(0))
    with pytest.raises(ValueError, match="has no range; calibrate"):
        dq.export_onnx(graph, tmp_path / "x.onnx", images(0))
    dq.set_phase(graph, dq.Phase.FROZEN)
    with pytest.raises(ValueError, match="has no range; calibrate"):
        graph(images(0))
    assert not list(tmp_path.iterdir())


def copied(graph: dq.QuantizedModel) -> dq.QuantizedModel:
    return copy.deepcopy(graph)


def pickled(graph: dq.QuantizedModel) -> dq.QuantizedModel:
    found: dq.QuantizedModel = pickle.loads(pickle.dumps(graph))
    return found


def saved(graph: dq.QuantizedModel) -> dq.QuantizedModel:
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    found: dq.QuantizedModel = torch.load(file, weights_only=False)
    return found


@pytest.mark.parametrize("again", [copied, pickled, saved])
@pytest.mark.parametrize("phase", [dq.Phase.OFF, dq.Phase.TRAIN, dq.Phase.FROZEN])
def test_a_copy_is_a_model_of_its_own(again: Any, phase: dq.Phase) -> None:
    graph = calibrated()
    dq.set_phase(graph, phase)
    other = again(graph)
    x = images(5)
    before = graph(x)
    assert torch.equal(other(x), before)
    # It trains, and the first stays as it was.
    dq.set_phase(other, dq.Phase.TRAIN)
    other.train()
    other(x).sum().backward()
    torch.optim.SGD(other.parameters(), lr=1.0).step()
    dq.update_ranges(other)
    other.eval()
    assert not torch.equal(other(x), before)
    assert torch.equal(graph(x), before)
    assert other.graph.root is not graph.graph.root
    other.load_state_dict(graph.state_dict())
    dq.set_phase(other, phase)
    assert torch.equal(other(x), before)


def test_a_prepared_model_is_pickled_too() -> None:
    graph = calibrated()
    model = pickle.loads(pickle.dumps(graph.graph.root))
    assert torch.equal(model(images(0)), graph.graph.root(images(0)))
    assert model.state_dict().keys() == graph.state_dict().keys()


def test_a_state_dict_goes_from_one_model_to_another() -> None:
    graph = calibrated()
    other = dq.prepare(Net().eval(), dq.preset("int8"), images(0))
    other.load_state_dict(graph.state_dict())
    dq.set_phase(other, dq.Phase.FROZEN)
    assert torch.equal(other(images(3)), graph(images(3)))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("which", ["graph", "model"])
def test_torchs_own_export_is_refused_with_the_right_way(
    dynamo: bool, which: str, tmp_path: Path
) -> None:
    graph = calibrated()
    model = graph if which == "graph" else graph.graph.root
    with pytest.raises(Exception, match=r"dq\.quant\.export_onnx") as caught:
        torch.onnx.export(model, (images(0),), str(tmp_path / "x.onnx"), dynamo=dynamo)
    assert caught.value is not None
    assert not list(tmp_path.glob("x.onnx"))


def test_modes_and_devices_are_those_of_the_model() -> None:
    graph = calibrated()
    root = graph.graph.root
    graph.train()
    assert root.training
    assert all(m.training for m in root.modules())
    graph.eval()
    assert not any(m.training for m in (graph, *root.modules()))
    for training in (False, True):
        new = dq.prepare(Net().train(training), dq.preset("int8"), images(0))
        assert {m.training for m in (new, *new.graph.root.modules())} == {training}
    graph.double()
    assert next(root.parameters()).dtype is torch.float64
    assert [n for n, _ in graph.named_parameters()] == [n for n, _ in root.named_parameters()]


def test_it_compiles_as_one_graph() -> None:
    graph = calibrated()
    compiled = torch.compile(graph, backend="eager", fullgraph=True)
    assert torch.equal(compiled(images(0)), graph(images(0)))


def test_repairs_are_for_one_input() -> None:
    graph = dq.prepare(
        Several().eval(), dq.preset("int8"), images(0), torch.randn(4, 2), bias=torch.zeros(3)
    )
    with pytest.raises(ValueError, match="models with one input"):
        dq.calibrate(graph, [], repair=dq.Repair(steps=("bias",)))
    other = dq.prepare(Net().eval(), dq.preset("int8"), images(0))
    assert dq.calibrate(other, [images(0)], repair=dq.Repair(steps=("bias",))) == 4
