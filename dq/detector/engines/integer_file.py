"""Run a detector's network and RoI heads with the integers of an exported file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from dq.detector.data.class_names import refuse_other_classes
from dq.detector.model.graph import attach_all
from dq.dist.files.checkpoint import load_checkpoint
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.bias_overflow import fit_biases_
from dq.quant.integer.convert import integer_network
from dq.quant.integer.engine.graph import compute_exactly_
from dq.quant.integer.serialize import INTEGER, load_integers_


def read_integer_file(path: Path) -> dict[str, Any]:
    """Return the content of a torch-int file that `dq.detector.export.write` wrote.

    Raises:
        ValueError: The file is missing, damaged, or of another kind.
    """
    content = load_checkpoint(path)
    meta = content.get("meta")
    if (
        not {INTEGER, "parts"} <= set(content)
        or not isinstance(meta, Mapping)
        or not {"config", "checkpoint", "classes"} <= set(meta)
    ):
        raise ValueError(
            f"{path} has no integers; `launcher export --format torch-int` writes such a file"
        )
    return content


def load_networks(
    path: Path, content: Mapping[str, Any], graph: QuantizedGraph, classes: tuple[str, ...]
) -> tuple[dict[str, fx.GraphModule], list[str]]:
    """Return a file's networks by part, and the tensors that differ from the graph's.

    Args:
        path: The file, for messages.
        content: Result of `read_integer_file`.
        graph: The detector's graph, with ranges.
        classes: Classes of the data set.

    Returns:
        The networks (the detector's own is ``""``), and the names of tensors that differ from an
        export of the graph.

    Raises:
        ValueError: The file belongs to another detector or data set.
    """
    refuse_other_classes(path, content["meta"], classes)
    parts: Mapping[str, QuantizedGraph] = {"": graph, **graph.parts}
    stored = {"": content[INTEGER], **content["parts"]}
    networks, differing = {}, []
    for part, own in parts.items():
        if part not in stored:
            raise ValueError(f"{path} has no {part}; export the checkpoint again")
        network = integer_network(own)
        fit_biases_(network)
        before = {key: value.clone() for key, value in network.state_dict().items()}
        load_integers_(network, stored[part], str(path))
        after = network.state_dict()
        differing += [key for key, value in before.items() if not torch.equal(value, after[key])]
        networks[part] = network
    return networks, differing


def run_integers_(detector: nn.Module, networks: Mapping[str, fx.GraphModule]) -> None:
    """Make the detector run its network and RoI heads with a file's integers and integer sums."""
    for network in networks.values():
        compute_exactly_(network)
    attach_all(detector, networks)
