"""The activation functions: how each is written in torch, and the properties of its values.

A function that a model computes in another way is recognised by its values, see
`dq.quant.graph.functions`. To add a function, add an entry to `FUNCTIONS`. The arithmetic of an
integer engine for it is an entry in `dq.quant.integer.engine.nodes`; without one it runs in float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

# Lower and upper end.
Bounds = tuple[float, float]
RELU: Bounds = (0.0, torch.inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationFunction:
    """A function of one tensor, element by element.

    Attributes:
        name: Its kind in graphs, targets and engines.
        compute: The function, with the default settings.
        modules: Modules that compute it.
        calls: Functions of torch that compute it.
        methods: Methods of a tensor that compute it.
        settings: Arguments after the first, and attributes of the modules, with their defaults.
        bounds: Bounds of its values, if they approach both; None if one end is open.
        clip: Returns, for the settings, the bounds of a function that only clips; None for other
            functions.
        scales: Whether ``f(s x) = s f(x)`` for every positive ``s``.
        is_one_operation: Whether it is one operation in every exported format, and one kernel in
            engines.
        is_recognised: Whether other code is recognised as this function by its values.
    """

    name: str
    compute: Callable[..., Tensor]
    modules: tuple[type[nn.Module], ...] = ()
    calls: tuple[Callable[..., Tensor], ...] = ()
    methods: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    bounds: Bounds | None = None
    clip: Callable[..., Bounds] | None = None
    scales: bool = False
    is_one_operation: bool = False
    is_recognised: bool = False


# In the order in which code is recognised.
FUNCTIONS = (
    ActivationFunction(
        name="sigmoid",
        compute=torch.sigmoid,
        modules=(nn.Sigmoid,),
        calls=(torch.sigmoid, F.sigmoid),
        methods=("sigmoid", "sigmoid_"),
        bounds=(0.0, 1.0),
        is_recognised=True,
    ),
    ActivationFunction(
        name="silu", compute=F.silu, modules=(nn.SiLU,), calls=(F.silu,), is_recognised=True
    ),
    ActivationFunction(
        name="hardswish",
        compute=F.hardswish,
        modules=(nn.Hardswish,),
        calls=(F.hardswish,),
        is_one_operation=True,
        is_recognised=True,
    ),
    ActivationFunction(
        name="hardsigmoid",
        compute=F.hardsigmoid,
        modules=(nn.Hardsigmoid,),
        calls=(F.hardsigmoid,),
        bounds=(0.0, 1.0),
        is_one_operation=True,
        is_recognised=True,
    ),
    ActivationFunction(
        name="mish",
        compute=F.mish,
        modules=(nn.Mish,),
        calls=(F.mish,),
        is_one_operation=True,
        is_recognised=True,
    ),
    ActivationFunction(
        name="gelu",
        compute=F.gelu,
        modules=(nn.GELU,),
        calls=(F.gelu,),
        settings={"approximate": "none"},
        is_one_operation=True,
        is_recognised=True,
    ),
    # Written as GELU with a setting.
    ActivationFunction(
        name="gelu_tanh", compute=partial(F.gelu, approximate="tanh"), is_recognised=True
    ),
    ActivationFunction(
        name="tanh",
        compute=torch.tanh,
        modules=(nn.Tanh,),
        calls=(torch.tanh, F.tanh),
        methods=("tanh", "tanh_"),
        bounds=(-1.0, 1.0),
        is_recognised=True,
    ),
    # Functions that are recognised by a rule for all settings.
    ActivationFunction(
        name="relu",
        compute=F.relu,
        modules=(nn.ReLU,),
        calls=(torch.relu, torch.relu_, F.relu),
        methods=("relu", "relu_"),
        clip=lambda: RELU,
        scales=True,
    ),
    ActivationFunction(
        name="relu6",
        compute=F.relu6,
        modules=(nn.ReLU6,),
        calls=(F.relu6,),
        clip=lambda: (0.0, 6.0),
    ),
    ActivationFunction(
        name="hardtanh",
        compute=F.hardtanh,
        modules=(nn.Hardtanh,),
        calls=(F.hardtanh,),
        settings={"min_val": -1.0, "max_val": 1.0},
        clip=lambda min_val, max_val: (float(min_val), float(max_val)),
    ),
    ActivationFunction(
        name="leaky_relu",
        compute=F.leaky_relu,
        modules=(nn.LeakyReLU,),
        calls=(F.leaky_relu,),
        settings={"negative_slope": 0.01},
        scales=True,
    ),
    ActivationFunction(
        name="prelu", compute=F.prelu, modules=(nn.PReLU,), calls=(F.prelu,), scales=True
    ),
    # Functions that keep the name of their operation.
    ActivationFunction(
        name="elu", compute=F.elu, modules=(nn.ELU,), calls=(F.elu,), settings={"alpha": 1.0}
    ),
    ActivationFunction(
        name="softplus",
        compute=F.softplus,
        modules=(nn.Softplus,),
        calls=(F.softplus,),
        settings={"beta": 1, "threshold": 20},
    ),
    # A part of GELU as exporters write it.
    ActivationFunction(name="erf", compute=torch.erf, calls=(torch.erf,), methods=("erf", "erf_")),
)

NAMED: Mapping[str, ActivationFunction] = {function.name: function for function in FUNCTIONS}
# By type of a module, function, or name of a method.
WRITTEN: Mapping[Any, ActivationFunction] = {
    written: function
    for function in FUNCTIONS
    for written in (*function.modules, *function.calls, *function.methods)
}
