"""Which module gets which integers: a default for weights and activations, and rules for some."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial

from dq.quant.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.learned import LEARNED, activation_quantizer, weight_quantizer
from dq.quant.observer import OBSERVERS, MinMaxObserver, MovingAverageObserver
from dq.quant.spec import QuantSpec

INT8_WEIGHT = QuantSpec(bits=8, signed=True, symmetric=True, channel_axis=0, narrow=True)
INT8_ACTIVATION = QuantSpec(bits=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Other integers, or float, for the modules whose qualified name matches ``module``.

    Attributes:
        module: Shell pattern, such as ``bbox_head.*``; the last rule that matches counts.
        weight: Integers of the weight; None keeps the default.
        activation: Integers of the output; None keeps the default.
        quantize: False leaves weight and output in float.
    """

    module: str
    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
    quantize: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        weight: Integers of every weight; the channel axis is set for each layer.
        activation: Integers of every activation, per tensor.
        observer: Key of `dq.quant.observer.OBSERVERS`.
        momentum: Weight of a new batch in the moving average.
        outputs: Quantize what the last layers return too; the tail behind them (decoding,
            non-maximum suppression) is float in any case.
        learned: What training learns of the ranges: ``lsq`` (scales), ``lsq+`` (scales, and the
            offsets of activations), ``pact`` (clipping values of activations), None for nothing.
        rules: Exceptions by module name.
    """

    weight: QuantSpec = INT8_WEIGHT
    activation: QuantSpec = INT8_ACTIVATION
    observer: str = "moving_average"
    momentum: float = 0.01
    outputs: bool = True
    learned: str | None = None
    rules: tuple[Rule, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.observer not in OBSERVERS:
            known = ", ".join(sorted(OBSERVERS))
            raise ValueError(f"observer {self.observer!r} does not exist; choose one of {known}")
        if self.learned not in (None, *LEARNED):
            known = ", ".join(LEARNED)
            raise ValueError(f"learned {self.learned!r} does not exist; choose {known} or None")

    def rule_for(self, module: str) -> Rule | None:
        """Return the last rule whose pattern matches the qualified name, or None."""
        matching = [rule for rule in self.rules if fnmatchcase(module, rule.module)]
        return matching[-1] if matching else None

    def weight_spec(self, module: str) -> QuantSpec | None:
        """Return the integers of the module's weight; None for float."""
        rule = self.rule_for(module)
        if rule is None:
            return self.weight
        return (rule.weight or self.weight) if rule.quantize else None

    def activation_spec(self, module: str) -> QuantSpec | None:
        """Return the integers of the module's output; None for float."""
        rule = self.rule_for(module)
        if rule is None:
            return self.activation
        return (rule.activation or self.activation) if rule.quantize else None

    def activation_quantizer(self, spec: QuantSpec) -> ActivationQuantizer:
        """Return a new quantizer for one tensor."""
        make: partial[MinMaxObserver] = partial(OBSERVERS[self.observer])
        if issubclass(OBSERVERS[self.observer], MovingAverageObserver):
            make = partial(make, momentum=self.momentum)
        return activation_quantizer(self.learned, spec, make())

    def weight_quantizer(self, spec: QuantSpec, *, num_channels: int) -> WeightQuantizer:
        """Return a new quantizer for one weight, its channel axis being set in ``spec``."""
        return weight_quantizer(self.learned, spec, num_channels=num_channels)
