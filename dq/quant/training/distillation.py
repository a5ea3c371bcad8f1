"""Distillation: the float model is the teacher of its quantized copy, on outputs and features.

The teacher is a copy of the prepared model with all quantizers off and the weights that it had
before calibration clipped or repaired any, so it computes exactly the float model. Teacher and
student run the same graph, so their tensors correspond one to one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from dq.quant.graph.fused.activations import MergedGraph
from dq.quant.graph.quantized_graph import CONTAINER, QuantizedGraph
from dq.quant.graph.trace import BoundGraph, Traced
from dq.quant.numerics.nested import floating_tensors
from dq.quant.quantizers.phase import Phase, set_phase

# Smallest mean square of a teacher's tensor that an error is divided by.
SMALLEST_POWER = 1e-8
NECK = "neck.*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Distill:
    """What the student learns from the float model.

    Attributes:
        weight: Weight of the loss on the network's outputs.
        features: Shell patterns of modules whose quantized outputs are compared too, such as
            ``neck.*``.
        feature_weight: Weight of the loss on those modules.
        alone: Train on these losses alone: the detector's own losses, and the annotations that
            they need, are not used. Without ``features`` the neck's outputs are compared too.
    """

    weight: float = 1.0
    features: tuple[str, ...] = field(default=(), metadata={"one": True})
    feature_weight: float = 1.0
    alone: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.features, str):
            object.__setattr__(self, "features", (self.features,))
        object.__setattr__(self, "features", tuple(self.features))
        for name in ("weight", "feature_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"quant.distill.{name} is {getattr(self, name)}; use 0 or more")


def relative_error(student: Any, teacher: Any) -> Tensor:
    """Return the mean over tensors of ``|student - teacher|^2 / |teacher|^2``, shape ().

    A ratio, so its weight means the same for logits, offsets and features.

    Args:
        student: A tensor, or lists and tuples of tensors.
        teacher: The same structure of tensors.
    """
    pairs = list(zip(floating_tensors(student), floating_tensors(teacher), strict=True))
    errors = []
    for own, wanted in pairs:
        wanted = wanted.detach().float()
        power = wanted.square().mean().clamp(min=SMALLEST_POWER)
        errors.append((own.float() - wanted).square().mean() / power)
    return torch.stack(errors).mean()


class Distillation:
    """A student that records its features, its teacher, and the losses between them.

    Calling it runs the student and returns what the graph returns, so it can replace the graph.

    Args:
        graph: The student, before the first step.
        settings: What is compared.
        originals: The float model's values of weights that calibration has changed, see
            `dq.quant.ptq.repairs.Calibration.originals`.

    Raises:
        ValueError: A pattern of ``features`` matches no module with a quantized output.
    """

    def __init__(
        self,
        graph: QuantizedGraph,
        settings: Distill,
        originals: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        self.settings = settings
        names = feature_names(graph, settings.features or _usual_features(graph, settings))
        self.student = with_features(graph, graph.root, names)
        self.weights = _float_copy(graph.root)
        # Not by load_state_dict: some layers, such as mmcv's ConvAWS2d, then compute anew whatever
        # the given weights lack.
        own = self.weights.state_dict()
        for name in originals.keys() & own.keys():
            own[name].copy_(originals[name])
        self.teacher = with_features(graph, self.weights, names, training=True)
        self.recorded: tuple[Tensor, Any, Any] | None = None

    def __call__(self, x: Tensor) -> Any:
        """Run the student on ``x`` and keep what the losses need."""
        outputs, features = self.student(x)
        self.recorded = (x, outputs, features)
        return outputs

    def losses(self) -> dict[str, Tensor]:
        """Run the teacher, return the loss terms of the last call, and forget that call."""
        assert self.recorded is not None, "the student has not run"
        x, outputs, features = self.recorded
        self.recorded = None
        with torch.no_grad():
            wanted, wanted_features = self.teacher(x)
        terms = {"loss_distill": self.settings.weight * relative_error(outputs, wanted)}
        if features:
            error = relative_error(features, wanted_features)
            terms["loss_distill_features"] = self.settings.feature_weight * error
        return {**terms, **self.further_losses(outputs, wanted)}

    def further_losses(self, outputs: Any, wanted: Any) -> dict[str, Tensor]:
        """Return further loss terms; a subclass compares parts of the model outside the graph.

        Args:
            outputs: What the graph returned for the student in the last call.
            wanted: The same of the teacher.
        """
        return {}

    def state_dict(self) -> dict[str, Tensor]:
        """Return the teacher's state, for a checkpoint.

        A resumed training has no other source: its checkpoints have the student's weights.
        """
        return dict(self.weights.state_dict())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the teacher's state from a checkpoint."""
        self.weights.load_state_dict(state)


def _usual_features(graph: QuantizedGraph, settings: Distill) -> tuple[str, ...]:
    necks = [site for site in graph.sites if fnmatchcase(site.module, NECK)]
    return (NECK,) if settings.alone and necks else ()


def _float_copy(root: nn.Module) -> nn.Module:
    teacher = copy.deepcopy(root)
    set_phase(teacher, Phase.OFF)
    teacher.eval()  # Not chained: a detector that distills has its own train(), which returns None.
    return teacher.requires_grad_(False)


def feature_names(graph: QuantizedGraph, patterns: Sequence[str]) -> list[str]:
    """Return the names of the activation quantizers after the modules that match.

    Raises:
        ValueError: A pattern matches no module.
    """
    activations = [site for site in graph.sites if site.kind == "activation"]
    for pattern in patterns:
        if not any(fnmatchcase(site.module, pattern) for site in activations):
            some = ", ".join(sorted({site.module for site in activations})[:8])
            raise ValueError(
                f"quant.distill.features: {pattern!r} matches no module with a quantized output;"
                f" there are {some}, ..."
            )
    return [
        site.name
        for site in activations
        if any(fnmatchcase(site.module, pattern) for pattern in patterns)
    ]


def with_features(
    graph: QuantizedGraph, root: nn.Module, names: Sequence[str], *, training: bool = False
) -> BoundGraph:
    """Return the graph, run on ``root``, with the outputs of these quantizers as a second result.

    Args:
        graph: The prepared model.
        root: The model or a copy of it.
        names: Names of the quantizers.
        training: Run the training graph, even if ``root`` is in evaluation mode.

    Returns:
        A callable that returns ``(what the graph returns, list of tensors)``.
    """
    evaluated = _tapped(graph.graph, names)
    if graph.training_graph is None:
        return MergedGraph(root, evaluated)
    trained = _tapped(graph.training_graph, names)
    if training:
        return MergedGraph(root, trained)
    return MergedGraph(root, Traced(graph=evaluated, training_graph=trained))


def _tapped(graph: fx.Graph, names: Sequence[str]) -> fx.Graph:
    copied = fx.Graph()
    nodes: dict[fx.Node, fx.Node] = {}
    result = copied.graph_copy(graph, nodes)
    targets = [f"{CONTAINER}.{name}" for name in names]
    taps = [new for old, new in nodes.items() if old.op == "call_module" and old.target in targets]
    copied.output((result, taps))
    return copied
