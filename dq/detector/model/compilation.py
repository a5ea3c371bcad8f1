"""Run the training network under torch.compile if the config says so."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, nn

from dq.field_types import check_fields

log = logging.getLogger(__name__)
Network = Callable[[Tensor], Any]
BACKENDS = ("inductor", "aot_eager", "eager")
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compilation:
    """Arguments of torch.compile for the training network.

    Attributes:
        backend: Compiler that torch.compile uses, one of `BACKENDS`.
        mode: What it optimizes for, one of `MODES`.
        dynamic: Whether image sizes vary; None detects it, which costs one more compilation.

    Raises:
        ValueError: A value is invalid.
    """

    backend: str = field(default="inductor", metadata={"known": BACKENDS})
    mode: str = field(default="default", metadata={"known": MODES})
    dynamic: bool | None = None

    def __post_init__(self) -> None:
        for name, value, known in (
            ("backend", self.backend, BACKENDS),
            ("mode", self.mode, MODES),
            ("dynamic", self.dynamic, (None, True, False)),
        ):
            if value not in known:
                raise ValueError(
                    f"compile.{name} is {value!r}; use one of {', '.join(map(str, known))}"
                )


def compilation(config: Config, device: torch.device) -> Compilation | None:
    """Read the config's ``compile``: False, True or a dict of `Compilation`'s arguments.

    Args:
        config: Config of a training.
        device: Where it runs.

    Raises:
        ValueError: A setting is unknown or conflicts with another, or this machine has no compiler.
    """
    given = config.get("compile")
    if not isinstance(given, bool | Mapping | None):
        raise ValueError(f"compile is {given!r}; use True, False or dict(mode='default')")
    if not given:
        return None
    values = {} if given is True else dict(given)
    for key in values:
        if key not in Compilation.__dataclass_fields__:
            known = ", ".join(Compilation.__dataclass_fields__)
            raise ValueError(f"compile.{key} is not a setting; there are {known}")
    check_fields(values, Compilation, "compile")
    settings = Compilation(**values)
    compiler = os.environ.get("CXX", "g++")
    if settings.backend == "inductor" and device.type == "cpu" and shutil.which(compiler) is None:
        raise ValueError(
            f"compile needs a C++ compiler and {compiler} is not on PATH; install one, or set"
            " compile=False"
        )
    return settings


def compiled(network: Network, detector: nn.Module, settings: Compilation) -> Network:
    """Return the network, compiled in training mode and not compiled in evaluation mode.

    So validation gives exactly the numbers that it gives without the compiler. Norms that
    exchange statistics with other ranks are single operators in the graph. Each quantizer phase
    compiles once.

    Args:
        network: Images -> outputs.
        detector: Its mode (training or evaluation) decides.
        settings: Result of `compilation`.
    """

    def whole(img: Tensor) -> Any:
        return network(img)

    fast: Network = torch.compile(
        whole, backend=settings.backend, options=_options(settings), dynamic=settings.dynamic
    )

    def run(img: Tensor) -> Any:
        return fast(img) if detector.training else network(img)

    log.info("the network is compiled: %s", settings)
    return run


def _options(settings: Compilation) -> dict[str, Any] | None:
    if settings.backend != "inductor":
        return None  # torch refuses options for other backends.
    # Importing the compiler takes a second, so import it only if it is used.
    from dq.quant.kernels.compile_pass import inductor_options

    return inductor_options(settings.mode)
