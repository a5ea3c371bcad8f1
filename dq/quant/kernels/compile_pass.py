"""What `dq.quant.kernels.recompute` does in eager mode, for graphs that torch.compile makes.

Its partition of forward and backward never computes an operator twice that it does not know, such
as our kernels. Here those that round weights, or values with learned scales, are marked: what they
round is kept anyway, and one pass over memory rounds it anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch._inductor import list_mode_options
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch.utils.checkpoint import CheckpointPolicy

from dq.quant.kernels import operators  # noqa: F401  (registers them with torch)

_ROUNDING = ("dq::weight", "dq::learned")


class ComputeRoundedAgain(CustomGraphPass):
    """A pass over the joint graph of forward and backward, before it is parted."""

    def __call__(self, graph: fx.Graph) -> None:
        """Mark what is to be computed again."""
        for node in graph.nodes:
            target = node.target
            if isinstance(target, torch._ops.OpOverload) and target._schema.name in _ROUNDING:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE

    def uuid(self) -> Any:
        """Return what tells this pass from others in the compiler's cache on disk."""
        return get_hash_for_files((__file__,))


def inductor_options(mode: str = "default") -> dict[str, Any]:
    """Return the ``options`` for torch.compile that stand for a mode of it, with this pass.

    Args:
        mode: One of torch.compile's; it takes a mode or options, not both.
    """
    return {**list_mode_options(mode), "joint_custom_pre_pass": ComputeRoundedAgain()}
