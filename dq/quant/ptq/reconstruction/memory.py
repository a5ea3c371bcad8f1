"""How many images are learned from: their values between two blocks must fit into memory.

At 800x1333 pixels the outputs of a ResNet's first stage take 68 MB for each image, once in float
and once fake-quantized.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from dq.counted import counted
from dq.quant.graph.nodes import Given, as_tuple, computed
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.reconstruction.blocks import Block

log = logging.getLogger(__name__)

# Memory of the values of all images, and the fewest images, even if they need more.
MOST_BYTES = 4 * 2**30
FEWEST_IMAGES = 8


def affordable(
    graph: QuantizedGraph, reference: nn.Module, blocks: Sequence[Block], calls: Sequence[Given]
) -> list[Given]:
    """Return the first calls whose values fit into memory.

    Args:
        graph: Prepared.
        reference: The float model.
        blocks: Of the graph.
        calls: The images, a few in each call.
    """
    each = bytes_of_an_image(graph, reference, blocks, calls[0])
    found: list[Given] = []
    images, total = 0, sum(map(size_of, calls))
    for call in calls:
        if images >= FEWEST_IMAGES and (images + size_of(call)) * each > MOST_BYTES:
            log.info(
                "%s of %d are used: the values of more would need above %d GB",
                counted(images, "image[s]"),
                total,
                MOST_BYTES // 2**30,
            )
            break
        found.append(call)
        images += size_of(call)
    return found


def size_of(call: Given) -> int:
    """Return the number of images or boxes in a call."""
    return len(as_tuple(call)[0])


def bytes_of_an_image(
    graph: QuantizedGraph, reference: nn.Module, blocks: Sequence[Block], call: Given
) -> float:
    """Return the largest memory that the values of one image take while a block is learned."""
    bytes_of = _bytes_of_outputs(graph, reference, blocks, call)
    last_reader = {node: n for n, block in enumerate(blocks) for node in block.inputs}
    most = 0
    alive: set[fx.Node] = set()
    for number, block in enumerate(blocks):
        alive |= set(block.outputs)
        most = max(most, sum(bytes_of[node] for node in alive))
        alive = {node for node in alive if last_reader.get(node, -1) > number}
    # In float and fake-quantized.
    return 2 * most / size_of(call)


@torch.no_grad()
def _bytes_of_outputs(
    graph: QuantizedGraph, reference: nn.Module, blocks: Sequence[Block], call: Given
) -> dict[fx.Node, int]:
    values: dict[fx.Node, Any] = {}
    for node in graph.graph.nodes:
        values[node] = computed(reference, node, values.__getitem__, call)
    return {node: _bytes(values[node]) for block in blocks for node in block.outputs}


def _bytes(value: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree_leaves(value) if isinstance(x, Tensor))
