"""Round the weights of a whole network on a GPU in a few launches, before its first layer.

Only the function that runs is changed; the graph that is analysed and exported stays. A weight that
cannot join, and every weight on a CPU or under torch.compile, is rounded by its own layer.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dq.quant.graph.nodes import module_of
from dq.quant.kernels import native
from dq.quant.kernels.rounding import integers_of
from dq.quant.kernels.together import Kind, Member, round_together, row_table
from dq.quant.quantizers.fake_quantize import WeightQuantizer
from dq.quant.quantizers.layers import Prepared, QuantizedLayer, output_axis
from dq.quant.quantizers.learned_step import LsqWeightQuantizer, gradient_factor
from dq.quant.quantizers.phase import Phase

# The size of DistributedDataParallel's buckets. A group's gradients are ready all at once, so a
# larger group would delay the exchange of the first ones.
MOST_BYTES = 25 * 2**20
# Tables that a graph keeps. Copies of a model have other addresses, and phases other groups.
MOST_TABLES = 256
Place = tuple[WeightQuantizer, nn.Module, nn.Module | None]


@dataclass(frozen=True, slots=True)
class _Use:
    """A node that needs a rounded weight, with the names of quantizer, layer and norm."""

    node: fx.Node
    quantizer: str
    layer: str
    norm: str | None


def round_weights_first_(root: nn.Module, graph: fx.Graph) -> None:
    """Insert one call that rounds all weights, and give each layer its own.

    Args:
        root: The model.
        graph: A copy that only runs.
    """
    uses = list(_uses(root, graph))
    if len(uses) < 2:
        return
    first = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(first):
        places = tuple(
            tuple(None if name is None else graph.get_attr(name) for name in names)
            for names in ((use.quantizer, use.layer, use.norm) for use in uses)
        )
        prepared = graph.call_function(_function(), places)
    for number, use in enumerate(uses):
        with graph.inserting_before(use.node):
            own = graph.call_function(operator.getitem, (prepared, number))
            if isinstance(module_of(root, use.node), QuantizedLayer):
                use.node.kwargs = {**use.node.kwargs, "prepared": own}
                continue
            quantizer = graph.get_attr(use.quantizer)
            new = graph.call_function(_rounded_once, (own, quantizer, use.node.args[0]))
        use.node.replace_all_uses_with(new)
        graph.erase_node(use.node)


def _rounded_once(prepared: Prepared, quantizer: WeightQuantizer, weight: Tensor) -> Tensor:
    """Return the fake-quantized weight that several pyramid levels share."""
    rounded: Tensor = quantizer(weight) if prepared[0] is None else prepared[0]
    return rounded


def _uses(root: nn.Module, graph: fx.Graph) -> Iterator[_Use]:
    found: list[_Use] = []
    for node in graph.nodes:
        module = module_of(root, node)
        if isinstance(module, QuantizedLayer):
            layer, norm, rounded = [*node.args, None, None][1:4]
            if rounded is None:
                name = None if norm is None else str(norm.target)
                found.append(_Use(node, f"{node.target}.weight", str(layer.target), name))
        elif isinstance(module, WeightQuantizer):
            (weight,) = node.args
            owner, _, attribute = str(weight.target).rpartition(".")
            if weight.op == "get_attr" and attribute == "weight":
                found.append(_Use(node, str(node.target), owner, None))
    # A norm updates its statistics in each call, so a second call folds other ones than the first.
    calls = Counter(use.norm for use in found if use.norm is not None)
    yield from (use for use in found if calls.get(use.norm or "", 1) == 1)


def _function() -> Any:
    """Return the function of one graph; it keeps the tables of the weights' addresses."""
    tables: dict[tuple[Any, ...], Tensor] = {}

    def rounded_weights(*places: Place) -> Sequence[Prepared]:
        return _all_rounded(places, tables)

    rounded_weights.__module__ = __name__
    return rounded_weights


def _all_rounded(
    places: Sequence[Place], tables: dict[tuple[Any, ...], Tensor]
) -> Sequence[Prepared]:
    found: list[Prepared] = [(None, None)] * len(places)
    if torch.compiler.is_compiling() or not _is_on_gpu(places[0][1]):
        return found
    members: dict[Kind, list[tuple[int, Member]]] = {}
    for number, place in enumerate(places):
        joined = _member(*place)
        if joined is not None:
            members.setdefault(joined[0], []).append((number, joined[1]))
    groups = [(kind, group) for kind, all_of in members.items() for group in _parts(all_of)]
    used: dict[tuple[Any, ...], Tensor] = {}
    for kind, group in groups:
        own = [member for _, member in group]
        weights = [member.weight for member in own]
        key = tuple((w.data_ptr(), w.shape) for w in weights)
        table = tables.get(key)
        if table is None:
            table = row_table(weights).to(weights[0].device)
        used[key] = table
        rounded, biases = round_together(kind, own, table)
        for n, (number, _) in enumerate(group):
            found[number] = (rounded[n], biases[n] if biases else None)
    if len(tables) > MOST_TABLES:
        tables.clear()
    tables.update(used)
    return found


def _is_on_gpu(layer: nn.Module) -> bool:
    return isinstance(layer.weight, Tensor) and layer.weight.is_cuda


def _parts(
    members: Sequence[tuple[int, Member]],
) -> Iterator[Sequence[tuple[int, Member]]]:
    part: list[tuple[int, Member]] = []
    size = 0
    for number, member in members:
        part.append((number, member))
        size += member.weight.numel() * member.weight.element_size()
        if size >= MOST_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _member(
    quantizer: WeightQuantizer, layer: nn.Module, norm: nn.Module | None
) -> tuple[Kind, Member] | None:
    """Return the kind and the tensors of a weight that can join; None if its layer rounds it."""
    weight, bias = layer.weight, None
    if not isinstance(weight, Tensor) or not weight.numel() or output_axis(layer) != 0:
        return None
    if not quantizer.phase.quantizes or not _is_plain(quantizer):
        return None
    if norm is not None and not (_folds(norm) and isinstance(layer, _ConvNd)):
        return None
    assert norm is None or isinstance(norm, _BatchNorm)
    tensors: Any = None if norm is None else _tensors(norm)
    # Otherwise the layer adds its bias itself.
    if norm is not None and not norm.training and isinstance(layer.bias, Tensor):
        bias = layer.bias
    learned = zero_point = None
    scale_factor = 1.0
    if isinstance(quantizer, LsqWeightQuantizer):
        learned, zero_point = quantizer.learned_scale, quantizer.fixed_zero_point
        scale_factor = gradient_factor(weight.numel() // max(1, learned.numel()), quantizer.spec)
    if not native.takes(weight, learned, bias, *(tensors or ())):
        return None
    parameters = (weight, learned, bias, *(tensors or ())[:2])
    kind = Kind(
        integers=tuple(integers_of(quantizer.spec)),
        learns=None if learned is None else quantizer.phase is Phase.TRAIN,
        folds=norm is not None,
        unfolds=norm is not None and norm.training,
        has_bias=bias is not None,
        trains=any(p is not None and p.requires_grad for p in parameters),
        eps=0.0 if norm is None else norm.eps,
    )
    return kind, Member(weight, learned, zero_point, scale_factor, tensors, bias)


def _is_plain(quantizer: WeightQuantizer) -> bool:
    """Return whether the kernels for many weights do what this quantizer does."""
    if quantizer._forward_hooks or quantizer._forward_pre_hooks:
        return False
    spec = quantizer.spec
    if type(quantizer) is LsqWeightQuantizer:
        # The power of two of a learned scale takes more operators.
        return spec.channel_axis in (None, 0) and not spec.power_of_two
    # One range for a whole weight needs all its rows.
    return type(quantizer) is WeightQuantizer and spec.channel_axis == 0


def _folds(norm: nn.Module) -> bool:
    return isinstance(norm, _BatchNorm) and all(t is not None for t in _tensors(norm))


def _tensors(norm: _BatchNorm) -> tuple[Tensor | None, ...]:
    return norm.weight, norm.bias, norm.running_mean, norm.running_var
