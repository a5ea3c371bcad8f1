"""Export to integers and ONNX: the same results, or an error that names the reason."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from dq.quant.export.onnx_graph import checked, placeholder_model
from dq.quant.export.tidl import to_tidl_
from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.convert import integer_network
from dq.quant.integer.modules import storage_dtype
from dq.quant.integer.qparams import qparams, specs_of
from dq.quant.integer.serialize import integer_content, load_integers_, num_bytes
from dq.quant.latency.float_twin import float_twin
from dq.quant.numerics.spec import QuantSpec
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import INT8_WEIGHT, Recipe, Rule
from dq.quant.verify.layer_differences import layer_differences, worst
from dq.quant.verify.onnxruntime_session import OnnxNetwork, load_model, sums_exactly
from tests.quant.exported import exported, tensor_of
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu


class Net(nn.Module):
    """A net with every kind of place for a quantizer: carriers, join, sum, shared layer, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.MaxPool2d(2)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2)
        self.shared = nn.Conv2d(8, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.pool(torch.relu(self.norm(self.stem(x))))
        left = torch.relu(self.left(y))
        joined = torch.cat([left, torch.relu(self.left(left))], dim=0)
        z = torch.relu(self.up(y + left))
        return [self.shared(joined), self.last(self.shared(z).flatten(2).transpose(1, 2))]


def images(seed: int, num: int = 2) -> Tensor:
    return torch.randn(num, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def quantized(recipe: Recipe) -> QuantizedGraph:
    torch.manual_seed(0)
    net = Net()
    for _ in range(5):
        net(images(9))
    graph = prepare(net.eval(), recipe)
    calibrate(graph, [images(seed) for seed in range(4)])
    return graph


def fitted_network(graph: QuantizedGraph) -> fx.GraphModule:
    network = integer_network(graph)
    fit_biases_(network)
    return network


def qdq(graph: QuantizedGraph, change_: Callable[[fx.GraphModule], Any] | None = None) -> Any:
    return exported(graph, images(0), change_)


@functools.cache
def int8() -> tuple[QuantizedGraph, bytes]:
    graph = quantized(Recipe())
    return graph, qdq(graph).SerializeToString()


def int8_model() -> onnx.ModelProto:
    return onnx.load_model_from_string(int8()[1])


RECIPES = {
    "int16": preset("int16"),
    "6 bits": Recipe(
        activation=QuantSpec(bits=6), weight=QuantSpec(bits=6, signed=True, symmetric=True)
    ),
    "affine weights, lsq+, float stem": Recipe(
        weight=QuantSpec(signed=True, channel_axis=0),
        learned="lsq+",
        rules=(Rule(module="stem", quantize=False),),
    ),
}  # fmt: skip


# By bits and integer arithmetic: the largest excess over rounding, in scales, and the share of
# values that may be rounded the other way. Float32 sums in another order move 16-bit values by more
# scales. ONNX Runtime rounds biases to the product of two scales, which is coarse at few bits.
LIMITS = {
    (4, False): (1e-4, 2e-5),
    (6, False): (1e-4, 2e-5),
    (8, False): (1e-4, 2e-5),
    (16, False): (0.02, 2e-3),
    (4, True): (0.1, 0.02),
    (6, True): (0.02, 5e-3),
    (8, True): (5e-3, 2e-3),
    (16, True): (0.02, 2e-3),
}


def assert_computes_the_same(graph: QuantizedGraph, model: onnx.ModelProto) -> None:
    """The integer network agrees, and so does each layer of the model with the same input."""
    network = integer_network(graph)
    with torch.no_grad():
        for a, b in zip(graph(images(5)), network(images(5)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    bits = max(quantizer.spec.bits for quantizer in graph.activations().values())
    for integers in (False, True):
        found = layer_differences(graph, model, [images(7, 3)], integers=integers)
        assert {d.site for d in found} >= set(graph.activations())
        excess, share = LIMITS[bits, integers]
        assert not [d for d in found if not d.excess < excess]
        # At a tie a value goes to the next integer and no further.
        assert not [d for d in found if not d.largest < 1.01]
        assert sum(d.share * d.num for d in found) <= max(2, share * sum(d.num for d in found))
    outputs = OnnxNetwork(model).tensors(images(5, 3))  # The batch size is free.
    assert outputs[1].shape == (3, 256, 5)


def test_onnx_computes_what_the_fake_quantized_net_computes() -> None:
    assert_computes_the_same(int8()[0], int8_model())


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_other_recipes_compute_the_same(name: str) -> None:
    graph = quantized(RECIPES[name])
    assert_computes_the_same(graph, qdq(graph))


def test_four_bits_have_the_right_types_and_scales_and_compute_the_same() -> None:
    graph = quantized(preset("w4a4"))
    model = qdq(graph)
    assert_computes_the_same(graph, model)
    assert model.opset_import[0].version == 21
    assert tensor_of(model, "stem+norm", "integers").data_type == onnx.TensorProto.INT4
    assert tensor_of(model, "stem+norm", "scale").dims == [8]
    assert tensor_of(model, "x/out", "zero_point").data_type == onnx.TensorProto.UINT8
    nodes = [node for node in model.graph.node if node.op_type == "DequantizeLinear"]
    axes = {node.name: [a.i for a in node.attribute] for node in nodes}
    assert axes["stem+norm"] == [0]
    assert axes["up"] == [1]
    assert {node.domain for node in model.graph.node} == {""}


class Vanishing(nn.Module):
    """Layers where one channel's weights, or all, are near zero, with large biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.all = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.one.weight[2] *= 1e-20
            self.one.bias[2] = 0.7
            self.all.weight *= 1e-9

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(torch.relu(self.all(torch.relu(self.one(x)))))
        return y


def test_large_bias_with_tiny_weights_fits_the_engines_integers() -> None:
    torch.manual_seed(0)
    graph = prepare(Vanishing().eval(), Recipe())
    calibrate(graph, [images(seed) for seed in range(4)])
    assert fit_biases_(integer_network(graph)) == ["one", "all"]
    excesses = []
    for fitted in (False, True):
        model = qdq(graph, fit_biases_ if fitted else None)
        found = layer_differences(graph, model, [images(7)])
        excesses.append(max(d.excess for d in found))
        assert OnnxNetwork(model).num_integer == 3
    assert excesses[0] > 1  # Without the fix.
    assert excesses[1] < 0.05
    # Other scales do not change.
    before, after = qparams(integer_network(graph)), qparams(fitted_network(graph))
    changed = {k for k in before if before[k] != after[k]}
    assert changed == {"one", "all"}
    scales = zip(before["one"]["scale"], after["one"]["scale"], strict=True)
    assert [a == b for a, b in scales] == [index != 2 for index in range(8)]
    # The smallest sufficient power of two: half of it is too small.
    scale_in = torch.tensor(after["x/out"]["scale"]).double()
    for integer, least in ((2.0**30, False), (2.0**29, True)):
        found = 0.7 / (scale_in * after["one"]["scale"][2])
        assert bool(found > integer) is least
    assert math.log2(after["one"]["scale"][2] / before["one"]["scale"][2]).is_integer()


@pytest.mark.parametrize("share", [0.5, 0.999, 1.001, 1.5, 1.999, 2.001, 100.0])
@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_are_raised_by_the_least_power_of_two_and_only_where_needed(
    share: float, per_channel: bool
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)).eval()
    weight = replace(INT8_WEIGHT, channel_axis=0 if per_channel else None)
    graph = prepare(net, Recipe(weight=weight))
    calibrate(graph, [images(0)])
    before = qparams(integer_network(graph))
    unit = torch.tensor(before["x/out"]["scale"]) * torch.tensor(before["0"]["scale"])
    with torch.no_grad():
        net[0].bias.zero_()
        net[0].bias[1] = share * 2.0**30 * (unit[1] if per_channel else unit)
    network = integer_network(graph)
    assert fit_biases_(network) == (["0"] if share > 1 else [])
    after = torch.tensor(qparams(network)["0"]["scale"])
    factor = max(1.0, 2.0 ** math.ceil(math.log2(share)))
    wanted = torch.tensor(before["0"]["scale"])
    changed = torch.arange(4) == 1 if per_channel else torch.tensor(True)
    torch.testing.assert_close(after, torch.where(changed, wanted * factor, wanted))


def test_large_bias_with_16_bits_fits_the_engines_integers() -> None:
    """ONNX Runtime rounds it to 32 bits, although it computes the layer in float."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    with torch.no_grad():
        net[0].bias.copy_(torch.linspace(-5, 5, 8))
    graph = prepare(net, preset("int16"))
    calibrate(graph, [images(seed) for seed in range(4)])
    with torch.no_grad():
        wanted = graph(images(7))
    errors = []
    for change in (None, fit_biases_):
        (found,) = OnnxNetwork(qdq(graph, change)).tensors(images(7))
        errors.append(float((found - wanted).abs().max() / wanted.abs().max()))
    assert errors[0] > 0.1  # Without the fix.
    assert errors[1] < 1e-3


def test_averages_are_written_for_integer_kernels() -> None:
    class Averages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> list[Tensor]:
            y = self.conv(x)
            windows = torch.nn.functional.avg_pool2d(y, 3, 2, ceil_mode=True)
            kept = torch.nn.functional.adaptive_avg_pool2d(y, 1)
            return [self.last(y.mean((2, 3))), y + kept, windows, y.mean(1)]

    torch.manual_seed(0)
    graph = prepare(Averages().eval(), Recipe())
    calibrate(graph, [images(seed) for seed in range(4)])
    model = qdq(graph)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("GlobalAveragePool") == 2
    assert kinds.count("ReduceMean") == 1  # Over the channels.
    (pool,) = [node for node in model.graph.node if node.op_type == "AveragePool"]
    assert {a.name: a.i for a in pool.attribute}["count_include_pad"] == 0
    with torch.no_grad():
        wanted = graph(images(7, 3))
    for one, other in zip(OnnxNetwork(model).tensors(images(7, 3)), wanted, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() < 0.02 * other.abs().max()


def test_biases_that_fit_change_nothing() -> None:
    assert fit_biases_(integer_network(int8()[0])) == []
    assert fit_biases_(integer_network(quantized(preset("w8a16")))) == []


def test_layers_run_in_integers_and_the_float_twin_computes_about_the_same() -> None:
    model = int8_model()
    network = OnnxNetwork(model)
    assert network.num_integer >= 5
    plain = float_twin(model)
    onnx.checker.check_model(plain, full_check=True)
    assert not {n.op_type for n in plain.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    got = OnnxNetwork(plain).tensors(images(5))
    for a, b in zip(got, network.tensors(images(5)), strict=True):
        assert (a - b).abs().max() < 0.2 * a.abs().max()


@pytest.mark.parametrize("integers", [False, True])
def test_wrong_scale_is_found_in_its_layer_alone(integers: bool) -> None:
    graph, model = int8()[0], int8_model()
    tensor = tensor_of(model, "left", "scale")
    scale = onnx.numpy_helper.to_array(tensor) * 1.1
    tensor.CopyFrom(onnx.numpy_helper.from_array(scale, tensor.name))
    found = layer_differences(graph, model, [images(7)], integers=integers)
    for difference in found:
        if "left" in difference.layers:
            assert difference.excess > 2
            assert difference.share > 0.2
        else:  # Before it and after it.
            assert difference.excess < 0.05
    assert sum("left" in d.layers for d in found) == 2  # It is called twice.
    assert worst(found, most=1)[0].layers == ("left",)


def test_wrong_bias_is_found_in_an_output_without_quantizer() -> None:
    recipe = Recipe(rules=(Rule(module="last", quantize=False),))
    graph = quantized(recipe)
    model = qdq(graph)
    (bias,) = (t for t in model.graph.initializer if list(t.dims) == [5])
    wrong = onnx.numpy_helper.to_array(bias) + 0.05
    bias.CopyFrom(onnx.numpy_helper.from_array(wrong, bias.name))
    found = layer_differences(graph, model, [images(7)], integers=False)
    assert [d.site for d in found if not d.excess < 1e-3] == ["output.1"]


def test_tidl_has_clips_of_powers_of_two() -> None:
    graph = quantized(preset("tidl"))
    network = integer_network(graph)
    model = placeholder_model(network, images(0), opset=18, output_names=["a", "b"])
    to_tidl_(model, specs_of(network))
    proto = checked(model)
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in proto.graph.initializer}
    clips = [node for node in proto.graph.node if node.op_type == "Clip"]
    assert len(clips) > 5
    for clip in clips:
        low, high = (float(tensors[name]) for name in clip.input[1:])
        assert low == -high
        assert high == 2.0 ** round(torch.tensor(high).log2().item())
    assert "QuantizeLinear" not in {node.op_type for node in proto.graph.node}
    wanted = graph(images(5))
    for a, b in zip(OnnxNetwork(proto).tensors(images(5)), wanted, strict=True):
        assert (a - b).abs().max() < 0.2 * b.abs().max()


@pytest.mark.parametrize(
    ("recipe", "what"),
    [
        (Recipe(), "power-of-two scales"),
        pytest.param(preset("int8_power2"), "has no zero points", marks=pytest.mark.slow),
    ],
)
def test_tidl_refuses_what_tidl_cannot_compute(recipe: Recipe, what: str) -> None:
    torch.manual_seed(0)
    graph = prepare(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), recipe)
    calibrate(graph, [images(0)])
    network = integer_network(graph)
    model = placeholder_model(network, images(0), opset=18, output_names=["a"])
    with pytest.raises(ValueError, match=rf"{what}.*quant\.preset=tidl"):
        to_tidl_(model, specs_of(network))


def test_integer_file_is_plain_small_and_loads_again(tmp_path: Path) -> None:
    network = integer_network(quantized(Recipe()))
    torch.save(integer_content(network), tmp_path / "net.pth")
    content: Any = torch.load(tmp_path / "net.pth", weights_only=True)
    integers, floats = num_bytes(network)
    assert floats == 4 * integers
    # No float weights are left in the file or in memory.
    assert not list(network.parameters())
    assert {key.rpartition(".")[2] for key in content["state"]} == {
        "integers", "scale", "zero_point", "bias",
    }  # fmt: skip
    torch.manual_seed(1)
    other = integer_network(prepare(Net().eval(), Recipe()), empty=True)
    load_integers_(other, content, "net.pth")
    for a, b in zip(network(images(5)), other(images(5)), strict=True):
        assert torch.equal(a, b)
    wrong = integer_network(prepare(Net().eval(), preset("int16")), empty=True)
    with pytest.raises(ValueError, match=r"net.pth holds another network: .*use the config"):
        load_integers_(wrong, content, "net.pth")
    name = next(k for k, t in content["state"].items() if k.endswith("integers"))
    for change in (lambda t: t[:1], lambda t: torch.cat([t, t]), lambda t: t.to(torch.int64)):
        state = {**content["state"], name: change(content["state"][name])}
        with pytest.raises(ValueError, match=rf"1 entry differs \(first: {re.escape(name)}\)"):
            load_integers_(other, {**content, "state": state}, "net.pth")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("bits", range(2, 17))
def test_integers_are_stored_in_the_smallest_type_that_holds_them(bits: int, signed: bool) -> None:
    spec = QuantSpec(bits=bits, signed=signed)
    kind = torch.iinfo(storage_dtype(spec))
    assert kind.min <= spec.quant_min <= spec.quant_max <= kind.max
    # torch supports few operations on uint16.
    assert kind.bits == (8 if bits <= 8 else 16 if signed else 32)


def test_qparams_name_every_quantizer() -> None:
    graph = quantized(Recipe())
    found = qparams(integer_network(graph))
    assert set(found) == {site.name for site in graph.sites}
    assert found["stem+norm"]["quant_min"] == -127
    assert len(found["stem+norm"]["scale"]) == 8
    assert found["x/out"]["kind"] == "activation"


def test_operator_without_onnx_form_is_refused_by_name() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return torch.special.i1(self.conv(x))

    graph = prepare(Odd().eval(), Recipe())
    calibrate(graph, [images(0)])
    with pytest.raises(ValueError, match=r"cannot be exported: the operator \S*bessel_i1\S* has"):
        placeholder_model(integer_network(graph), images(0), opset=18, output_names=["y"])


def test_uncalibrated_net_is_refused() -> None:
    with pytest.raises(ValueError, match=r"x/out has no range; calibrate"):
        integer_network(prepare(Net().eval(), Recipe()))


def test_damaged_model_and_wrong_size_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="does not exist"):
        load_model(path)
    content = int8()[1]
    for damaged in (b"", b"no model", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not an ONNX model, or damaged .*export it again"):
            load_model(path)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"inputs 3x16x16 and got 3x8x16; .*--size 8 16"):
        OnnxNetwork(load_model(path)).run(images(0)[:, :, :8])


def test_instructions_that_saturate_are_known(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("flags : sse4_2 avx2 avx512f")
    assert not sums_exactly(info)
    info.write_text("flags : avx2 avx512_vnni")
    assert sums_exactly(info)
    assert not sums_exactly(tmp_path / "none")


def test_exact_mode_supports_layers_that_share_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, model = int8()[0], int8_model()
    monkeypatch.setattr("dq.quant.verify.onnxruntime_session.sums_exactly", lambda: False)
    assert OnnxNetwork(model).exact
    assert OnnxNetwork(model).num_integer >= 5
    excess, _ = LIMITS[8, True]
    assert not [d for d in layer_differences(graph, model, [images(7)]) if not d.excess < excess]


def test_without_exact_mode_it_warns_and_continues(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("dq.quant.verify.onnxruntime_session.sums_exactly", lambda: False)
    # ONNX Runtime 1.32 then fails on the shared weights.
    monkeypatch.setattr("dq.quant.verify.onnxruntime_session.with_own_weights", lambda model: model)
    network = OnnxNetwork(int8_model())
    assert len(network.tensors(images(5))) == 2
    assert network.exact == ("no exact sums" not in caplog.text)


def test_a_file_has_short_names_and_no_default_attributes() -> None:
    model = int8_model()
    own = {value.name for value in [*model.graph.input, *model.graph.output]}
    named = {name for node in model.graph.node for name in [*node.input, *node.output]}
    assert all(re.fullmatch(r"/\d+", name) for name in named - own)
    for node in (node for node in model.graph.node if "Conv" in node.op_type):
        names = {attribute.name for attribute in node.attribute}
        assert not names & {"auto_pad", "kernel_shape", "dilations"}
    # The nodes say which quantizer is which.
    assert {"left", "stem+norm", "relu#1/out"} <= {node.name for node in model.graph.node}
