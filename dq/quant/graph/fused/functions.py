"""Run a quantizer, the function after it and the next quantizer in one pass.

Only the function that runs is fused; the graph that is analysed and exported does not change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.functions import Function, find_functions
from dq.quant.graph.nodes import module_of
from dq.quant.kernels import table
from dq.quant.numerics.affine import fake_quantize
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase

Inner = Callable[..., Tensor]


class QuantizedFunction:
    """Fake-quantize, compute a function of each element, fake-quantize again.

    Args:
        inner: The function; called with the fake-quantized tensor and the modules that it uses.
        name: Its name in the compiled graph.
    """

    def __init__(self, inner: Inner, name: str) -> None:
        self.inner = inner
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__

    def __call__(
        self,
        first: ActivationQuantizer,
        second: ActivationQuantizer,
        x: Tensor,
        in_place: bool,
        *modules: nn.Module,
    ) -> Tensor:
        """Return ``second(inner(first(x), *modules))``.

        Args:
            first: The quantizer before the function.
            second: The quantizer after it.
            x: Any shape.
            in_place: ``x`` may be overwritten.
            modules: The modules that the function uses.
        """
        if not (table.takes(x) and _is_plain(first, second, *modules)):
            before = (
                first(x) if has_hooks(first) else first.clip_and_fake_quantize(x, in_place=in_place)
            )
            rounded: Tensor = second(self.inner(before, *modules))
            return rounded
        first.require_range()
        second.require_range()
        result: Tensor = table.Lookup.apply(
            *(x, first.scale, first.zero_point, first.spec),
            *(self._tables(first, second, modules), (*_records(first), *_records(second))),
            in_place,
        )
        return result

    def _tables(
        self,
        first: ActivationQuantizer,
        second: ActivationQuantizer,
        modules: tuple[nn.Module, ...],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the function's value, the fake-quantized value and its derivative, per grid point.

        Each is float32 of shape ``(levels of first,)``.
        """
        grid = table.grid_points(first.scale, first.zero_point, first.spec).detach()
        if self.inner is gated:
            (gate,) = modules
            assert isinstance(gate, ActivationQuantizer)
            with torch.no_grad():
                return table.gate_tables(grid, _format(gate), _format(second))
        with torch.enable_grad():
            grid.requires_grad_()
            between = self.inner(grid.clone(), *modules)  # It may write in place.
            after = fake_quantize(between, second.scale, second.zero_point, second.spec)
            derivative = torch.autograd.grad(after.sum(), grid)[0]
        return between.detach().contiguous(), after.detach().contiguous(), derivative


def gated(x: Tensor, rounds: nn.Module) -> Tensor:
    """Return SiLU as the product of ``x`` and its sigmoid, fake-quantized by ``rounds``."""
    product: Tensor = x * rounds(torch.sigmoid(x))
    return product


def _format(quantizer: ActivationQuantizer) -> tuple[Tensor, Tensor, QuantSpec]:
    return quantizer.scale, quantizer.zero_point, quantizer.spec


def _is_plain(first: ActivationQuantizer, second: ActivationQuantizer, *modules: nn.Module) -> bool:
    """Return whether all quantizers use stored scales, and record at most minimum and maximum."""
    inner = [m for m in modules if isinstance(m, ActivationQuantizer)]
    quantizers = [first, second, *inner]
    return (
        first.spec.bits <= table.MOST_BITS
        and all(type(q) is ActivationQuantizer and q.phase.quantizes for q in quantizers)
        and len({(q.phase, q.training) for q in quantizers}) == 1
        and (first.phase is Phase.FROZEN or all(map(_records_extremes, (first, second))))
        and not any(q.observer.watches for q in inner)
        and not has_hooks(first, second, *modules)
    )


def has_hooks(*modules: nn.Module | None) -> bool:
    """Return whether any of the modules has hooks, which see its inputs and outputs."""
    return any(m is not None and (m._forward_hooks or m._forward_pre_hooks) for m in modules)


def _records_extremes(quantizer: ActivationQuantizer) -> bool:
    return quantizer.observer.records_extremes or not quantizer.observer.watches


def _records(quantizer: ActivationQuantizer) -> tuple[Tensor | None, Tensor | None]:
    """Return the buffers for minimum and maximum of a batch; None if the quantizer records none."""
    observer = quantizer.observer
    if quantizer.observes:
        return observer.batch_min, observer.batch_max
    return None, None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """Nodes that one call can replace.

    Attributes:
        first: The quantizer before the function.
        second: The quantizer after it.
        inner: The function.
        modules: Names of the modules that it uses.
        nodes: All nodes of the function, in order.
    """

    first: fx.Node
    second: fx.Node
    inner: Inner
    modules: tuple[str, ...]
    nodes: tuple[fx.Node, ...]


def fuse_functions_(
    root: nn.Module, graph: fx.Graph, may_overwrite: Callable[[fx.Node, fx.Node], bool]
) -> None:
    """Replace each function between two quantizers by one call, in place.

    Args:
        root: The model.
        graph: A copy of a prepared graph, used only to run it.
        may_overwrite: Returns whether only the second node needs the first one's value.
    """
    quantizers = [n for n in graph.nodes if isinstance(module_of(root, n), ActivationQuantizer)]
    known = set(quantizers)
    if not any(
        known & set(source.all_input_nodes) for n in quantizers for source in n.all_input_nodes
    ):
        return  # There is no function between two quantizers.
    singles = {f.value: f for f in find_functions(root, graph) if len(f.nodes) == 1}
    for node in quantizers:
        match = _gated(root, node) or _single(root, node, singles)
        if match is None:
            continue
        source = match.first.args[0]
        assert isinstance(source, fx.Node)
        with graph.inserting_before(node):
            arguments: tuple[Any, ...] = (
                graph.get_attr(str(match.first.target)),
                graph.get_attr(str(node.target)),
                source,
                may_overwrite(source, match.first),
                *(graph.get_attr(name) for name in match.modules),
            )
            name = f"quantized_{match.nodes[-1].name}"
            new = graph.call_function(QuantizedFunction(match.inner, name), arguments)
        node.replace_all_uses_with(new)
        for old in (node, *reversed(match.nodes), match.first):
            graph.erase_node(old)


def _gated(root: nn.Module, second: fx.Node) -> _Match | None:
    """Match SiLU as sigmoid and product, with a fixed-range quantizer after the sigmoid."""
    product = second.args[0]
    if not (isinstance(product, fx.Node) and product.target is torch.mul):
        return None
    if list(product.users) != [second] or len(product.args) != 2:
        return None
    first, gate = product.args
    if not (isinstance(first, fx.Node) and isinstance(gate, fx.Node)):
        return None
    quantizer = module_of(root, gate)
    if not (isinstance(quantizer, ActivationQuantizer) and not quantizer.observer.watches):
        return None
    (sigmoid,) = gate.all_input_nodes
    if sigmoid.target is not torch.sigmoid or sigmoid.all_input_nodes != [first]:
        return None
    if list(gate.users) != [product] or list(sigmoid.users) != [gate]:
        return None
    if not isinstance(module_of(root, first), ActivationQuantizer):
        return None
    if set(first.users) != {sigmoid, product}:
        return None
    return _Match(
        first=first,
        second=second,
        inner=gated,
        modules=(str(gate.target),),
        nodes=(sigmoid, gate, product),
    )


def _single(
    root: nn.Module, second: fx.Node, functions: Mapping[fx.Node, Function]
) -> _Match | None:
    """Match a function of one node, without parameters."""
    node = second.args[0]
    if not (isinstance(node, fx.Node) and node in functions) or list(node.users) != [second]:
        return None
    first = functions[node].source
    if functions[node].kind == "prelu" or list(first.users) != [node]:
        return None
    if not isinstance(module_of(root, first), ActivationQuantizer) or node.all_input_nodes != [
        first
    ]:
        return None
    if node.op == "call_module":
        inner: Inner = lambda x, module: module(x)  # noqa: E731
        modules: tuple[str, ...] = (str(node.target),)
    else:
        inner, modules = _call_of(node), ()
    return _Match(first=first, second=second, inner=inner, modules=modules, nodes=(node,))


def _call_of(node: fx.Node) -> Inner:
    """Return the node's call as a function of its only tensor."""
    (first,) = node.all_input_nodes
    args, kwargs, target = node.args, node.kwargs, node.target

    def call(x: Tensor) -> Any:
        def given(value: Any) -> Any:
            return x if value is first else value

        found = [given(value) for value in args]
        named = {name: given(value) for name, value in kwargs.items()}
        if isinstance(target, str):
            return getattr(found[0], target)(*found[1:], **named)
        assert callable(target)
        return target(*found, **named)

    return call
