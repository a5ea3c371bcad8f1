"""What a node of a traced graph calls, and whether its value is a size or a tensor."""

from __future__ import annotations

from torch import fx, nn

# In a node's meta: it is one part of the result of a module that was kept whole.
PART_OF_RESULT = "part_of_a_result"
# In a node's meta: it writes into the model's own tensors and must not be removed as dead code.
SIDE_EFFECT = "writes_into_the_model"

SHAPE_METHODS = {"size", "dim", "numel", "new_tensor", "new_zeros", "new_ones", "new_full"}
SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"}


def module_of(root: nn.Module, node: fx.Node) -> nn.Module | None:
    """Return the module that a ``call_module`` node calls, None for other nodes."""
    if node.op != "call_module":
        return None
    assert isinstance(node.target, str)
    return root.get_submodule(node.target)


def is_shape(node: fx.Node) -> bool:
    """Say whether the value is a size, a dtype or a device, or computed only from these."""
    if "is_shape" not in node.meta:
        node.meta["is_shape"] = _is_shape(node)
    return bool(node.meta["is_shape"])


def _is_shape(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target in SHAPE_METHODS:
        return True
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in SHAPE_ATTRIBUTES
    arguments = node.all_input_nodes
    called = node.op in {"call_function", "call_method"}
    return called and bool(arguments) and all(is_shape(n) for n in arguments)
