"""Settings of post-training repairs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from dq.names import hint, is_one_of
from dq.quant.graph.nodes import Given
from dq.quant.graph.quantized_graph import QuantizedGraph

# The modules of this package with a `RepairStep` called REPAIR, in the order in which they run.
STEPS = {
    "equalize": "equalization",
    "channel_scales": "channel_scales",
    "bias": "bias_correction",
    "adaround": "adaround",
    "reconstruct": "reconstruction.learning",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixed:
    """Automatic mixed precision: the smallest set of quantizers raised to 16 bits.

    Attributes:
        max_raised: Largest number of quantizers to raise.
        target_sqnr: Stop when the outputs' signal to quantization noise ratio, in decibel, is this
            high; None raises as many as allowed.
        images: Number of images to measure sensitivity on.
    """

    max_raised: int = 5
    target_sqnr: float | None = None
    images: int = 8

    def __post_init__(self) -> None:
        if self.max_raised < 0 or self.images < 1:
            raise ValueError("quant.mixed needs max_raised of 0 or more and images of 1 or more")


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """What a step learns from: the inputs of the graph that it repairs.

    Attributes:
        rounded: As the quantized model has them: images, or the inputs of a part.
        plain: As the float model has them; for images the same.
    """

    rounded: Sequence[Given]
    plain: Sequence[Given]


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairStep:
    """One repair.

    Attributes:
        apply: Changes the model of a graph in place, given samples and the settings.
        compare: The same for a step that compares with the float model: it is also given a copy of
            the model from before weights were clipped or repaired.
        changes_ranges: It runs before ranges are found, with the first batch of images. Otherwise
            it runs after that, with all quantizers FROZEN, and is undone if it makes the outputs
            worse.
        includes: Names of steps that it does too, so they do not run on their own.
        most_images: It uses at most the first so many images; None for all that settings allow.
        in_parts: It can repair a part, such as a RoI head, too.
        frees_clips: It needs `dq.quant.recipes.recipe.Recipe.free_clips`.
    """

    apply: Callable[[QuantizedGraph, Samples, Repair], object] | None = None
    compare: Callable[[QuantizedGraph, Samples, Repair, nn.Module], object] | None = None
    changes_ranges: bool = False
    includes: frozenset[str] = frozenset()
    most_images: int | None = None
    in_parts: bool = False
    frees_clips: bool = False

    def run(
        self,
        graph: QuantizedGraph,
        samples: Samples,
        settings: Repair,
        reference: nn.Module | None,
    ) -> None:
        """Do the step; ``reference`` is what ``compare`` needs."""
        if self.apply is not None:
            self.apply(graph, samples, settings)
        if self.compare is not None:
            assert reference is not None
            self.compare(graph, samples, settings, reference)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What calibration repairs in addition to finding ranges.

    Attributes:
        steps: Methods that calibration applies, names from `STEPS`; they always run in one order.
        mixed: Automatic mixed precision, which raises a few quantizers to 16 bits; None for none.
        images: Number of calibration images for bias correction, AdaRound and block reconstruction.
        rounding_steps: Steps of AdaRound for each layer.
        most_scaled: Largest number of tensors with a scale for each channel.
        reconstruction_steps: Steps of block reconstruction for each block.
    """

    steps: tuple[str, ...] = field(
        default=(), metadata={"one": True, "words": "a list of names such as ['bias']"}
    )
    mixed: Mixed | None = None
    images: int = 64
    rounding_steps: int = 200
    most_scaled: int = 4
    reconstruction_steps: int = 200

    def __post_init__(self) -> None:
        for step in self.steps:
            if not is_one_of(step, STEPS):
                raise ValueError(f"quant.repairs: {step!r} does not exist; {hint(step, STEPS)}")
        fewest = min(self.rounding_steps, self.most_scaled, self.reconstruction_steps)
        if self.images < 1 or fewest < 0:
            raise ValueError(
                "quant.repair_images must be 1 or more, and quant.rounding_steps,"
                " quant.most_scaled and quant.reconstruction_steps 0 or more"
            )
