"""Context managers that restore a model's modes, phases, modules and hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from dq.quant.quantizers.phase import Phase, Phased


@contextmanager
def restored_state(root: nn.Module, *, even_when_done: bool = True) -> Iterator[None]:
    """Restore the training flag and the phase of every module below ``root`` after the body.

    ``root.train()`` is not enough: some modules may have had another mode than the root.

    Args:
        root: The model, or a part of it.
        even_when_done: Restore after success too. Pass False if the body is meant to change modes
            or phases; then they are restored only if it raises.
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
    """Put every quantizer below ``root`` into this phase in the body, and restore it afterwards.

    Args:
        root: The model, or its quantizers.
        phase: In the body.
        training: Training flag of every module in the body; None does not change it.
    """
    with restored_state(root):
        for module in root.modules():
            if isinstance(module, Phased):
                module.phase = phase
            if training is not None:
                module.training = training
        yield


@contextmanager
def watching_inputs(
    watchers: Mapping[nn.Module, Callable[[nn.Module, tuple[Any, ...]], None]],
) -> Iterator[None]:
    """Call a module's watcher with the module and its inputs before each of its calls in the body.

    Args:
        watchers: By module.
    """
    with ExitStack() as hooks:
        for module, watch in watchers.items():
            hooks.callback(module.register_forward_pre_hook(watch).remove)
        yield


@contextmanager
def watching_outputs(
    modules: Mapping[str, nn.Module], watch: Callable[[str, tuple[Any, ...], Any], Any]
) -> Iterator[None]:
    """Call ``watch(name, inputs, output)`` after each call of these modules in the body.

    Args:
        modules: By name.
        watch: If it returns something other than None, that replaces the output.
    """

    def hook_of(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
        return lambda module, inputs, output: watch(name, inputs, output)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(hook_of(name)).remove)
        yield


@contextmanager
def undo_additions_on_error(root: nn.Module) -> Iterator[None]:
    """Remove every module and buffer that the body added to the model, if the body raises.

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
