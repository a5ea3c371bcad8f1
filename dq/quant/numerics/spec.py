"""The integer format of one quantizer: bits, sign, symmetry, channel axis, kind of scale."""

from __future__ import annotations

from dataclasses import dataclass, replace

MIN_BITS, MAX_BITS = 2, 16


def name_of(weight_bits: int, activation_bits: int) -> str:
    """Return the usual name of two widths: ``int8``, ``W4A8``."""
    same = weight_bits == activation_bits
    return f"int{weight_bits}" if same else f"W{weight_bits}A{activation_bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """The integer format of one tensor.

    Attributes:
        bits: Width of the integer, 2 to 16.
        signed: Two's complement (-128 to 127 at 8 bits) instead of unsigned (0 to 255).
        symmetric: The zero point is 0. A signed range is mirrored around zero; an unsigned one
            starts at zero.
        channel_axis: Dimension with one scale per index; None for one scale per tensor.
        power_of_two: Round the scale up to the next power of two, so that a device can shift
            instead of multiplying (as TI's TIDL does).
        narrow: Leave out the smallest integer. In a signed symmetric format, -x is then
            representable for every x.

    Raises:
        ValueError: The width is not supported, or the format has no integer for zero.
    """

    bits: int = 8
    signed: bool = False
    symmetric: bool = False
    channel_axis: int | None = None
    power_of_two: bool = False
    narrow: bool = False

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ValueError(
                f"bits is {self.bits}; quantization works for {MIN_BITS} to {MAX_BITS}"
            )
        if self.narrow and self.symmetric and not self.signed:
            raise ValueError(
                "narrow, symmetric and unsigned together leave no integer for zero; drop narrow"
            )

    @property
    def quant_min(self) -> int:
        """The smallest integer."""
        lowest = -(1 << (self.bits - 1)) if self.signed else 0
        return lowest + 1 if self.narrow else lowest

    @property
    def quant_max(self) -> int:
        """The largest integer."""
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    @property
    def num_levels(self) -> int:
        """How many integers there are."""
        return self.quant_max - self.quant_min + 1


def without_zero_point(spec: QuantSpec, *, is_never_negative: bool) -> QuantSpec:
    """Return the format with its zero point fixed at 0: unsigned, or signed and mirrored.

    Args:
        spec: Of an activation; one that is symmetric already stays as it is.
        is_never_negative: Whether the tensor's values are known to be 0 or more.
    """
    if spec.symmetric:
        return spec
    return replace(spec, symmetric=True, signed=not is_never_negative)
