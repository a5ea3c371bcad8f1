"""An observer's own `observe` sees every tensor, whichever observer it extends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import HistogramObserver
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.quantizers.fake_quantize import ActivationQuantizer
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.recipe import OBSERVERS


def kinds(base: type[Any]) -> list[type[Any]]:
    """Return a class of dq and all classes below it that watch."""
    below = [kind for child in base.__subclasses__() for kind in kinds(child)]
    own = base.__module__.startswith("dq.") and base.watches
    return [*([base] if own else []), *below]


KINDS = kinds(MinMaxObserver)


def test_every_kind_is_tried() -> None:
    named = {kind for kind in OBSERVERS.values() if kind.__module__.startswith("dq.")}
    assert named | {HistogramObserver} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("phase", [phase for phase in Phase if phase.observes(training=True)])
def test_own_observe_is_called(kind: type[Any], phase: Phase) -> None:
    seen: list[Tensor] = []

    class Own(kind):  # type: ignore[misc]
        def observe(self, x: Tensor) -> None:
            seen.append(x)

    observer = (
        Own(collects=phase is Phase.CALIBRATE) if issubclass(kind, HistogramObserver) else Own()
    )
    quantizer = ActivationQuantizer(QuantSpec(), observer)
    quantizer.phase = phase
    x = torch.linspace(-1, 1, 64).reshape(1, 4, 4, 4)
    quantizer.train()(x)
    assert len(seen) == 1
    assert not observer.records_extremes
    assert torch.equal(seen[0], x)
