"""Distillation of a two-stage detector: its RoI heads learn from the teacher's, box by box.

RoI heads are not in the detector's graph: mmdet calls them on boxes of the first stage. Their
calls are recorded, and repeated with the teacher: on the teacher's features, but on the student's
boxes, so that both judge the same boxes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from torch import Tensor, nn

from dq.detector.model.graph import features_of
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.numerics.nested import floating_tensors
from dq.quant.training.distillation import Distill, Distillation, relative_error, with_features

log = logging.getLogger("dq.train")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """A call of a RoI extractor or of a RoI head by the student.

    Attributes:
        name: Of the module.
        inputs: Its positional arguments.
        options: Its keyword arguments.
        output: What it returned.
    """

    name: str
    inputs: tuple[Any, ...]
    options: Mapping[str, Any]
    output: Any


class RoIDistillation(Distillation):
    """Adds the outputs of the RoI heads to what the student learns.

    A head learns if each of its inputs comes from a RoI extractor or from another such head. Other
    heads are named in the log. Extractors with weights are not repeated, so their heads do not
    learn.

    Args:
        detector: Prepared, a two-stage detector.
        graph: Its graph, with the RoI heads as parts.
        settings: What is compared; ``weight`` is for the heads' outputs too.
        originals: See `dq.quant.training.distillation.Distillation`.

    Attributes:
        calls: Of the last step, in order.
    """

    def __init__(
        self,
        detector: nn.Module,
        graph: QuantizedGraph,
        settings: Distill,
        originals: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        super().__init__(graph, settings, originals)
        self.heads = {name: detector.get_submodule(name) for name in graph.parts}
        self.head_teachers = {
            name: with_features(part, self.weights, (), training=True)
            for name, part in graph.parts.items()
        }
        self.extractors: dict[str, Any] = {
            name: module
            for name, module in detector.named_modules()
            if isinstance(module, BaseRoIExtractor) and next(module.parameters(), None) is None
        }
        self.calls: list[_Call] = []
        self._without_teacher: set[str] = set()

    def __call__(self, x: Tensor) -> Any:
        """Run the student on ``x`` and forget the calls of the former step."""
        self.calls.clear()
        return super().__call__(x)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record the calls of RoI extractors and heads in training mode, in the body."""
        with ExitStack() as hooks:
            for name, module in {**self.extractors, **self.heads}.items():
                hook = module.register_forward_hook(self._hook_of(name), with_kwargs=True)
                hooks.callback(hook.remove)
            yield

    def _hook_of(self, name: str) -> Callable[..., None]:
        def record(module: nn.Module, inputs: Any, options: Any, output: Any) -> None:
            # Samplers may also call heads, without gradients.
            if module.training and torch.is_grad_enabled():
                call = _Call(name=name, inputs=inputs, options=options, output=output)
                self.calls.append(call)

        return record

    def further_losses(self, outputs: Any, wanted: Any) -> dict[str, Tensor]:
        """Return the mean error of the RoI heads, 0 if no box reached one; see the base class."""
        taught = _Taught(features_of(outputs), features_of(wanted))
        errors = []
        for call in self.calls:
            with torch.no_grad():
                teacher_output = self._repeat(call, taught)
            if teacher_output is None:
                continue
            taught.add(call.output, teacher_output)
            own = floating_tensors(call.output)
            if call.name in self.heads and own and all(tensor.numel() for tensor in own):
                errors.append(relative_error(call.output, teacher_output))
        self.calls.clear()
        # Every rank has this term in every step: mmdet averages the terms over all ranks.
        zero = floating_tensors(outputs)[0].new_zeros(())
        error = torch.stack(errors).mean() if errors else zero
        return {"loss_distill_roi": self.settings.weight * error}

    def _repeat(self, call: _Call, taught: _Taught) -> Any | None:
        """Return what the teacher computes in this call; None if it does not know the inputs."""
        if call.name in self.extractors:
            features, *others = call.inputs
            known = [taught.of(feature) for feature in features]
            if any(feature is None for feature in known):
                return None
            # Its hook would record this call too.
            return self.extractors[call.name].forward(tuple(known), *others, **call.options)
        inputs = [taught.of(value) for value in call.inputs]
        if call.options or any(value is None for value in inputs):
            if call.name not in self._without_teacher:
                self._without_teacher.add(call.name)
                log.info(
                    "%s has no teacher: its inputs are not those of a RoI extractor", call.name
                )
            return None
        return self.head_teachers[call.name](*inputs)[0]


class _Taught:
    """The teacher's tensor for each tensor of the student that is known so far.

    Args:
        own: The student's features.
        wanted: The teacher's.
    """

    def __init__(self, own: Sequence[Tensor], wanted: Sequence[Tensor]) -> None:
        self.pairs = list(zip(own, wanted, strict=True))

    def add(self, own: Any, wanted: Any) -> None:
        """Add the tensors of a call's output."""
        self.pairs += zip(floating_tensors(own), floating_tensors(wanted), strict=True)

    def of(self, value: Any) -> Tensor | None:
        """Return the teacher's tensor for this one.

        Autocast gives the heads float32 copies, so an equal tensor counts as the same.
        """
        for own, wanted in self.pairs:
            if value is own:
                return wanted
        for own, wanted in self.pairs:
            same = isinstance(value, Tensor) and value.shape == own.shape
            if same and torch.equal(value.float(), own.float()):
                return wanted
        return None
