"""What counts as too large a step for weights and learned scales, and what the log says of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from torch.optim import Optimizer

from dq.counted import counted
from dq.detector.step.guards import Guards
from dq.detector.step.update_ratios import is_learned
from dq.quant.graph.quantized_graph import CONTAINER

log = logging.getLogger("dq.train")
SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """Parameters that have one limit: the weights of layers, or what quantizers learn.

    Attributes:
        learned: Whether quantizers learn them.
        times: How many times as far as a layer's weights they may move, relative to their sizes.
        measure: What their updates are compared with, in the log.
    """

    learned: bool
    times: float
    measure: str

    def of(self, ratios: Mapping[str, float]) -> dict[str, float]:
        """Return the entries of these parameters, by name."""
        return {n: ratio for n, ratio in ratios.items() if is_learned(n) is self.learned}

    def counted(self, ratios: Mapping[str, float]) -> str:
        """Return how many of these parameters there are, in words."""
        number = len(self.of(ratios))
        if self.learned:
            return counted(number, "quantizer parameter[s]")
        return counted(number, "layer[s]")

    def most(self, limit: float) -> float:
        """Return the largest accepted ratio, given that of a layer's weights."""
        return self.times * limit


# Adam gives all parameters steps of the same size, so it moves small scales far in the first steps,
# and they come back as the rate falls. A limit that slows down most of them costs mAP, so theirs
# only stops those that would be lost (docs/qat.md).
KINDS = (
    Kind(learned=False, times=1.0, measure="their norm"),
    Kind(learned=True, times=20.0, measure="the scale or the width of the range"),
)


def measure_of(name: str) -> str:
    """Return what changes of a parameter are compared with, in words."""
    return next(kind.measure for kind in KINDS if kind.learned is is_learned(name))


def say_lower(factors: Mapping[str, float], ratios: Mapping[str, float], limit: float) -> None:
    """Log which rates are lower: a line for layers, and one for what quantizers learn.

    Args:
        factors: Of the lower rates, by parameter name.
        ratios: As from `dq.detector.step.update_ratios.update_ratios`.
        limit: Of the updates of a layer's weights.
    """
    for kind in KINDS:
        lowered = kind.of(factors)
        if lowered:
            shown = sorted(lowered.items(), key=lambda item: item[1])[:SHOWN]
            log.info(
                "a lower learning rate for %d of %s, because a step would move them by more than %g"
                " of %s: %s",
                len(lowered),
                kind.counted(ratios),
                kind.most(limit),
                kind.measure,
                ", ".join(f"{_shown(name)} {factor:.2g} times" for name, factor in shown),
            )


def announce(ratios: Mapping[str, float], optimizer: Optimizer, guards: Guards) -> None:
    """Warn of weights and of learned scales that one step moves too far; a line for each kind.

    Args:
        ratios: As from `dq.detector.step.update_ratios.update_ratios`.
        optimizer: Has the present rates.
        guards: Give the limit, and say whether to warn or to end the training.

    Raises:
        RuntimeError: Something moves too far, and ``guards.runaway`` is ``stop``.
    """
    rate = max(group["lr"] for group in optimizer.param_groups)
    for kind in KINDS:
        limit = kind.most(guards.max_update)
        above = {name: ratio for name, ratio in kind.of(ratios).items() if ratio > limit}
        if not above:
            continue
        name, most = max(above.items(), key=lambda item: item[1])
        text = (
            f"one step at a learning rate of {rate:g} moves {_what(kind, name)} by {most:.3g} times"
            f" {kind.measure} ({_source(kind, guards)}), and {len(above)} of"
            f" {kind.counted(ratios)} would go too far; {_mend(kind, rate, limit / most)},"
            " or name a quant.recipe, which limits the rates of such "
            f"{'parameters' if kind.learned else 'layers'}"
        )
        if guards.runaway == "stop":
            raise RuntimeError(text)
        log.warning("%s", text)


def _what(kind: Kind, name: str) -> str:
    return _shown(name) if kind.learned else f"the weights of {_shown(name)}"


def _source(kind: Kind, guards: Guards) -> str:
    """Return where the limit comes from."""
    if kind.times == 1:
        return f"guards.max_update is {guards.max_update:g}"
    return (
        f"the limit of these is {kind.times:g} times guards.max_update,"
        f" {kind.most(guards.max_update):g}"
    )


def _mend(kind: Kind, rate: float, share: float) -> str:
    if kind.learned:
        return f"lower the rate of what quantizers learn (quant.learned_lr={share:.1g})"
    return f"lower optimizer.lr (quant.training={{'optimizer.lr': {rate * share:.1g}}})"


def _shown(name: str) -> str:
    """Return the name of a layer, or of a quantizer and what it learns."""
    return name.removeprefix(f"{CONTAINER}.").removesuffix(".weight")
