"""Quantizers that learn: every optimizer skips their parameters outside of the phase TRAIN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dq.quant.quantizers.phase import Phase, Phased

# Code that sets a phase knows no optimizer, and torch's hooks for all optimizers know no model. So
# the hook finds the quantizers here.
_learners: WeakSet[Learner] = WeakSet()


class Learner(Phased):
    """A quantizer with parameters of its own, which change in the phase TRAIN only.

    In every other phase their gradients are removed before an optimizer's step. A gradient of zero
    is not enough, because weight decay and momentum would still change the parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        _learners.add(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state of a module that is loaded from a file, or copied."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        _learners.add(self)

    def sizes(self) -> dict[str, Tensor]:
        """Return what an update of each own parameter is compared with, of its shape.

        A scale is compared with itself.
        """
        return {
            name: parameter.detach().abs()
            for name, parameter in self.named_parameters(recurse=False)
        }


def _drop_gradients() -> None:
    for quantizer in _learners:
        if quantizer.phase is not Phase.TRAIN:
            for parameter in quantizer._parameters.values():
                if parameter is not None:
                    parameter.grad = None


def _skip_frozen(
    optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Remove the gradients of quantizers that do not learn now; a closure makes new ones."""
    _drop_gradients()

    def silent(argument: Any) -> Any:
        return _without_gradients(argument) if callable(argument) else argument

    # The optimizer itself is the first argument.
    return (*args[:1], *map(silent, args[1:])), {k: silent(v) for k, v in kwargs.items()}


def _without_gradients(closure: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> Any:
        loss = closure()
        _drop_gradients()
        return loss

    return run


register_optimizer_step_pre_hook(_skip_frozen)
