"""The places of quantizers for each target, read from the exported model's nodes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.recipes.presets import preset
from dq.quant.targets.registry import TARGETS
from dq.quant.targets.target import Results, Sums
from tests.quant.exported import exported
from tests.quant.nets import calibrate

pytestmark = pytest.mark.cpu

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x * torch.sigmoid(x),
    "swish": F.silu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.1),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "gelu": F.gelu,
    "relu": F.relu,
    "relu6": F.relu6,
}


class Net(nn.Module):
    """A net with residual sum, gate, pooling, concatenation and functions between layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.stem, self.left = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(16, 4, 1)
        self.prelu = nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.stem(x))
        z = self.function(y + self.left(y))
        gated = z * torch.sigmoid(self.fc(F.adaptive_avg_pool2d(z, 1)))
        return self.head(torch.cat([gated, self.prelu(self.left(z))], 1))


class Nets(nn.Module):
    """A net with each function; they read the same input and share nothing else.

    One export of all takes half the time of one for each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(Net(function) for function in FUNCTIONS.values())

    def forward(self, x: Tensor) -> list[Tensor]:
        return [net(x) for net in self.nets]


def quantized(target: str, net: nn.Module) -> QuantizedGraph:
    graph = prepare(net.eval(), preset(target))
    calibrate(graph, [torch.randn(2, 3, 8, 8)])
    return graph


class Edges:
    """The nodes of an exported model that compute one output, and the values between them."""

    def __init__(self, model: onnx.ModelProto, output: int) -> None:
        self.output = model.graph.output[output].name
        needed = {self.output}
        self.nodes: list[onnx.NodeProto] = []
        for node in reversed(model.graph.node):
            if needed & set(node.output):
                needed |= set(node.input)
                self.nodes.insert(0, node)
        self.made = {name: node for node in self.nodes for name in node.output}
        self.read: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.read.setdefault(name, []).append(node)
        self.constants = {
            tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }

    def of(self, *kinds: str) -> list[onnx.NodeProto]:
        return [node for node in self.nodes if node.op_type in kinds]

    def sources(self, node: onnx.NodeProto) -> list[onnx.NodeProto | None]:
        """Return the node of each input that is not a constant; None for the model's input."""
        return [self.made.get(name) for name in node.input if name not in self.constants]

    def readers(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        for name in node.output:
            yield from self.read.get(name, [])

    def is_rounded(self, node: onnx.NodeProto) -> bool:
        """Return whether the node's value is quantized, directly or after clipping functions."""
        readers = list(self.readers(node))
        return bool(readers) and all(
            reader.op_type == "QuantizeLinear"
            or (reader.op_type in ("Relu", "Clip") and self.is_rounded(reader))
            for reader in readers
        )

    def reads_integers(self, node: onnx.NodeProto) -> bool:
        return all(s is not None and s.op_type == "DequantizeLinear" for s in self.sources(node))

    def activations(self) -> list[tuple[onnx.NodeProto, float, np.ndarray]]:
        """Return each QuantizeLinear with its scale and zero point."""
        return [
            (node, float(self.constants[node.input[1]]), self.constants[node.input[2]])
            for node in self.of("QuantizeLinear")
        ]


@functools.cache
def all_edges(target: str) -> dict[str, Edges]:
    """Return the edges of the net with each function, exported for a target."""
    torch.manual_seed(0)
    model = exported(quantized(target, Nets()), torch.randn(1, 3, 8, 8))
    return {name: Edges(model, output) for output, name in enumerate(FUNCTIONS)}


# The fast tests look at this one; the exports of a target take seconds.
FAST = ("onnxruntime",)


def of_targets(names: Iterable[str]) -> pytest.MarkDecorator:
    """Parametrize a test by targets, those that are not fast as slow tests."""
    marks = {name: () if name in FAST else (pytest.mark.slow,) for name in names}
    return pytest.mark.parametrize("target", [pytest.param(n, marks=m) for n, m in marks.items()])


def edges(target: str, function: str) -> Edges:
    return all_edges(target)[function]


LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@pytest.mark.parametrize("function", FUNCTIONS)
@of_targets(TARGETS)
def test_every_layer_reads_integers(target: str, function: str) -> None:
    found = edges(target, function)
    assert len(found.of(*LAYERS)) == 5
    assert all(found.reads_integers(layer) for layer in found.of(*LAYERS))


@pytest.mark.parametrize("function", FUNCTIONS)
@of_targets(n for n, t in TARGETS.items() if t.results is Results.ALL)
def test_engine_that_rounds_all_results_finds_them_rounded(target: str, function: str) -> None:
    found = edges(target, function)
    computing = found.of(*LAYERS, "GlobalAveragePool", "ReduceMean", "Sigmoid")
    if function != "gelu":  # Functions that this version of ONNX writes as sums and products.
        computing += found.of("Add", "Mul")
    assert len(computing) >= 7
    for node in computing:
        assert found.is_rounded(node), node
        assert found.reads_integers(node), node
    # A function that is not fused has a quantizer before and after it.
    for node in found.of("LeakyRelu", "HardSwish", "HardSigmoid", "Mish", "Gelu", "PRelu"):
        assert found.reads_integers(node)
        assert found.is_rounded(node)
    gates = [found.made[name] for node in found.of("Sigmoid") for name in node.output]
    for gate in gates:
        (rounding,) = found.readers(gate)
        assert float(found.constants[rounding.input[1]]) == 1 / 256
        assert int(found.constants[rounding.input[2]]) == 0


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if "relu" not in name])
@of_targets(n for n, t in TARGETS.items() if t.is_fused("silu"))
def test_engine_that_fuses_functions_finds_nothing_between(target: str, function: str) -> None:
    found = edges(target, function)
    stem = next(layer for layer in found.of("Conv") if None in _images_of(found, layer))
    assert "QuantizeLinear" not in [reader.op_type for reader in found.readers(stem)]


def _images_of(found: Edges, layer: onnx.NodeProto) -> list[onnx.NodeProto | None]:
    """Return the nodes that compute a layer's input before its quantizer."""
    node: onnx.NodeProto | None = layer
    while node is not None and (
        node is layer or node.op_type in ("DequantizeLinear", "QuantizeLinear")
    ):
        node = found.sources(node)[0]
    return [node]


@of_targets(TARGETS)
def test_formats_are_the_engines(target: str) -> None:
    rules = TARGETS[target]
    found = edges(target, "relu")
    for _, scale, zero_point in found.activations():
        if rules.activation.symmetric:
            assert not zero_point.any()
        assert zero_point.dtype == (np.int8 if rules.activation.signed else np.uint8)
        if rules.activation.power_of_two:
            assert float(np.log2(scale)).is_integer()
    for node in found.of("DequantizeLinear"):
        if node.input[0] in found.constants:
            scale = found.constants[node.input[1]]
            assert (scale.ndim == 0) is (rules.weight.channel_axis is None)
            assert not found.constants[node.input[2]].any()


@of_targets(TARGETS)
def test_sums_read_what_the_engine_expects(target: str) -> None:
    rules = TARGETS[target]
    found = edges(target, "relu")
    (total,) = found.of("Add")
    kinds = sorted(s.op_type for s in found.sources(total) if s is not None)
    if not rules.mixers:
        assert "Conv" in kinds
    elif rules.sums is Sums.ALL_BUT_FUSED:
        assert kinds == ["Conv", "DequantizeLinear"]
    else:
        assert kinds == ["DequantizeLinear", "DequantizeLinear"]


@of_targets(TARGETS)
def test_outputs_are_rounded_only_where_the_engine_needs_it(target: str) -> None:
    found = edges(target, "silu")
    assert (found.made[found.output].op_type == "DequantizeLinear") is TARGETS[target].outputs


@pytest.mark.parametrize("target", TARGETS)
def test_all_spellings_of_a_function_give_the_same_quantizers(target: str) -> None:
    graphs = []
    for name in ("silu", "swish"):
        torch.manual_seed(0)
        graphs.append(quantized(target, Net(FUNCTIONS[name])))
    one, other = graphs
    formats = [
        sorted((type(q).__name__, q.spec) for q in graph.activations().values()) for graph in graphs
    ]
    assert formats[0] == formats[1]
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    difference = (one(x) - other(x)).abs().max()
    assert float(difference) < 0.05 * float(one(x).abs().max())


def test_checkpoints_from_before_there_were_targets_keep_their_quantizers() -> None:
    spelled, whole = (
        prepare(Net(FUNCTIONS[name]).eval(), preset("int8").for_target("as_written"))
        for name in ("silu", "swish")
    )
    assert {"stem/out", "sigmoid/out", "mul/out"} <= set(spelled.activations())
    assert "stem/out" not in whole.activations()
    now = prepare(Net(FUNCTIONS["silu"]).eval(), preset("int8"))
    assert "stem/out" not in now.activations()
    assert all(q.observer.watches for q in spelled.activations().values())
