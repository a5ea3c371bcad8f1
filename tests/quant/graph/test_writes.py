"""In-place writes: the graph computes what the model computes, or preparation names the write.

Each case is a forward pass that reads a tensor after a write has changed it, under some name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from dq.quant.graph.prepare import prepare
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.graph.roles import Role, module_of, role_of, tensor_inputs
from dq.quant.graph.trace import BoundGraph, TraceError, trace
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, update_scales_
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe

Write = Callable[["Net", Tensor, Tensor], object]


class Net(nn.Module):
    """Two convolutions, a write into the first one's result, and a layer that reads it later."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.write = write
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.last = nn.Conv2d(4, 2, 1)
        self.relu, self.relu6 = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.silu, self.same = nn.SiLU(inplace=True), nn.Identity()
        self.flat = nn.Flatten()
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y, z = self.first(x), self.second(x)
        found = self.write(self, y, z)
        y = y if found is None else found  # type: ignore[assignment]
        return self.last(y)


def _statement(run: Callable[[Tensor, Tensor], object]) -> Write:
    """Drop the result, as a statement does."""

    def write(net: Net, y: Tensor, z: Tensor) -> None:
        run(y, z)

    return write


def _augmented(run: Callable[[Tensor, Tensor], Tensor]) -> Write:
    """Read the tensor under its name from before ``y += z``."""

    def write(net: Net, y: Tensor, z: Tensor) -> Tensor:
        other = y
        y = run(y, z)
        return other * 1.0

    return write


def _set(index: object, value: object = 0.0) -> Write:
    return _statement(lambda y, z: operator.setitem(y, index, value))  # type: ignore[arg-type]


METHODS = {
    **dict.fromkeys(("relu_", "sigmoid_", "tanh_", "exp_", "neg_", "abs_", "square_"), ()),
    **dict.fromkeys(("round_", "floor_", "erf_", "sin_", "zero_", "sgn_", "trunc_"), ()),
    "clamp_": (-0.2, 0.3),
    "clamp_min_": (0.1,),
    "add_": (0.5,),
    "sub_": (0.5,),
    "mul_": (3.0,),
    "div_": (3.0,),
    "pow_": (2,),
    "fill_": (0.3,),
    "leaky_relu_": (0.1,),
    "hardtanh_": (-0.1, 0.2),
    "masked_fill_": (torch.eye(5).bool(), 0.3),
}
CASES: dict[str, Write] = {
    **{
        name: _statement(lambda y, z, name=name, rest=rest: getattr(y, name)(*rest))
        for name, rest in METHODS.items()
        if hasattr(Tensor, name)
    },
    **{
        f"{name} of a tensor": _statement(lambda y, z, name=name: getattr(y, name)(z))
        for name in ("add_", "sub_", "mul_", "div_", "copy_", "atan2_", "fmod_")
    },
    "addcmul_": _statement(lambda y, z: y.addcmul_(z, z, value=0.5)),
    "lerp_": _statement(lambda y, z: y.lerp_(z, 0.3)),
    "index_fill_": _statement(lambda y, z: y.index_fill_(1, torch.tensor([1]), 0.5)),
    "F.relu": _statement(lambda y, z: F.relu(y, inplace=True)),
    "F.relu by place": _statement(lambda y, z: F.relu(y, True)),
    "F.relu6": _statement(lambda y, z: F.relu6(y, inplace=True)),
    "F.silu": _statement(lambda y, z: F.silu(y, inplace=True)),
    "F.hardtanh": _statement(lambda y, z: F.hardtanh(y, -0.1, 0.2, True)),
    "F.leaky_relu": _statement(lambda y, z: F.leaky_relu(y, 0.1, inplace=True)),
    "F.elu": _statement(lambda y, z: F.elu(y, inplace=True)),
    "F.relu_": _statement(lambda y, z: F.relu_(y)),
    "torch.relu_": _statement(lambda y, z: torch.relu_(y)),
    "torch.sigmoid_": _statement(lambda y, z: torch.sigmoid_(y)),
    "torch.clamp_": _statement(lambda y, z: torch.clamp_(y, -0.1, 0.1)),
    "module": lambda net, y, z: (net.relu(y), None)[1],
    "module and result": lambda net, y, z: net.relu(y) + y,
    "module read before": lambda net, y, z: (net.last(y), net.relu6(y), y * 2)[2],
    "silu module": lambda net, y, z: (net.silu(y), None)[1],
    "dropout module": lambda net, y, z: (net.drop(y), None)[1],
    "operator.iadd": _statement(operator.iadd),
    "+=": _augmented(operator.iadd),
    "-=": _augmented(operator.isub),
    "*=": _augmented(operator.imul),
    "/=": _augmented(operator.itruediv),
    "setitem": _set((slice(None), 0)),
    "setitem of a tensor": _statement(lambda y, z: operator.setitem(y, (slice(None), 1), z[:, 2])),
    "setitem with dots": _set((Ellipsis, 0), 0.5),
    "setitem of a slice": _set((slice(None), slice(1, 3)), 0.2),
    "setitem of a mask": _statement(lambda y, z: operator.setitem(y, z > 0, 0.0)),
    "setitem of a list": _set((slice(None), [0, 2])),
    "item of an item": _statement(lambda y, z: operator.setitem(y[:, 1], (slice(None), 0), 0.5)),
    "item, augmented": _statement(lambda y, z: operator.setitem(y, 0, y[0].add_(1.0))),
    "view": _statement(lambda y, z: y.view(-1).relu_()),
    "view of views": _statement(lambda y, z: y.transpose(1, 2)[:, 0].unsqueeze(0).add_(z[:, :, 0])),
    "reshape": _statement(lambda y, z: y.reshape(2, -1).mul_(2)),
    "flatten": _statement(lambda y, z: torch.flatten(y, 1).relu_()),
    "permute": _statement(lambda y, z: torch.permute(y, (0, 2, 3, 1)).clamp_(0.0, 0.2)),
    "select": _statement(lambda y, z: y.select(1, 0).zero_()),
    "narrow": _statement(lambda y, z: torch.narrow(y, 1, 1, 2).fill_(0.3)),
    "chunk": _statement(lambda y, z: y.chunk(2, 1)[0].relu_()),
    "split": _statement(lambda y, z: torch.split(y, 1, dim=1)[2].add_(z[:, :1])),
    "unbind": _statement(lambda y, z: y.unbind(1)[3].mul_(z[:, 0])),
    "detach": _statement(lambda y, z: y.detach().relu_()),
    "data": _statement(lambda y, z: y.data.relu_()),
    "diagonal": _statement(lambda y, z: y.diagonal(dim1=2, dim2=3).fill_(1.0)),
    "unflatten": _statement(lambda y, z: y.unflatten(1, (2, 2))[:, 0].relu_()),
    "identity": lambda net, y, z: (net.same(y).relu_(), None)[1],
    "view module": lambda net, y, z: net.flat(y).relu_().view(y.shape),
    "view read later": lambda net, y, z: _then(y.view(y.shape[0], 4, -1), lambda v: y.relu_(), y),
    "one part, read the other": lambda net, y, z: _parts(y),
    "all parts": lambda net, y, z: _all_parts(y),
    "two writes": _statement(
        lambda y, z: (y.relu_(), y[:, 0].add_(1), y.mul_(2), y.view(-1).neg_())
    ),
    "a write of a write": _statement(lambda y, z: y.relu_().add_(z).mul_(0.5)),
    "both": _statement(lambda y, z: (y.add_(z), z.relu_(), y.add_(z))),
    "out": _statement(lambda y, z: torch.add(y, z, out=y)),
    "made new": lambda net, y, z: _filled(y.new_zeros(y.shape), y),
    "made new, like": lambda net, y, z: _filled(torch.zeros_like(y), y),
    "copied, not a view": _statement(lambda y, z: y[:, [0, 1]].relu_()),
    "clone": _statement(lambda y, z: y.clone().relu_()),
    "sizes": lambda net, y, z: _sizes(y),
    "swapped": lambda net, y, z: _swapped(y, z),
}


def _then(view: Tensor, write: Callable[[Tensor], object], y: Tensor) -> Tensor:
    write(view)
    return view.view(y.shape) * 1.0


def _parts(y: Tensor) -> Tensor:
    one, two = y.chunk(2, 1)
    one.relu_()
    return torch.cat([two, one], 1)


def _all_parts(y: Tensor) -> Tensor:
    parts = y.split(1, 1)
    for number in range(4):
        parts[number].mul_(2).clamp_(-0.3, 0.4)
    return y + 0.0


def _filled(made: Tensor, y: Tensor) -> Tensor:
    for channel in range(4):
        made[:, channel] += y[:, 3 - channel] * channel
    return made


def _sizes(y: Tensor) -> Tensor:
    size = y.shape[2]
    other = size
    size += 1
    size *= 2
    return y.reshape(-1, 4, other, size // 2 - 1)


def _swapped(y: Tensor, z: Tensor) -> Tensor:
    kept = y
    y = z
    y += 1.0
    z[:, 0] = 5.0
    return kept + y


def copies(net: Net, x: Tensor) -> list[Tensor]:
    return [net(x.clone()), *[b.clone() for b in net.buffers()]]


@pytest.mark.parametrize("name", CASES)
def test_the_graph_computes_what_the_model_computes(name: str) -> None:
    net, x = Net(CASES[name]).eval(), torch.randn(2, 3, 5, 5)
    with torch.no_grad():
        expected = net(x.clone())
        graph = prepare(net, Recipe())
        assert torch.equal(graph(x.clone()), expected)
        assert torch.equal(graph(x.clone()), expected), "no call leaves anything to the next"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("learned", [None, "lsq+", "pact"])
def test_it_is_quantized_where_it_is_read(name: str, learned: str | None) -> None:
    """In every phase, with gradients: close to the model, since 16 bits are nearly float."""
    net, x = Net(CASES[name]).eval(), torch.randn(2, 3, 5, 5)
    recipe = Recipe(learned=learned)
    wide = {kind: _bits(getattr(recipe, kind), 16) for kind in ("weight", "activation")}
    with torch.no_grad():
        expected = net(x.clone())
    graph = prepare(net, Recipe(learned=learned, **wide))  # type: ignore[arg-type]
    _calibrate(graph, x)
    for node in graph.graph.nodes:
        if str(node.target) == "quantizers.last":
            (read,) = tensor_inputs(node)
            while role_of(net, read) is Role.CARRIER:
                (read,) = tensor_inputs(read)
            assert isinstance(module_of(net, read), ActivationQuantizer)
    for phase in (Phase.OBSERVE, Phase.TRAIN, Phase.FROZEN):
        set_phase(net, phase)
        y = graph(x.clone())
        assert (y - expected).abs().max() < 2e-3 * expected.abs().max() + 1e-3, phase
        y.sum().backward()


def _bits(spec: object, bits: int) -> object:
    from dataclasses import replace

    return replace(spec, bits=bits)  # type: ignore[type-var]


def _calibrate(graph: QuantizedGraph, x: Tensor) -> None:
    set_phase(graph.quantizers, Phase.CALIBRATE)
    with torch.no_grad():
        graph(x.clone())
    update_scales_(list(graph.activations().values()))
    initialise_weights_(graph.layers())


REFUSED: dict[str, Write] = {
    "perhaps a view, read later": lambda net, y, z: (
        # Whether dropout returns its input depends on the mode, not on the graph.
        _then(nn.functional.dropout(y, 0.0, training=False), lambda v: y.relu_(), y)
    ),
    "perhaps a view, written": lambda net, y, z: (y.to(torch.float32).relu_(), y * 1.0)[1],
    "several at once": _statement(lambda y, z: torch._foreach_add_([y, z], 1.0)),
    "another shape": lambda net, y, z: (y.squeeze_(0), y * 1.0)[1],
    "assigned data": lambda net, y, z: setattr(y, "data", z),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_write_that_cannot_be_followed_is_refused_by_name(name: str) -> None:
    net = Net(REFUSED[name]).eval()
    before = [name for name, _ in net.named_modules()]
    with pytest.raises(
        TraceError, match=r"Net has no static graph.*(return a new|write|use|assigned)"
    ):
        prepare(net, Recipe())
    assert [name for name, _ in net.named_modules()] == before


@pytest.mark.parametrize(
    ("parts", "read_again"),
    [
        (lambda y: y.chunk(2, 1), False),
        (lambda y: y.split(2, 1), False),
        (lambda y: torch.unbind(y, 0), False),
        (lambda y: (y[0], y[1]), True),  # Indices of a tensor may be anything.
        (lambda y: (y[:, :2], y[:, 1:]), True),
    ],
)
def test_a_write_into_one_of_several_parts_leaves_the_others_alone(
    parts: Callable[[Tensor], Sequence[Tensor]], read_again: bool
) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            one, other = parts(x * 2)
            one.add_(1)
            return one.exp(), other.exp()

    graph = trace(Parts())
    assert ("written" in graph.python_code("self").src) is read_again
    x = torch.rand(2, 4, 3)
    for found, wanted in zip(BoundGraph(Parts(), graph)(x), Parts()(x), strict=True):
        assert torch.equal(found, wanted)


class Counting(nn.Module):
    """Changes its own buffers: depending on its input, or always."""

    def __init__(self, *, by_input: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.by_input = by_input
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self.by_input:
            self.mean.lerp_(y.mean((0, 2, 3)), 0.1).add_(y[0, :, 0, 0])
            self.mean[0] = y[0, 0, 0, 0]
        else:
            self.mean += 1
        return y - self.mean.view(1, -1, 1, 1)


def test_the_models_own_buffers_are_written_as_the_model_writes_them() -> None:
    model, twin = Counting(by_input=True), Counting(by_input=True)
    twin.load_state_dict(model.state_dict())
    graph = prepare(model, Recipe())
    for _ in range(3):
        x = torch.randn(2, 3, 4, 4)
        torch.testing.assert_close(graph(x), twin(x))
        torch.testing.assert_close(model.mean, twin.mean)


def test_a_buffer_that_always_changes_is_refused_and_keeps_its_value() -> None:
    model = Counting(by_input=False)
    with pytest.raises(TraceError, match="changes the buffer mean"):
        trace(model)
    assert not model.mean.any()
