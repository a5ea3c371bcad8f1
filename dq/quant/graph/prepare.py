"""Insert quantizers into a model's graph.

Weights: a `QuantizedLayer` computes every layer, with the batch norm after it folded in.
Activations: a tensor is fake-quantized where it is produced, if an operation that an integer engine
runs in integers reads it. So convolution, norm, addition and activation function are fused without
a list of patterns: no such operation reads the tensors between them, so these are not quantized.
Carriers (reshape, max pooling, nearest upsampling) pass on the integers of their input. A tensor
that only a concatenation reads is fake-quantized once, with the concatenation's range. A layer that
several pyramid levels share has one weight quantizer, and one activation range per level.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn

from dq.counted import counted
from dq.quant.graph.comparison import DifferenceError, Reference, refuse_difference
from dq.quant.graph.functions import find_functions
from dq.quant.graph.known.calls import call_numbers, describe_computations_, owner_of
from dq.quant.graph.known.position import positions
from dq.quant.graph.known.signs import moved_inputs, never_negative
from dq.quant.graph.per_channel.channel_scales import insert_channel_scales_
from dq.quant.graph.per_channel.relu6_limits import free_clips_
from dq.quant.graph.placement import Placement, fixed_bounds, reads_shape
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph, Site
from dq.quant.graph.roles import (
    is_layer,
    module_of,
    weight_node,
)
from dq.quant.graph.split_functions import split_functions_
from dq.quant.graph.trace import BoundGraph, Traced, TraceError, remove_dead_code, trace
from dq.quant.graph.trace_with_fallback import same_code
from dq.quant.numerics.spec import without_zero_point
from dq.quant.quantizers.batch_norm_fold import is_foldable
from dq.quant.quantizers.factory import initialise_weights_
from dq.quant.quantizers.fake_quantize import WeightQuantizer
from dq.quant.quantizers.layers import QuantizedLayer, num_outputs, output_axis
from dq.quant.quantizers.phase import Phase
from dq.quant.quantizers.restore import in_phase, restored_state
from dq.quant.quantizers.restore import undo_additions_on_error as undo_additions_on_error
from dq.quant.recipes.recipe import Recipe

log = logging.getLogger(__name__)


def prepare(
    root: nn.Module,
    recipe: Recipe,
    graph: fx.Graph | Traced | None = None,
    *,
    examples: Sequence[Tensor] = (),
) -> QuantizedGraph:
    """Give ``root`` a child ``quantizers`` and return its graph with them inserted.

    The model's own modules, parameters and state-dict keys do not change. Every quantizer starts in
    phase OFF, in which the graph computes exactly what the model computes; with examples, this is
    checked once. If the preparation fails, the model is restored.

    Args:
        root: The model. Its norms may become SyncBatchNorm before or afterwards.
        recipe: Which module gets which integer format.
        graph: A graph of the model from `dq.quant.graph.trace.trace`, or one per mode; not changed.
            None traces both modes here. Operations that only the training graph has stay in float,
            since calibration never runs them.
        examples: As for `dq.quant.graph.trace.trace`, if the model is traced here.

    Raises:
        ValueError: The model is prepared already, or a rule names a module it does not have.
        dq.quant.graph.trace.TraceError: It has no static graph, or the graph computes something
            else; the message names the place.
    """
    if hasattr(root, CONTAINER):
        raise ValueError(f"{type(root).__name__} is prepared already; prepare a fresh model")
    with undo_additions_on_error(root):
        graph = graph or trace_both_modes(root, examples)
        traced = graph if isinstance(graph, Traced) else Traced(graph=graph)
        work = traced.copied()
        root.add_module(CONTAINER, nn.ModuleDict())
        prepared = _prepared(root, recipe, work)
        _compare(prepared, traced)
    return prepared


def trace_both_modes(root: nn.Module, examples: Sequence[Tensor] = ()) -> Traced:
    """Trace ``root.forward`` in evaluation and in training mode.

    Args:
        root: The model; its modes are restored. If one mode has no static graph, the other one's is
            returned alone, provided that the model is in that mode.
        examples: As for `dq.quant.graph.trace.trace`.
    """
    graphs: dict[bool, fx.Graph] = {}
    for training in (root.training, not root.training):
        try:
            with restored_state(root):
                root.train(training)
                graphs[training] = trace(root, examples=examples)
        except TraceError:
            if training is root.training:
                raise
            log.debug("%s is traced in one mode only", type(root).__name__, exc_info=True)
    reference = Reference(forward=root.forward, examples=tuple(examples)) if examples else None
    if len(graphs) == 1 or same_code(graphs[True], graphs[False]):
        return Traced(graph=graphs[root.training], reference=reference)
    return Traced(graph=graphs[False], training_graph=graphs[True], reference=reference)


def _prepared(root: nn.Module, recipe: Recipe, traced: Traced, part: str = "") -> QuantizedGraph:
    work = _Preparation(root, recipe, traced.graph, part=part)
    work.rewrite()
    if traced.training_graph is not None:
        _Preparation(root, recipe, traced.training_graph, first=work, part=part).rewrite()
    prepared = QuantizedGraph(root, traced, tuple(work.sites))
    _move_to_device_of_weights_(root)
    for module in getattr(root, CONTAINER).modules():
        module.training = root.training
    initialise_weights_(prepared.layers())
    return prepared


def _compare(prepared: QuantizedGraph, traced: Traced) -> None:
    """Raise if the graph with quantizers does not compute what the model computes."""
    if traced.reference is None:
        return
    root = prepared.root
    plain = BoundGraph(root, traced)
    try:
        with in_phase(root, Phase.OFF):
            refuse_difference(root, traced.reference, prepared, plain)
    except DifferenceError as error:
        raise TraceError(str(error)) from error


def prepare_part(
    whole: QuantizedGraph, recipe: Recipe, traced: Traced, name: str
) -> QuantizedGraph:
    """Prepare a part of the model that the whole graph does not contain, and return its graph.

    Its quantizers are added to the model's.

    Args:
        whole: The prepared model's graph; gets the part as ``whole.parts[name]``.
        recipe: Which module gets which integer format.
        traced: The part's graph, traced with the model as root.
        name: Qualified name of the part; its inputs are named after it.
    """
    with undo_additions_on_error(whole.root):
        part = _prepared(whole.root, recipe, traced.copied(), name)
        _compare(part, traced)
    whole.parts[name] = part
    return part


def _move_to_device_of_weights_(root: nn.Module) -> None:
    """Put all quantizers on the device of the model's first parameter."""
    weight = next((p for n, p in root.named_parameters() if n.split(".")[0] != CONTAINER), None)
    if weight is not None:
        getattr(root, CONTAINER).to(weight.device)


class _Preparation:
    """Rewrites one graph.

    Args:
        root: The model; new quantizers go to its child ``quantizers``.
        recipe: Which module gets which integer format.
        graph: Changed in place.
        first: The preparation of the graph that made the quantizers; this one only uses them. None
            makes them.
        part: Name of the part whose graph it is, empty for the model's.
    """

    def __init__(
        self,
        root: nn.Module,
        recipe: Recipe,
        graph: fx.Graph,
        *,
        first: _Preparation | None = None,
        part: str = "",
    ) -> None:
        self.root, self.recipe, self.graph = root, recipe, graph
        self.first, self.create = first, first is None
        self.sites: list[Site] = []
        self.quantizers: nn.ModuleDict = getattr(root, CONTAINER)
        self.computes: dict[fx.Node, str] = {}
        self.calls: dict[str, list[fx.Node]] = {}
        self.owner: dict[fx.Node, str] = {}
        for node in graph.nodes:
            inside = f"{part}." if part and node.op == "placeholder" else ""
            self.owner[node] = inside + owner_of(node)
        self.kinds = {name: type(m).__name__ for name, m in root.named_modules()}
        self._describe_new_nodes()
        if self.create and not part:
            recipe.check_rules(self.kinds)

    def _describe_new_nodes(self) -> None:
        """Find positions, kinds and computations of the nodes."""
        self.positions = positions(self.root, self.graph)
        describe_computations_(self.graph, self.computes)
        for node in self.graph.nodes:
            if node in self.owner:
                kind = getattr(node.target, "__name__", node.op)
                self.kinds.setdefault(self.owner[node], kind)

    def rewrite(self) -> None:
        """Insert all quantizers."""
        self.quantize_layers()
        self.quantize_activations()
        if self.recipe.free_clips:
            free_clips_(self.root, self.graph, self.quantizers, create=self.create)
        insert_channel_scales_(self.root, self.graph, self.recipe.scaled)
        remove_dead_code(self.graph)
        self.graph.lint()

    # -- weights

    def quantize_layers(self) -> None:
        """Replace each layer, with its norm, by a call of a `QuantizedLayer`."""
        self.num_uses = Counter(str(n.target) for n in self.graph.nodes if n.op == "call_module")
        self.rounded: dict[str, fx.Node] = {}
        for node in list(self.graph.nodes):
            if not is_layer(self.root, node):
                continue
            layer = module_of(self.root, node)
            if layer is None:
                self._quantize_parameter(node)
                continue
            target = str(node.target)
            norm = self._norm_after(node, layer)
            name = _key(target) if norm is None else _key(f"{target}+{norm.target}")
            spec = self.recipe.weight_spec(target, self.kinds[target], self.positions[node], name)
            if spec is not None:
                self._replace_layer(node, layer, norm, spec)

    def _norm_after(self, node: fx.Node, layer: nn.Module) -> fx.Node | None:
        users = list(node.users)
        if len(users) != 1:
            return None
        norm = module_of(self.root, users[0])
        if norm is None or not is_foldable(norm) or norm.num_features != num_outputs(layer):
            return None
        # A linear layer's channels are the last dimension, which only BatchNorm1d normalises.
        if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm2d | nn.BatchNorm3d):
            return None
        return users[0]

    def _replace_layer(
        self, node: fx.Node, layer: nn.Module, norm: fx.Node | None, spec: Any
    ) -> None:
        target = str(node.target)
        site = Site(
            name=_key(target) if norm is None else _key(f"{target}+{norm.target}"),
            kind="weight",
            module=target,
            norm=None if norm is None else str(norm.target),
        )
        if site.name not in self.quantizers:
            if not self.create:
                return
            axis = None if spec.channel_axis is None else output_axis(layer)
            assert isinstance(layer.weight, Tensor)
            quantizer = self.recipe.weight_quantizer(
                replace(spec, channel_axis=axis), num_channels=layer.weight.shape[axis or 0]
            )
            self.quantizers[site.name] = QuantizedLayer(quantizer)
            self.sites.append(site)
        last = norm or node
        with self.graph.inserting_before(last):
            arguments = [node.args[0] if node.args else node.kwargs["input"]]
            arguments.append(self.graph.get_attr(target))
            if norm is not None:
                arguments.append(self.graph.get_attr(str(norm.target)))
            elif self.num_uses[target] > 1:
                arguments += [None, self._quantized_once(site, target)]
            new = self.graph.call_module(f"{CONTAINER}.{site.name}", tuple(arguments))
        self.owner[new] = target
        self.positions[new] = self.positions[node]
        self.computes[new] = self.computes[last]
        last.replace_all_uses_with(new)
        if norm is not None:
            self.graph.erase_node(norm)
        self.graph.erase_node(node)

    def _quantized_once(self, site: Site, target: str) -> fx.Node:
        """Return the node that quantizes the weight of a layer shared by several pyramid levels."""
        if site.name not in self.rounded:
            weight = self.graph.get_attr(f"{target}.weight")
            name = f"{CONTAINER}.{site.name}.weight"
            self.rounded[site.name] = self.graph.call_module(name, (weight,))
        return self.rounded[site.name]

    def _quantize_parameter(self, node: fx.Node) -> None:
        """Quantize a weight that the graph computes, of a layer called as a function."""
        weight, owner = weight_node(node), self.owner[node]
        assert weight is not None
        name = _key(f"{owner}.weight")
        spec = self.recipe.weight_spec(owner, self.kinds[owner], self.positions[node], name)
        if spec is None:
            return
        site = Site(name=_key(f"{owner}.weight"), kind="parameter", module=owner.rpartition(".")[0])
        if site.name not in self.quantizers:
            if not self.create:
                return
            axis = None if spec.channel_axis is None else int("transpose" in node.name)
            self.quantizers[site.name] = WeightQuantizer(replace(spec, channel_axis=axis))
            self.sites.append(site)
        with self.graph.inserting_before(node):
            new = self.graph.call_module(f"{CONTAINER}.{site.name}", (weight,))
        node.replace_input_with(weight, new)

    # -- activations

    def quantize_activations(self) -> None:
        """Insert a quantizer after every tensor that the target computes with as integers."""
        target = self.recipe.engine
        functions = split_functions_(
            self.graph, find_functions(self.root, self.graph), target, self.owner
        )
        self._describe_new_nodes()
        placement = Placement(
            self.root,
            self.graph,
            target,
            functions,
            self._is_quantized,
            outputs=self.recipe.outputs,
        )
        wanted, bounds = placement.find(), fixed_bounds(functions, target)
        if not self.recipe.zero_points:
            self.never_negative = never_negative(self.root, self.graph, functions)
            self.moved_inputs = moved_inputs(self.root, self.graph)
        for node in self.graph.nodes:
            if node in wanted:
                self.calls.setdefault(self.owner[node], []).append(node)
        numbers = {
            node: number
            for owner, nodes in self.calls.items()
            for node, number in zip(nodes, self._numbers(owner), strict=True)
        }
        for node in list(self.graph.nodes):
            number = numbers.get(node)
            if number is not None:
                self._insert(node, number, bounds.get(node))

    def _numbers(self, owner: str) -> list[int | None]:
        """Return the number of each of the owner's calls; None for one that stays in float."""
        own = [self.computes[node] for node in self.calls[owner]]
        if self.first is None:
            return list(range(len(own)))
        first = [self.first.computes[node] for node in self.first.calls.get(owner, ())]
        try:
            return call_numbers(first, own)
        except LookupError:
            if all(s.module != owner for s in self.first.sites if s.kind == "activation"):
                return [None] * len(own)
        raise TraceError(
            f"{owner} has {counted(len(own), 'call[s]')} in training and"
            f" {counted(len(first), 'call[s]')} in evaluation, and nothing tells which are the"
            " same; let training use a copy of the module, or leave it in float by a rule"
        )

    def _is_quantized(self, node: fx.Node) -> bool:
        weight = weight_node(node)
        module = module_of(self.root, node if weight is None else weight)
        return isinstance(module, QuantizedLayer | WeightQuantizer)

    def _insert(self, node: fx.Node, call: int, bounds: tuple[float, float] | None) -> None:
        owner = self.owner[node]
        name = _key(f"{owner}#{call}" if call else owner) + ".out"
        kind = self.kinds[owner]
        spec = self.recipe.activation_spec(owner, kind, self.positions[node], _key(name))
        if spec is None:
            return
        if not (self.recipe.zero_points or node in self.moved_inputs):
            spec = without_zero_point(spec, is_never_negative=node in self.never_negative)
        site = Site(name=_key(name), kind="activation", module=owner, call=call)
        if site.name not in self.quantizers:
            if not self.create:
                return
            quantizer = self.recipe.activation_quantizer(spec, bounds)
            quantizer.site = site.name
            self.quantizers[site.name] = quantizer
            self.sites.append(site)
        with self.graph.inserting_after(node):
            new = self.graph.call_module(f"{CONTAINER}.{site.name}", ())
        node.replace_all_uses_with(new, delete_user_cb=lambda user: not reads_shape(user))
        new.args = (node,)


def _key(name: str) -> str:
    """Return a name that nn.Module accepts for a child module."""
    return name.replace(".", "/")
