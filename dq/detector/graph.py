"""A detector's backbone, neck and head as one graph that its own loss and decoding run on.

The graph stands in for ``extract_feat``, and the head's ``forward``, which mmdet calls on what
``extract_feat`` returns, hands the graph's outputs on. So every training and test path of mmdet
works unchanged on the quantized detector.
"""

from __future__ import annotations

from typing import Any

import mmcv.cnn
from mmcv.cnn.bricks import wrappers
from mmcv.cnn.bricks.drop import DropPath
from torch import Tensor, fx, nn

from dq.quant.prepare import QuantizedGraph, prepare
from dq.quant.recipe import Recipe
from dq.quant.trace import TraceError, declare_plain_layers, trace

_ACTIVATIONS = (mmcv.cnn.Swish, mmcv.cnn.HSwish, mmcv.cnn.HSigmoid)


def trace_detector(detector: nn.Module) -> fx.Graph:
    """Trace ``bbox_head(extract_feat(img))`` into one graph.

    Args:
        detector: A single-stage mmdet detector, float.

    Returns:
        A graph of one input, images ``(N, 3, H, W)``, and the head's outputs.

    Raises:
        ValueError: The detector is not single-stage or has no static graph.
    """
    head = getattr(detector, "bbox_head", None)
    if not isinstance(head, nn.Module):
        raise ValueError(
            f"{type(detector).__name__} has no bbox_head of its own; quantization works for"
            " single-stage detectors (SSD, RetinaNet, FCOS, YOLOX and the like)"
        )
    declare_plain_layers(
        wrappers.Conv2d, wrappers.Conv3d, wrappers.ConvTranspose2d, wrappers.Linear
    )
    extract: Any = detector.extract_feat

    def network(img: Tensor) -> Any:
        return head(extract(img))

    mode = detector.training
    detector.eval()
    try:
        return trace(detector, network, is_leaf=_is_leaf)
    except TraceError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"this detector cannot be quantized: {reason}") from error
    finally:
        detector.train(mode)


def parameters_outside(detector: nn.Module, graph: fx.Graph) -> list[str]:
    """Return the names of backbone and neck parameters that the graph never reads.

    Such parameters (the last stage of a backbone whose output nobody takes) never get a gradient,
    and DistributedDataParallel would wait for one.

    Args:
        detector: The traced model.
        graph: Its graph.
    """
    targets = {str(n.target) for n in graph.nodes if n.op in {"call_module", "get_attr"}}
    unused = []
    for name, _ in detector.named_parameters():
        if name.partition(".")[0] not in {"backbone", "neck"}:
            continue
        parts = name.split(".")
        owners = {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
        if not owners & targets:
            unused.append(name)
    return unused


def _is_leaf(module: nn.Module) -> bool:
    """Keep activation functions whole, and compiled operators, which tracing cannot enter."""
    if isinstance(module, (*_ACTIVATIONS, DropPath)):
        return True
    return type(module).__module__.startswith("mmcv.ops.")


def quantize_detector(detector: nn.Module, recipe: Recipe) -> QuantizedGraph:
    """Insert quantizers into the detector and make its own methods run on the quantized graph.

    Every quantizer begins in phase OFF. The detector's modules, parameters and float state-dict
    keys stay as they are; all that is new lies below ``detector.quantizers``.

    Args:
        detector: A float detector, as mmdet builds it.
        recipe: Which module gets which integers.

    Raises:
        ValueError: It cannot be traced, or is quantized already.
    """
    graph = prepare(detector, recipe, trace_detector(detector))
    attach(detector, graph)
    return graph


def attach(detector: nn.Module, graph: Any) -> None:
    """Let mmdet's methods of ``detector`` take backbone, neck and head from ``graph``.

    Args:
        detector: A single-stage detector.
        graph: Callable, images -> the head's outputs.
    """

    def extract_feat(img: Tensor) -> Any:
        return graph(img)

    def hand_on(outputs: Any) -> Any:
        return outputs

    # Plain attributes of the instance: they hide the methods of the class.
    detector.__dict__["extract_feat"] = extract_feat
    head = detector.bbox_head
    assert isinstance(head, nn.Module)
    head.__dict__["forward"] = hand_on
