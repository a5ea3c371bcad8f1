"""Insert quantizers into a model's graph.

Weights: every layer is computed by a `QuantizedLayer`, with the batch norm behind it folded in.
Activations: a tensor is rounded where it is produced, when something that an integer engine
computes in integers reads it. So convolution, norm, addition and activation function are fused
without a list of patterns: what lies between them is read by nobody else and is not rounded.
Carriers (reshape, max pooling, nearest upsampling) hand on the integers of their input, and a
tensor that only a concatenation reads is rounded once, to the concatenation's range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from dq.quant.channel_clip import free_clips_
from dq.quant.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.fold import is_foldable
from dq.quant.layers import QuantizedLayer, num_outputs, output_axis
from dq.quant.position import positions
from dq.quant.recipe import Recipe
from dq.quant.roles import Role, is_layer, module_of, role_of, tensor_inputs
from dq.quant.trace import BoundGraph, remove_dead_code, trace

CONTAINER = "quantizers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a quantizer sits.

    Attributes:
        name: Its name below ``model.quantizers``.
        kind: ``weight`` or ``activation``.
        module: Qualified name of the module that owns the weight or produces the tensor; the
            graph's own name where no module does.
        call: How many calls of that module precede this one (levels of a shared head: 0, 1, ...).
        norm: Qualified name of the folded batch norm, for weights.
    """

    name: str
    kind: str
    module: str
    call: int = 0
    norm: str | None = None


class QuantizedGraph(BoundGraph):
    """The graph of a prepared model and the list of its quantizers.

    Args:
        root: The model; its child ``quantizers`` holds all quantizer state.
        graph: The rewritten graph.
        sites: One entry a quantizer, in the order of execution.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph, sites: tuple[Site, ...]) -> None:
        self.sites = sites
        super().__init__(root, graph)

    @property
    def quantizers(self) -> nn.ModuleDict:
        """The model's quantizers by name."""
        found = getattr(self.root, CONTAINER)
        assert isinstance(found, nn.ModuleDict)
        return found

    def activations(self) -> dict[str, ActivationQuantizer]:
        """Return the activation quantizers by name, in the order of execution."""
        return {n: q for n, q in self.quantizers.items() if isinstance(q, ActivationQuantizer)}

    def layers(self) -> Iterable[tuple[Site, QuantizedLayer, nn.Module, nn.Module | None]]:
        """Yield site, quantized layer, float layer and folded norm of every weight."""
        for site in self.sites:
            if site.kind == "weight":
                norm = None if site.norm is None else self.root.get_submodule(site.norm)
                quantized = self.quantizers[site.name]
                assert isinstance(quantized, QuantizedLayer)
                yield site, quantized, self.root.get_submodule(site.module), norm


def prepare(root: nn.Module, recipe: Recipe, graph: fx.Graph | None = None) -> QuantizedGraph:
    """Give ``root`` a child ``quantizers`` and return its graph with them inserted.

    The model's own modules, parameters and state-dict keys stay as they are, and every quantizer
    begins in phase OFF, in which the graph computes exactly what the model computes.

    Args:
        root: The model. Its norms may become SyncBatchNorm before or afterwards.
        recipe: Which module gets which integers.
        graph: What `dq.quant.trace.trace` returned for it; traced here when None.

    Raises:
        ValueError: The model is prepared already.
        dq.quant.trace.TraceError: It has no static graph.
    """
    if hasattr(root, CONTAINER):
        raise ValueError(f"{type(root).__name__} is prepared already; prepare a fresh model")
    work = _Preparation(root, recipe, graph or trace(root))
    work.quantize_layers()
    work.quantize_activations()
    if recipe.free_clips:
        free_clips_(root, work.graph, work.quantizers)
    remove_dead_code(work.graph)
    work.graph.lint()
    return QuantizedGraph(root, work.graph, tuple(work.sites))


class _Preparation:
    def __init__(self, root: nn.Module, recipe: Recipe, graph: fx.Graph) -> None:
        self.root, self.recipe, self.graph = root, recipe, graph
        self.sites: list[Site] = []
        self.quantizers = nn.ModuleDict()
        root.add_module(CONTAINER, self.quantizers)
        self.calls: dict[str, int] = {}
        self.owner: dict[fx.Node, str] = {}
        for node in graph.nodes:
            self.owner[node] = _owner(node)
        self.positions = positions(root, graph)
        self.kinds = {name: type(m).__name__ for name, m in root.named_modules()}
        for node in graph.nodes:
            self.kinds.setdefault(self.owner[node], getattr(node.target, "__name__", node.op))
        recipe.check_rules(self.kinds)

    # -- weights

    def quantize_layers(self) -> None:
        """Replace each layer, with its norm, by a call of a quantized layer."""
        for node in list(self.graph.nodes):
            if not is_layer(self.root, node):
                continue
            layer = module_of(self.root, node)
            assert layer is not None
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
        # A linear layer's batch norm folds only when channels are its last dimension, as in 1d.
        if isinstance(layer, nn.Linear) and not isinstance(norm, nn.BatchNorm1d):
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
            axis = None if spec.channel_axis is None else output_axis(layer)
            quantizer = WeightQuantizer(replace(spec, channel_axis=axis))
            self.quantizers[site.name] = QuantizedLayer(quantizer)
            self.sites.append(site)
        last = norm or node
        with self.graph.inserting_before(last):
            arguments = [node.args[0] if node.args else node.kwargs["input"]]
            arguments.append(self.graph.get_attr(target))
            if norm is not None:
                arguments.append(self.graph.get_attr(str(norm.target)))
            new = self.graph.call_module(f"{CONTAINER}.{site.name}", tuple(arguments))
        self.owner[new] = target
        self.positions[new] = self.positions[node]
        last.replace_all_uses_with(new)
        if norm is not None:
            self.graph.erase_node(norm)
        self.graph.erase_node(node)

    # -- activations

    def quantize_activations(self) -> None:
        """Insert a quantizer behind every tensor that something reads as integers."""
        wanted: set[fx.Node] = set()
        for node in self.graph.nodes:
            role = role_of(self.root, node)
            if role is Role.MIXER or (role is Role.LAYER and self._is_quantized(node)):
                for tensor in tensor_inputs(node):
                    self._want(tensor, wanted)
            elif node.op == "output" and self.recipe.outputs:
                seen: set[fx.Node] = set()
                for tensor in node.all_input_nodes:
                    self._want_output(tensor, wanted, seen)
        for node in list(self.graph.nodes):
            if node in wanted:
                self._insert(node)

    def _is_quantized(self, node: fx.Node) -> bool:
        return isinstance(module_of(self.root, node), QuantizedLayer)

    def _want(self, node: fx.Node, wanted: set[fx.Node]) -> None:
        """Ask that ``node``'s value be integers, at the place where they arise."""
        while role_of(self.root, node) is Role.CARRIER:
            (node,) = tensor_inputs(node)
        if node in wanted:
            return
        wanted.add(node)
        if role_of(self.root, node) is Role.JOIN:
            for part in tensor_inputs(node):
                if len(part.users) > 1:
                    self._want(part, wanted)

    def _want_output(self, node: fx.Node, wanted: set[fx.Node], seen: set[fx.Node]) -> None:
        """Ask for integers where the last quantized operation before an output ends."""
        if node in seen or node in wanted:
            return
        seen.add(node)
        role = role_of(self.root, node)
        if role is Role.MIXER or (role is Role.LAYER and self._is_quantized(node)):
            self._want(node, wanted)
        elif role is not Role.INPUT:
            for tensor in tensor_inputs(node):
                self._want_output(tensor, wanted, seen)

    def _insert(self, node: fx.Node) -> None:
        owner = self.owner[node]
        call = self.calls.get(owner, 0)
        self.calls[owner] = call + 1
        name = _key(f"{owner}#{call}" if call else owner) + ".out"
        kind = self.kinds[owner]
        spec = self.recipe.activation_spec(owner, kind, self.positions[node], _key(name))
        if spec is None:
            return
        site = Site(name=_key(name), kind="activation", module=owner, call=call)
        self.quantizers[site.name] = self.recipe.activation_quantizer(spec)
        self.sites.append(site)
        with self.graph.inserting_after(node):
            new = self.graph.call_module(f"{CONTAINER}.{site.name}", ())
        node.replace_all_uses_with(new, delete_user_cb=lambda user: not _reads_shape(user))
        new.args = (node,)


def _reads_shape(node: fx.Node) -> bool:
    """Sizes are the same before and after rounding; read before, they keep the graph short."""
    return node.op == "call_function" and node.target is getattr


def _owner(node: fx.Node) -> str:
    """Return the qualified name of what produced the node's value."""
    if node.op == "call_module":
        return str(node.target)
    if node.op == "placeholder":
        return node.name
    stack = node.meta.get("nn_module_stack")
    inside = next(reversed(stack.values()))[0] if stack else ""
    return f"{inside}.{node.name.removeprefix(_key(inside, '_') + '_')}" if inside else node.name


def _key(name: str, separator: str = "/") -> str:
    """Return a name that nn.Module accepts for a child."""
    return name.replace(".", separator)
