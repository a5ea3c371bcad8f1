"""Recompute fake-quantized tensors in the backward pass of graphs made by torch.compile.

The counterpart of `dq.quant.kernels.recompute`, which does it in eager mode. When torch.compile
splits a graph into forward and backward, it never recomputes custom operators such as our kernels.
This pass marks those whose input is saved anyway: weights, and values with learned scales.
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


class RecomputeFakeQuantized(CustomGraphPass):
    """A pass over the joint graph of forward and backward, before it is partitioned."""

    def __call__(self, graph: fx.Graph) -> None:
        """Mark the nodes to recompute."""
        for node in graph.nodes:
            target = node.target
            if isinstance(target, torch._ops.OpOverload) and target._schema.name in _ROUNDING:
                node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE

    def uuid(self) -> Any:
        """Return what identifies this pass in the compiler's cache on disk."""
        return get_hash_for_files((__file__,))


def inductor_options(mode: str = "default") -> dict[str, Any]:
    """Return torch.compile ``options`` that correspond to a mode, with this pass added.

    Args:
        mode: A mode of torch.compile, which accepts either a mode or options.
    """
    return {**list_mode_options(mode), "joint_custom_pre_pass": RecomputeFakeQuantized()}
