"""Modes, phases and parts of a model that are put back, whatever happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from dq.quant.quantizers.phase import Phase, Phased


@contextmanager
def as_it_was(root: nn.Module, *, even_when_done: bool = True) -> Iterator[None]:
    """Give every module below ``root`` its own training flag and phase back after the body.

    ``root.train()`` would not do: some modules may have been in another mode than the whole.

    Args:
        root: The model, or a part of it.
        even_when_done: Put back after success too; False only when the body raises, for a body
            whose purpose it is to change modes or phases.
    """
    put_back = _recorded(root)
    try:
        yield
    except BaseException:
        put_back()
        raise
    if even_when_done:
        put_back()


@contextmanager
def in_phase(root: nn.Module, phase: Phase, *, training: bool | None = None) -> Iterator[None]:
    """Let every quantizer below ``root`` be in this phase in the body, and as it was afterwards.

    Args:
        root: The model, or its quantizers.
        phase: For the body.
        training: Mode of every module in the body; None leaves modes alone.
    """
    with as_it_was(root):
        for module in root.modules():
            if isinstance(module, Phased):
                module.phase = phase
            if training is not None:
                module.training = training
        yield


@contextmanager
def whole_or_not_at_all(root: nn.Module) -> Iterator[None]:
    """Take every module and buffer that was added to the model away when the body raises.

    Args:
        root: The model.
    """
    before = [(m, dict(m._modules), dict(m._buffers)) for m in root.modules()]
    try:
        yield
    except BaseException:
        for module, children, buffers in before:
            module._modules.clear()
            module._modules.update(children)
            for name in set(module._buffers) - set(buffers):
                delattr(module, name)
        raise


def _recorded(root: nn.Module) -> Callable[[], None]:
    modules = list(root.modules())
    modes = [module.training for module in modules]
    phases = [(module, module.phase) for module in modules if isinstance(module, Phased)]

    def put_back() -> None:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode
        for quantizer, phase in phases:
            quantizer.phase = phase

    return put_back
