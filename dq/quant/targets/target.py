"""Where an integer engine needs quantizers in a network.

Bit widths alone do not make a network fast. An engine computes an operation in integers only if
quantizers are where it expects them. One engine fuses SiLU into the convolution before it and needs
no quantizer between them. Another engine computes convolution, sigmoid and product as separate
operations, and runs all three in float if one of them has no quantizer after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from dq.names import hint, is_one_of
from dq.quant.numerics.activation_functions import FUNCTIONS, Bounds
from dq.quant.numerics.spec import QuantSpec

INT8_WEIGHT = QuantSpec(bits=8, signed=True, symmetric=True, channel_axis=0, narrow=True)
INT8_ACTIVATION = QuantSpec(bits=8)
INT8_SIGNED_ACTIVATION = replace(INT8_ACTIVATION, signed=True, symmetric=True)

# Every kind of function, in `Target.fuses`.
ANY_FUNCTION = "*"
# Functions whose values lie between fixed bounds, so their range needs no calibration.
BOUNDS: Mapping[str, Bounds] = {
    "softmax": (0.0, 1.0),
    **{function.name: function.bounds for function in FUNCTIONS if function.bounds},
}
# What `dq.quant.graph.functions` may call a function; ReLU and its relatives are ``clip``.
KINDS = frozenset(
    {function.name for function in FUNCTIONS if function.is_recognised}
    | {*BOUNDS, "clip", "leaky_relu", "prelu", "other"}
)
# Kinds that can be computed in several operations.
SPLITTABLE = frozenset({"silu"})


class Results(Enum):
    """Which results of integer operations get a quantizer."""

    # Those that another integer operation reads; other results may be real numbers.
    READ = "read"
    # All of them: without a quantizer after it, an operation runs in float.
    ALL = "all"


class Sums(Enum):
    """Which addends of a sum get a quantizer."""

    ALL = "all"
    # All but the result of the layer that is computed last: the sum is fused into that layer.
    ALL_BUT_FUSED = "all but fused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The rules of one integer engine.

    Attributes:
        name: As in ``quant.target``.
        engine: Its name in messages and docs.
        source: The code or document that the rules come from.
        weight: Integer format of weights at 8 bits.
        activation: Integer format of activations at 8 bits.
        mixers: Whether sums, products, averages and interpolations run in integers.
        results: Which results get a quantizer.
        sums: Which addends get a quantizer.
        fuses: Kinds of functions (see `dq.quant.graph.functions`) that are fused into the operation
            before them, so there is no quantizer between the two.
        splits: Kinds of functions that the engine computes in several integer operations; the
            graph is rewritten so that each of these gets a quantizer.
        fixed: Bounds of functions with a fixed range, by kind. The ranges of all other functions
            are calibrated.
        outputs: Whether the outputs of the last layers get a quantizer.
        observer: Which observer calibrates 8-bit activations unless the config names one. Errors
            weighted by each channel's effect suit fused operations. Where every result is
            quantized, plain squared errors lost less of the metric (docs/ptq.md).
        finds_functions: Whether a function that the model computes in several operations counts as
            one function.
        slowed_by_zero_points: Whether the engine is slower with zero points of activations, so that
            a search for the cheapest recipe also tries to do without.

    Raises:
        ValueError: A kind of function is not known, cannot be split, or has bounds that do not
            contain 0; or the format of activations has a channel axis.
    """

    name: str
    engine: str
    source: str
    weight: QuantSpec = INT8_WEIGHT
    activation: QuantSpec = INT8_ACTIVATION
    mixers: bool = True
    results: Results = Results.READ
    sums: Sums = Sums.ALL
    fuses: frozenset[str] = frozenset({ANY_FUNCTION})
    splits: frozenset[str] = frozenset()
    fixed: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    outputs: bool = True
    observer: str = "weighted_mse"
    finds_functions: bool = True
    slowed_by_zero_points: bool = False

    def __post_init__(self) -> None:
        for key, known in (
            ("fuses", KINDS | {ANY_FUNCTION}),
            ("splits", SPLITTABLE),
            ("fixed", KINDS),
        ):
            for kind in sorted(getattr(self, key), key=str):
                if not is_one_of(kind, known):
                    raise ValueError(
                        f"target {self.name!r}: {kind!r} in {key} is not possible;"
                        f" {hint(kind, known)}"
                    )
        for kind, (low, high) in self.fixed.items():
            if not low <= 0 < high:
                raise ValueError(
                    f"target {self.name!r}: fixed bounds of {kind} are {low} and {high}; the lower"
                    " one is at most 0, the upper one more than 0"
                )
        if self.activation.channel_axis is not None:
            raise ValueError(
                f"target {self.name!r}: activations have one scale per tensor; leave channel_axis"
                " out of the format of activations"
            )

    def is_fused(self, kind: str) -> bool:
        """Return whether a function of this kind is fused into the operation before it."""
        return ANY_FUNCTION in self.fuses or kind in self.fuses
