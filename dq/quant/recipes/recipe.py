"""Which module gets which integer format: defaults for weights and activations, and rules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from dq.names import hint, is_one_of
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.fixed import FixedObserver
from dq.quant.observers.histogram import HistogramObserver, PercentileObserver
from dq.quant.observers.min_max import MinMaxObserver, MovingAverageObserver
from dq.quant.observers.range_search import EntropyObserver, MseObserver, WeightedMseObserver
from dq.quant.quantizers.factory import LEARNED, activation_quantizer, weight_quantizer
from dq.quant.quantizers.fake_quantize import ActivationQuantizer, WeightQuantizer
from dq.quant.targets.registry import target_of
from dq.quant.targets.target import INT8_ACTIVATION, INT8_WEIGHT, Target

POSITIONS = ("first", "last", "last_input", "depthwise", "depthwise_input")
WEIGHT_RANGES = ("min_max", "mse")
RAISED_BITS = 16

OBSERVERS: dict[str, type[MinMaxObserver]] = {
    "min_max": MinMaxObserver,
    "moving_average": MovingAverageObserver,
    "percentile": PercentileObserver,
    "mse": MseObserver,
    "weighted_mse": WeightedMseObserver,
    "entropy": EntropyObserver,
}


def new_observer(
    kind: type[MinMaxObserver],
    spec: QuantSpec,
    *,
    momentum: float = 0.01,
    percentile: float = 99.99,
) -> MinMaxObserver:
    """Return a new observer for one tensor, with those of the settings that its kind has.

    Args:
        kind: A class of `OBSERVERS`.
        spec: The integer format that the range is for.
        momentum: As in `Recipe`.
        percentile: As in `Recipe`.
    """
    options: dict[str, Any] = {}
    if issubclass(kind, MovingAverageObserver):
        options["momentum"] = momentum
    if issubclass(kind, HistogramObserver):
        options.update(spec=spec, collects=False)
    if issubclass(kind, PercentileObserver):
        options["percentile"] = percentile
    return kind(**options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Another integer format, or float, for the modules that match every given condition.

    Attributes:
        module: Shell pattern of the qualified name, such as ``bbox_head.*``.
        type: Shell pattern of the name of the class, such as ``Conv2d``, or function (``cat``).
        position: ``first``: no layer comes before it, so input images and first layers;
            ``last``: no layer comes after it, so last layers and outputs;
            ``depthwise``: a convolution with one input channel in each group; ``last_input`` and
            ``depthwise_input``: such a layer reads its output, with no other layer between.
        weight: Integer format of the weight; None keeps the default.
        activation: Integer format of the output; None keeps the default.
        bits: Width of both; the rest of the format stays.
        quantize: False leaves weight and output in float.

    Raises:
        ValueError: The position does not exist, or a pattern is no text.
    """

    module: str = "*"
    type: str | None = None
    position: str | None = None
    weight: QuantSpec | None = None
    activation: QuantSpec | None = None
    bits: int | None = None
    quantize: bool = True

    def __post_init__(self) -> None:
        for key, pattern in (("module", self.module), ("type", self.type or "")):
            if not isinstance(pattern, str):
                raise ValueError(f"a rule's {key} is {pattern!r}; give one name or shell pattern")
        if self.position is not None and not is_one_of(self.position, POSITIONS):
            raise ValueError(
                f"a rule's position is {self.position!r}; {hint(self.position, POSITIONS)}"
            )

    def fits(self, module: str, kind: str, positions: Collection[str]) -> bool:
        """Say whether the rule applies to this module."""
        return (
            fnmatchcase(module, self.module)
            and (self.type is None or fnmatchcase(kind, self.type))
            and (self.position is None or self.position in positions)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to quantize a model.

    Attributes:
        weight: Integer format of every weight; the channel axis is set for each layer.
        activation: Integer format of every activation, per tensor.
        observer: How calibration finds the range of an activation: a key of `OBSERVERS`;
            `dq.quant.register_observer` adds one of your own.
        momentum: Weight of a new batch in the moving average of ranges.
        percentile: Percentage of the values inside the range; for the observer of that name.
        weight_range: ``min_max``, or ``mse``: calibration clips each weight if that reduces its
            squared quantization error.
        zero_points: Whether activations have zero points. If not, a tensor that may be negative
            gets a signed format with a range mirrored around zero, and any other tensor an unsigned
            format. Inputs of the model keep their zero points. OpenVINO is faster without zero
            points, ONNX Runtime much slower (docs/engines.md).
        outputs: Also quantize the outputs of the last layers. What follows them (decoding,
            non-maximum suppression) is float in any case.
        learned: What training learns: ``lsq`` (scales), ``lsq+`` (scales, and the offsets of
            activations), ``pact`` (clipping values of activations), None for nothing.
        rules: Exceptions; the last matching rule wins.
        free_clips: Compute ReLU6 with one limit per channel, which cross-layer equalization may
            change.
        target: Name of the engine whose rules say where quantizers stand, see `dq.quant.targets`;
            `dq.quant.register_target` adds one of your own.
        raised: Names of quantizers that get 16 bits in any case: the choice of automatic mixed
            precision.
        scaled: Names of quantizers in front of which each channel has a scale of its own: the
            choice of the repair ``channel_scales``.

    Raises:
        ValueError: The observer, the weight range, what is learned, or the target does not exist.
    """

    weight: QuantSpec = INT8_WEIGHT
    activation: QuantSpec = INT8_ACTIVATION
    observer: str = "moving_average"
    momentum: float = 0.01
    percentile: float = 99.99
    weight_range: str = "min_max"
    zero_points: bool = True
    outputs: bool = True
    learned: str | None = None
    rules: tuple[Rule, ...] = field(default=())
    free_clips: bool = False
    target: str = "int8"
    raised: tuple[str, ...] = field(default=(), metadata={"words": "a list of names of quantizers"})
    scaled: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if not is_one_of(self.observer, OBSERVERS):
            raise ValueError(
                f"observer {self.observer!r} does not exist; {hint(self.observer, OBSERVERS)}"
            )
        if not is_one_of(self.weight_range, WEIGHT_RANGES):
            raise ValueError(
                f"weight_range {self.weight_range!r} does not exist;"
                f" {hint(self.weight_range, WEIGHT_RANGES)}"
            )
        if self.learned is not None and not is_one_of(self.learned, LEARNED):
            raise ValueError(
                f"learned {self.learned!r} does not exist; {hint(self.learned, LEARNED)}"
            )
        target_of(self.target)

    @property
    def engine(self) -> Target:
        """The rules of the target."""
        return target_of(self.target)

    def for_target(self, name: str) -> Recipe:
        """Return this recipe with quantizers where another target wants them.

        An observer that is the default of this target becomes the default of the other one.
        """
        here, there = self.engine, target_of(name)
        observer = there.observer if self.observer == here.observer else self.observer
        return replace(self, target=name, outputs=there.outputs, observer=observer)

    def fits_stored(self, stored: Recipe) -> bool:
        """Say whether a calibration by ``stored`` serves this recipe too.

        A stored recipe lists the quantizers that mixed precision raised and those whose channels
        are scaled. This recipe lists them only if the config names them.
        """
        chosen = replace(stored, raised=self.raised, scaled=self.scaled)
        return chosen == self and self.raised in ((), stored.raised)

    def rule_for(self, module: str, kind: str = "", positions: Collection[str] = ()) -> Rule | None:
        """Return the last matching rule, or None.

        Args:
            module: Qualified name.
            kind: Name of its class or function.
            positions: Those of `POSITIONS` that apply to it.
        """
        fitting = [rule for rule in self.rules if rule.fits(module, kind, positions)]
        return fitting[-1] if fitting else None

    def weight_spec(
        self, module: str, kind: str = "", positions: Collection[str] = (), quantizer: str = ""
    ) -> QuantSpec | None:
        """Return the integer format of the module's weight; None for float.

        Args:
            module: As for `rule_for`.
            kind: As for `rule_for`.
            positions: As for `rule_for`.
            quantizer: The quantizer's name, for `raised`.
        """
        rule = self.rule_for(module, kind, positions)
        return self._spec(rule, self.weight, None if rule is None else rule.weight, quantizer)

    def activation_spec(
        self, module: str, kind: str = "", positions: Collection[str] = (), quantizer: str = ""
    ) -> QuantSpec | None:
        """Return the integer format of the module's output; None for float. See `weight_spec`."""
        rule = self.rule_for(module, kind, positions)
        return self._spec(
            rule, self.activation, None if rule is None else rule.activation, quantizer
        )

    def _spec(
        self, rule: Rule | None, default: QuantSpec, other: QuantSpec | None, quantizer: str
    ) -> QuantSpec | None:
        if rule is not None and not rule.quantize:
            return None
        spec = other or default
        if rule is not None and rule.bits is not None:
            spec = replace(spec, bits=rule.bits)
        return replace(spec, bits=RAISED_BITS) if quantizer in self.raised else spec

    def activation_quantizer(
        self, spec: QuantSpec, bounds: tuple[float, float] | None = None
    ) -> ActivationQuantizer:
        """Return a new quantizer for one tensor.

        Args:
            spec: The integer format.
            bounds: Of the tensor's values if its range is fixed; it is neither observed nor
                learned then.
        """
        if bounds is not None:
            fixed = ActivationQuantizer(spec, FixedObserver(*bounds, spec))
            fixed.initialise_from_range_()
            return fixed
        observer = new_observer(
            OBSERVERS[self.observer], spec, momentum=self.momentum, percentile=self.percentile
        )
        return activation_quantizer(self.learned, spec, observer)

    def weight_quantizer(self, spec: QuantSpec, *, num_channels: int) -> WeightQuantizer:
        """Return a new quantizer for one weight; ``spec`` has the channel axis."""
        return weight_quantizer(self.learned, spec, num_channels=num_channels)

    def check_rules(self, kinds: Mapping[str, str]) -> None:
        """Raise ValueError for a rule whose module or type is not in the model.

        Args:
            kinds: Class or function name of everything a rule may name, by qualified name.
        """
        for number, rule in enumerate(self.rules):
            for what, pattern, known in (
                ("module", rule.module, kinds.keys()),
                ("type", rule.type, set(kinds.values())),
            ):
                if pattern is None or any(fnmatchcase(name, pattern) for name in known):
                    continue
                raise ValueError(
                    f"quant.rules[{number}].{what} {pattern!r} is not in the model;"
                    f" {hint(pattern, known)}"
                )
