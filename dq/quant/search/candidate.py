"""The candidates of a search: recipes for calibration, with the repairs after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dq.quant.ptq.repairs import chosen_steps
from dq.quant.ptq.settings import Repair
from dq.quant.recipes.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A way to calibrate a model.

    Attributes:
        name: For tables and logs; different for each candidate of a search.
        recipe: Which tensors are quantized, and how.
        repair: What calibration repairs in addition to finding ranges.
    """

    name: str
    recipe: Recipe
    repair: Repair

    @property
    def num_raised(self) -> int:
        """Number of quantizers raised to 16 bits."""
        return len(self.recipe.raised)

    @property
    def cost(self) -> tuple[bool, int]:
        """What the engine's time depends on: zero points that slow it down, then raised bits."""
        slowed = self.recipe.engine.slowed_by_zero_points and self.recipe.zero_points
        return slowed, self.num_raised


# Name, observer of activations, and repairs. All have the same cost in the engine.
_WAYS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("weighted mse + bias", "weighted_mse", ("bias",)),
    ("weighted mse", "weighted_mse", ()),
    ("mse + bias", "mse", ("bias",)),
    ("percentile + bias", "percentile", ("bias",)),
    ("weighted mse + equalize + bias", "weighted_mse", ("equalize", "bias")),
)
_SEARCHED = ("weighted_mse", "mse")
_BEFORE_RANGES = ("equalize", "channel_scales")
_ROUNDING = ("adaround",)


def first_candidates(recipe: Recipe, repair: Repair) -> list[Candidate]:
    """Return ways to calibrate with nothing raised; each needs only a few passes over the images.

    Args:
        recipe: Of the config: formats, target and rules stay as they are.
        repair: Of the config: its numbers stay.

    Returns:
        What the config says comes first, then others. No two are equal.
    """
    own = _as_configured(recipe, repair)
    found = [own, _other_bias(own)]
    for name, observer, steps in _WAYS:
        repaired = replace(own.repair, steps=steps)
        candidate = Candidate(
            name=name,
            recipe=replace(
                own.recipe,
                observer=observer,
                weight_range="mse",
                free_clips=any(step.frees_clips for step in chosen_steps(repaired)),
            ),
            repair=repaired,
        )
        if (candidate.recipe, candidate.repair) not in [(c.recipe, c.repair) for c in found]:
            found.append(candidate)
    return found


def without_zero_points(recipe: Recipe, repair: Repair) -> list[Candidate]:
    """Return ways to calibrate without zero points; none unless these slow the engine down.

    Args:
        recipe: Of the config.
        repair: Of the config.
    """
    if not (recipe.zero_points and recipe.engine.slowed_by_zero_points):
        return []
    own = _as_configured(recipe, repair)
    plain = replace(own, name="no zero points", recipe=replace(own.recipe, zero_points=False))
    return [plain, _other_bias(plain)]


def _other_bias(candidate: Candidate) -> Candidate:
    """Return the candidate with bias correction, or without it if it has it."""
    steps = candidate.repair.steps
    has = "bias" in steps
    others = tuple(step for step in steps if step != "bias") if has else (*steps, "bias")
    return replace(
        candidate,
        name=f"{candidate.name}{', without bias' if has else ' + bias'}",
        repair=replace(candidate.repair, steps=others),
    )


def _as_configured(recipe: Recipe, repair: Repair) -> Candidate:
    return Candidate(
        name="as configured",
        recipe=replace(recipe, raised=()),
        repair=replace(repair, mixed=None),
    )


def with_channel_scales(best: Candidate) -> list[Candidate]:
    """Return the candidate with channel scales where channels differ most; nothing if it has them.

    They cost the engine a multiplication for each such tensor. The observer that was best without
    channel scales need not be the best with them, so the other searching observers are tried too.
    """
    if "channel_scales" in best.repair.steps:
        return []
    repair = replace(best.repair, steps=(*best.repair.steps, "channel_scales"))
    observers = dict.fromkeys((best.recipe.observer, *_SEARCHED))
    return [
        Candidate(
            name=f"{observer.replace('_', ' ')} + channel scales{_named(best.repair.steps)}",
            recipe=replace(best.recipe, observer=observer),
            repair=repair,
        )
        for observer in observers
    ]


def _named(steps: Sequence[str]) -> str:
    return "".join(f" + {step}" for step in steps)


def with_rounding(best: Candidate) -> Candidate | None:
    """Return the candidate with learned rounding of weights (AdaRound); None if it has it.

    AdaRound takes much longer than a calibration, so a search tries it on the best way only.
    """
    if "adaround" in best.repair.steps:
        return None
    kept = tuple(step for step in best.repair.steps if step in _BEFORE_RANGES)
    return Candidate(
        name=f"{best.name.removesuffix(' + bias')} + adaround",
        recipe=best.recipe,
        repair=replace(best.repair, steps=(*kept, *_ROUNDING)),
    )


def with_reconstruction(best: Candidate) -> Candidate | None:
    """Return the candidate with block reconstruction; None if it has it, or from 8 bits on.

    It takes long, and it was seen to help below 8 bits only (docs/ptq.md).
    """
    narrowest = min(best.recipe.weight.bits, best.recipe.activation.bits)
    if "reconstruct" in best.repair.steps or narrowest >= 8:
        return None
    return Candidate(
        name=f"{best.name} + reconstruct",
        recipe=best.recipe,
        repair=replace(best.repair, steps=(*best.repair.steps, "reconstruct")),
    )


def with_raised(best: Candidate, ranking: Sequence[str], count: int) -> Candidate:
    """Return the candidate with its most sensitive quantizers raised to 16 bits.

    Args:
        best: With nothing raised.
        ranking: Names of quantizers, the most sensitive first.
        count: How many of them to raise.
    """
    return Candidate(
        name=f"{best.name}, {count} raised",
        recipe=replace(best.recipe, raised=tuple(ranking[:count])),
        repair=best.repair,
    )
