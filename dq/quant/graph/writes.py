"""Replace in-place writes in a graph by operations that return new values.

``y.relu_()`` without using the result, ``y[:, 0] = 0`` or ``y.view(-1).add_(z)`` change what later
statements read under another name. In a graph of values they would be dead code, and a quantizer
between a tensor and its reader would hide the write. So after a write, readers use the node of the
new value: the writing node itself; `written` if only a part of the tensor was written; the same
view taken again for another view of that tensor.

If it is unknown whether two tensors share memory, a read that depends on it raises an error.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from dq.quant.graph.nodes import PART_OF_RESULT, SIDE_EFFECT, is_shape, module_of

AUGMENTED: dict[Callable[..., Any], Callable[..., Any]] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    operator.ifloordiv: operator.floordiv,
    operator.imod: operator.mod,
    operator.ipow: operator.pow,
    operator.imatmul: operator.matmul,
    operator.iand: operator.and_,
    operator.ior: operator.or_,
    operator.ixor: operator.xor,
    operator.ilshift: operator.lshift,
    operator.irshift: operator.rshift,
}
_DUNDERS: dict[str, Callable[..., Any]] = {
    "__setitem__": operator.setitem,
    **{f"__{function.__name__.strip('_')}__": function for function in AUGMENTED},
}
# Methods with an underscore that do not change values.
_HARMLESS = {"requires_grad_", "share_memory_", "rename_", "is_shared_"}
# Methods that change their tensor's shape or memory in place.
_RESHAPING = {"t_", "transpose_", "squeeze_", "unsqueeze_", "swapaxes_", "swapdims_", "detach_"}
_RESHAPING |= {"resize_", "resize_as_", "set_", "as_strided_", "apply_", "map_", "map2_"}
# Never kept in place: a quantizer may come before them, and the write would change its result.
_NEVER_IN_PLACE = {"add_", "sub_", "mul_"}

_VIEWS = {"view", "view_as", "transpose", "permute", "squeeze", "unsqueeze", "select", "narrow"}
_VIEWS |= {"expand", "expand_as", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "unflatten"}
_VIEWS |= {"diagonal", "unfold", "detach", "alias", "adjoint", "broadcast_to"}
_VIEWS |= {"requires_grad_", "data", "T", "mT", "H", "mH", "real", "imag"}
# Views that are several tensors.
_MANY = {"chunk", "split", "unbind", "tensor_split", "split_with_sizes"}
# A view or a copy, depending on memory layout; taken again it is the same.
_PERHAPS = {"reshape", "flatten", "reshape_as", "ravel", "contiguous"}
# The tensor itself or another one.
_UNKNOWN = {"to", "float", "half", "double", "bfloat16", "type", "type_as", "cpu", "cuda"}
_UNKNOWN |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "broadcast_tensors"}
_UNKNOWN |= {
    "hsplit",
    "vsplit",
    "dsplit",
    "feature_alpha_dropout",
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "real_if_close",
}
_UNKNOWN_MODULES = (nn.modules.dropout._DropoutNd,)

Step = tuple[str, tuple[Any, ...], dict[str, Any]]
_FUNCTIONS = {
    function: function.__name__
    for name in (*_VIEWS, *_MANY, *_PERHAPS)
    if callable(function := getattr(torch, name, None))
}


# The tensor itself, under another name.
_ITSELF: Step = ("itself", (), {})


class WriteError(ValueError):
    """A write whose effect cannot be followed; the message names it.

    Attributes:
        calls: Qualified names of the modules whose forward pass contains it, the outermost first.
    """

    calls: tuple[str, ...] = ()


def written(base: Tensor, value: Any, steps: tuple[Step, ...]) -> Tensor:
    """Return a copy of ``base`` in which the part selected by ``steps`` is ``value``.

    Args:
        base: Not changed.
        value: A tensor or number.
        steps: Successive views: name of a method, an attribute, or ``getitem``, with the arguments
            after the tensor.
    """
    result = base.clone()
    part = result
    todo = list(steps)
    while len(todo) > 1:
        if todo[0][0] in _MANY:
            part = _one_of_many(part, todo.pop(0), todo.pop(0)[1][0])
            if not todo:
                part.copy_(value)
                return result
        else:
            part = _step(part, *todo.pop(0))
    name, args, kwargs = todo[0]
    if name == "getitem":
        part[args[0]] = value
    else:
        _step(part, name, args, kwargs).copy_(value)
    return result


def _step(part: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if name == "getitem":
        return part[args[0]]
    found = getattr(part, name)
    return found(*args, **kwargs) if callable(found) else found


def _one_of_many(part: Tensor, step: Step, index: int) -> Tensor:
    """Return one of the several views of a method, as a view that autograd allows to write."""
    name, args, kwargs = step
    place = 0 if name == "unbind" else 1
    dim: Any = kwargs.get("dim", args[place] if len(args) > place else 0)
    if name == "unbind":
        return part.select(dim, index)
    parts: tuple[Tensor, ...] = getattr(part, name)(*args, **kwargs)
    begin = sum(piece.shape[dim] for piece in parts[:index])
    return part.narrow(dim, begin, parts[index].shape[dim])


def replace_inplace_writes_(root: nn.Module, graph: fx.Graph) -> None:
    """Rewrite the graph, in place, so that every value it reads is the result of a node.

    Nodes that already are so do not change, and no node is renamed.

    Args:
        root: The model whose modules the graph calls.
        graph: As traced by torch.fx, without dead code removed.

    Raises:
        WriteError: A write may or may not have changed a value that is read.
    """
    _Writes(root, graph).rewrite()


class _Writes:
    """Rewrites one graph.

    Attributes:
        source: For each view, the node it is a view of.
        step: For each view, how to take it; None if it cannot be taken again.
        views: The inverse of ``source``.
        now: For each node that was written into, the node of its present value.
        stale: Views that must be taken again from their source's present value.
        lost: Nodes whose value is no longer known, with the reason.
    """

    def __init__(self, root: nn.Module, graph: fx.Graph) -> None:
        self.root, self.graph = root, graph
        self.source: dict[fx.Node, fx.Node] = {}
        self.step: dict[fx.Node, Step | None] = {}
        self.views: dict[fx.Node, list[fx.Node]] = {}
        self.now: dict[fx.Node, fx.Node] = {}
        self.stale: set[fx.Node] = set()
        self.lost: dict[fx.Node, str] = {}

    def rewrite(self) -> None:
        for node in list(self.graph.nodes):
            is_shape(node)  # Remembered now, before the node's arguments change.
            _dunder_to_function(node)
            try:
                self._follow(node)
            except WriteError as error:
                stack = node.meta.get("nn_module_stack") or {}
                error.calls = tuple(str(entry[0]) for entry in stack.values())
                raise
        self.graph.lint()

    def _follow(self, node: fx.Node) -> None:
        target = self._target(node)
        given = (node.args, node.kwargs)
        if self.now or self.stale or self.lost:
            self._read_present(node)
        if target is None:
            if node.target in AUGMENTED:  # Of a number, which cannot be written into.
                node.target = AUGMENTED[node.target]
            self._note_view(node, given)
        else:
            self._write(node, target)

    # -- reading

    def _read_present(self, node: fx.Node) -> None:
        """Replace the node's inputs by their present values."""
        for used in node.all_input_nodes:
            present = self._present(used, node)
            if present is not used:
                node.replace_input_with(used, present)

    def _present(self, node: fx.Node, reader: fx.Node) -> fx.Node:
        if node in self.lost:
            raise WriteError(self.lost[node])
        if node in self.stale:
            step = self.step[node]
            if step is _ITSELF:
                return self._present(self.source[node], reader)
            if step is None:
                raise WriteError(
                    f"{node.name} is read after an in-place write into a tensor that may or may not"
                    " share its memory; make that statement return a new tensor"
                )
            source = self._present(self.source[node], reader)
            with self.graph.inserting_before(reader):
                # Other arguments are the original ones, such as a size that was valid then.
                again = self.graph.node_copy(node, lambda n: self._argument(n, node, source))
            self.stale.discard(node)
            self.now[node] = again
        return self.now.get(node, node)

    def _argument(self, argument: fx.Node, node: fx.Node, source: fx.Node) -> fx.Node:
        return source if argument is self._first(node) else argument

    def _first(self, node: fx.Node) -> fx.Node | None:
        first = next(iter((*node.args, *node.kwargs.values())), None)
        return first if isinstance(first, fx.Node) else None

    # -- views

    def _note_view(self, node: fx.Node, given: tuple[Any, Any]) -> None:
        args, kwargs = given
        first = next(iter((*args, *kwargs.values())), None)
        if not isinstance(first, fx.Node) or is_shape(node) or PART_OF_RESULT in node.meta:
            return
        module = module_of(self.root, node)
        if module is not None:
            if type(module) is nn.Identity:
                self._add_view(node, first, _ITSELF)
            elif type(module) is nn.Flatten:
                ends = (module.start_dim, module.end_dim)
                self._add_view(node, first, ("flatten", ends, {}))
            elif type(module) is nn.Unflatten:
                sizes = (module.dim, tuple(module.unflattened_size))
                self._add_view(node, first, ("unflatten", sizes, {}))
            elif isinstance(module, _UNKNOWN_MODULES) or not _is_torchs(module):
                for used in node.all_input_nodes:
                    self._add_view(node, used, None)
            return
        name = _name_of(node)
        if node.op == "call_function" and node.target is operator.getitem:
            if not _copies(args[1]):
                self._add_view(node, first, ("getitem", tuple(args[1:]), {}))
        elif node.op == "call_function" and node.target is getattr:
            if args[1] in _VIEWS:
                self._add_view(node, first, (str(args[1]), (), {}))
        elif name in _VIEWS | _MANY | _PERHAPS:
            rest = tuple(args[1:])
            options = {k: v for k, v in kwargs.items() if v is not first}
            if "split_size_or_sections" in options:  # The method has another name for it.
                rest = (options.pop("split_size_or_sections"),)
            self._add_view(node, first, (name, rest, options))
        elif name in _UNKNOWN:
            self._add_view(node, first, None)

    def _add_view(self, node: fx.Node, source: fx.Node, step: Step | None) -> None:
        self.source[node], self.step[node] = source, step
        self.views.setdefault(source, []).append(node)

    def _chain(self, node: fx.Node) -> list[fx.Node]:
        """Return the base tensor of the view ``node``, the views in between, and ``node``."""
        chain = [node]
        while chain[-1] in self.source:
            chain.append(self.source[chain[-1]])
        return chain[::-1]

    def _all_views(self, base: fx.Node) -> list[fx.Node]:
        found, stack = [], [base]
        while stack:
            for view in self.views.get(stack.pop(), ()):
                found.append(view)
                stack.append(view)
        return found

    # -- writing

    def _target(self, node: fx.Node) -> fx.Node | None:
        """Return the node that this node writes into, None if it writes into none."""
        target = target_of(node, module_of(self.root, node))
        if target is None or not is_shape(target):
            return target
        made_new = target.op == "call_method" and str(target.target).startswith("new_")
        return target if made_new else None

    def _write(self, node: fx.Node, target: fx.Node) -> None:
        chain = self._chain(target)
        base = chain[0]
        if base.op == "get_attr" and _has(self.root, str(base.target)):
            # The model's own tensor: the write is intended, in each run of the graph.
            node.meta[SIDE_EFFECT] = True
            if node.target is not operator.setitem:
                self._add_view(node, target, _ITSELF)
                self.now.update({base: node} if target is base else {})
            return
        alone = target is base and base.op != "placeholder" and list(target.users) == [node]
        if node.op == "call_method" and node.target in _RESHAPING:
            if not alone:
                raise WriteError(
                    f"{node.name} changes the shape of {target.name} in place, which is read"
                    " elsewhere too; use the method without an underscore"
                )
            return
        if node.target is operator.setitem:
            region: Step = ("getitem", (node.args[1],), {})
            value = node.args[2]
            self._change(node, target, chain, value, (region,))
            return
        self._make_out_of_place(node, target, alone=alone and base.op != "get_attr")
        self._change(node, target, chain, node, ())
        self._add_view(node, target, _ITSELF)

    def _make_out_of_place(self, node: fx.Node, target: fx.Node, *, alone: bool) -> None:
        """Make the node return its result without changing its input, if others read that."""
        if node.op == "call_function" and node.target in AUGMENTED:
            node.target = AUGMENTED[node.target]
            return
        if "out" in node.kwargs:
            node.kwargs = {k: v for k, v in node.kwargs.items() if k != "out"}
            return
        if alone and node.target not in _NEVER_IN_PLACE:
            return  # Nothing else reads the overwritten value.
        if node.op in ("call_method", "call_function"):
            if _without_inplace(node):
                return
            plain = _out_of_place_variant(node)
            if plain is not None:
                node.target = plain
                return
        present = self.now.get(target, target)
        is_new = present.op == "call_function" and present.target in AUGMENTED.values()
        if is_new and list(present.users) == [node]:
            return  # Such as ResNet's ReLU after `out += identity`, which became a new sum.
        with self.graph.inserting_before(node):
            copied = self.graph.call_method("clone", (present,))
        copied.meta = _meta_for_new(node)
        node.replace_input_with(present, copied)

    def _change(
        self,
        node: fx.Node,
        target: fx.Node,
        chain: list[fx.Node],
        value: Any,
        region: tuple[Step, ...],
    ) -> None:
        """Record that ``target``, or the region of it, now has the value ``value``."""
        base = chain[0]
        steps = [self.step[view] for view in chain[1:]]
        if None in steps:
            for other in (base, *self._all_views(base)):
                if other is not target:
                    self.lost[other] = (
                        f"{other.name} is read after {node.name} wrote into {target.name}, which"
                        " may or may not share its memory; make that statement return a new tensor"
                    )
            if region:
                self.now[target] = self._new_value(node, target, value, region)
            else:
                self.now[target] = value
            return
        for view in self._all_views(base):
            if not self._are_disjoint(chain, view):
                self.stale.add(view)
                self.now.pop(view, None)
        whole = (*[step for step in steps if step is not None and step is not _ITSELF], *region)
        if base not in self.lost:
            self.now[base] = self._new_value(node, base, value, whole) if whole else value
        if not region and target is not base:
            self.stale.discard(target)
            self.now[target] = value

    def _new_value(
        self, node: fx.Node, base: fx.Node, value: Any, steps: tuple[Step, ...]
    ) -> fx.Node:
        present = self.now.get(base, base)
        with self.graph.inserting_after(node):
            new = self.graph.call_function(written, (present, value, steps))
        new.meta = _meta_for_new(node)
        if node.target is operator.setitem:
            self.graph.erase_node(node)
        return new

    def _are_disjoint(self, chain: list[fx.Node], view: fx.Node) -> bool:
        """Say whether a view is another part of the same split than the written part."""
        other = self._chain(view)
        for level, (one, two) in enumerate(zip(chain, other, strict=False)):
            if one is not two:
                split = chain[level - 1]
                indices = [n.args[1] for n in (one, two) if n.target is operator.getitem]
                numbers = all(isinstance(i, int) and i >= 0 for i in indices)
                return numbers and len(set(indices)) == 2 and _name_of(split) in _MANY
        return False


def _dunder_to_function(node: fx.Node) -> None:
    """Turn a dunder method call, such as ``__iadd__``, into the call of its function."""
    if node.op == "call_method" and str(node.target) in _DUNDERS:
        node.op, node.target = "call_function", _DUNDERS[str(node.target)]


def _has(root: nn.Module, name: str) -> bool:
    """Say whether the model has this attribute; constants of the present trace are not set yet."""
    found: Any = root
    for part in name.split("."):
        if not hasattr(found, part):
            return False
        found = getattr(found, part)
    return True


def _meta_for_new(node: fx.Node) -> dict[str, Any]:
    """Return the meta of a new node: which module is being called."""
    kept = {k: v for k, v in node.meta.items() if k in ("nn_module_stack", "stack_trace")}
    return copy.copy(kept)


def _name_of(node: fx.Node) -> str:
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function":
        return str(_FUNCTIONS.get(node.target) or getattr(node.target, "__name__", ""))
    return ""


def _is_torchs(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _copies(index: Any) -> bool:
    """Say whether this index makes a copy: tensors, masks and lists do."""
    if isinstance(index, tuple):
        return any(_copies(part) for part in index)
    if isinstance(index, fx.Node):
        return not is_shape(index)
    return isinstance(index, list | bool | Tensor)


def target_of(node: fx.Node, module: nn.Module | None) -> fx.Node | None:
    """Return the node of the tensor that a node writes into, None if it writes into none.

    Args:
        node: As traced by torch.fx.
        module: The module that it calls, or None.
    """
    first = node.args[0] if node.args else next(iter(node.kwargs.values()), None)
    if module is not None:
        writes = getattr(module, "inplace", False) is True
        return first if writes and isinstance(first, fx.Node) else None
    if node.op == "call_method":
        name = str(node.target)
        writes = name.endswith("_") and not name.endswith("__") and name not in _HARMLESS
        return first if writes and isinstance(first, fx.Node) else None
    if node.op != "call_function":
        return None
    if node.target is operator.setitem or node.target in AUGMENTED:
        return first if isinstance(first, fx.Node) else None
    out = node.kwargs.get("out")
    name = getattr(node.target, "__name__", "")
    many = isinstance(out, list | tuple) or (name.startswith("_foreach_") and name.endswith("_"))
    if many:
        raise WriteError(f"{node.name} writes into several tensors; write into each one separately")
    if isinstance(out, fx.Node):
        return out
    if name.endswith("_") and not name.startswith("_"):
        return first if isinstance(first, fx.Node) else None
    return first if isinstance(first, fx.Node) and _inplace_of(node) else None


def may_be_view(node: fx.Node) -> bool:
    """Say whether the result of a node may share memory with its first argument."""
    is_item = node.op == "call_function" and node.target is operator.getitem
    is_named = node.op == "call_function" and node.target is getattr and node.args[1] in _VIEWS
    return is_item or is_named or _name_of(node) in _VIEWS | _MANY | _PERHAPS | _UNKNOWN


def _inplace_of(node: fx.Node) -> bool:
    """Say whether a function is called with ``inplace=True``, by name or position."""
    if "inplace" in node.kwargs:
        return node.kwargs["inplace"] is True
    place = _place_of_inplace(node.target)
    return place is not None and len(node.args) > place and node.args[place] is True


def _place_of_inplace(function: Any) -> int | None:
    if getattr(function, "__module__", "") != F.__name__:
        return None
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return names.index("inplace") if "inplace" in names else None


def _without_inplace(node: fx.Node) -> bool:
    """Remove ``inplace=True`` from a function's arguments; say whether it was there."""
    if node.op != "call_function" or not _inplace_of(node):
        return False
    place = _place_of_inplace(node.target)
    if "inplace" in node.kwargs:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        assert place is not None
        node.args = (*node.args[:place], False, *node.args[place + 1 :])
    return True


def _out_of_place_variant(node: fx.Node) -> Any:
    """Return the method or function without the underscore, None if there is none."""
    if node.op == "call_method":
        name = str(node.target)[:-1]
        return name if hasattr(Tensor, name) else None
    name = getattr(node.target, "__name__", "")
    if not name.endswith("_"):
        return None
    return getattr(torch, name[:-1], None) or getattr(F, name[:-1], None)
