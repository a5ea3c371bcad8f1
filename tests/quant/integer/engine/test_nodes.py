"""Which nodes the engine computes in integers, with their settings, however they are written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import fx, nn

from dq.quant.integer.engine.nodes import (
    clip_of,
    global_average,
    is_matrix_product,
    is_product,
    is_sum,
    is_window_average,
    resizing_of,
    softmax_dim,
)

INF = torch.inf


def node_of(what: Any, *args: Any, **kwargs: Any) -> tuple[fx.GraphModule, fx.Node]:
    """Return a network and its node that calls a function, a method or a module with `x`."""
    graph = fx.Graph()
    given = [graph.placeholder("x"), *(graph.placeholder("y") if a == "y" else a for a in args)]
    if isinstance(what, nn.Module):
        node = graph.call_module("called", tuple(given))
    elif isinstance(what, str):
        node = graph.call_method(what, tuple(given), kwargs)
    else:
        node = graph.call_function(what, tuple(given), kwargs)
    graph.output(node)
    return fx.GraphModule({"called": what} if isinstance(what, nn.Module) else {}, graph), node


@pytest.mark.parametrize(
    ("call", "bounds"),
    [
        (node_of(F.relu), (0.0, INF)),
        (node_of(nn.ReLU6()), (0.0, 6.0)),
        (node_of(nn.Hardtanh(-2, 3)), (-2.0, 3.0)),
        (node_of("clamp", 0, 6), (0.0, 6.0)),
        (node_of(torch.clamp, -1.5, max=2), (-1.5, 2.0)),
        (node_of("clamp", max=3), (-INF, 3.0)),
        (node_of("clamp", None, 3), (-INF, 3.0)),
        (node_of("clamp", 1), None),  # Exported as Max.
        (node_of("clamp", min=1), None),
        (node_of(torch.clamp_min, 2), (2.0, INF)),
        (node_of("clamp_min", 2), (2.0, INF)),
        (node_of("clamp", "y", 3), None),
        (node_of("clamp", 3, "y"), None),
        (node_of(torch.sigmoid), None),
        (node_of(nn.Identity()), None),
    ],
)
def test_bounds_of_what_clips(
    call: tuple[fx.GraphModule, fx.Node], bounds: tuple[float, float] | None
) -> None:
    assert clip_of(*call) == bounds


@pytest.mark.parametrize(
    ("call", "keeps", "windows"),
    [
        (node_of(nn.AdaptiveAvgPool2d(1)), True, False),
        (node_of(F.adaptive_avg_pool2d, (1, 1)), True, False),
        (node_of(F.adaptive_avg_pool2d, (2, 1)), None, True),
        (node_of("mean", (2, 3)), False, False),
        (node_of("mean", (2, 3), True), True, False),
        (node_of(torch.mean, dim=[-2, -1], keepdim=True), True, False),
        (node_of("mean", 1), None, False),
        (node_of(F.avg_pool2d, 2), None, True),
        (node_of(F.avg_pool2d, 3, 1, 1), None, True),
        (node_of(F.avg_pool2d, 3, 2, 1, True), None, False),
        (node_of(F.avg_pool2d, 3, 2, 1, True, False), None, True),
        (node_of(F.avg_pool2d, 3, 2, 0, True), None, True),
        (node_of(nn.AvgPool2d(3, 2, padding=1, ceil_mode=True)), None, False),
        (node_of(nn.AvgPool2d(3, 2, padding=1)), None, True),
        (node_of(F.relu), None, False),
    ],
)
def test_averages_over_the_image_and_over_windows(
    call: tuple[fx.GraphModule, fx.Node], keeps: bool | None, windows: bool
) -> None:
    assert global_average(*call) is keeps
    assert is_window_average(*call) is windows


@pytest.mark.parametrize(
    ("call", "dim"),
    [
        (node_of("softmax", 1), 1),
        (node_of(torch.softmax, dim=-1), -1),
        (node_of(nn.Softmax(2)), 2),
        (node_of(nn.Softmax()), None),
        (node_of(torch.sigmoid), None),
    ],
)
def test_the_dimension_of_a_softmax(call: tuple[fx.GraphModule, fx.Node], dim: int | None) -> None:
    assert softmax_dim(*call) == dim


@pytest.mark.parametrize(
    ("call", "factors", "size", "corners"),
    [
        (node_of(F.interpolate, scale_factor=2, mode="bilinear"), (2.0, 2.0), None, False),
        (
            node_of(F.interpolate, scale_factor=[2, 1.5], mode="bilinear", align_corners=True),
            (2.0, 1.5),
            None,
            True,
        ),
        (node_of(F.interpolate, (4, 5), None, "bilinear"), None, (4, 5), False),
        (node_of(nn.Upsample(scale_factor=3, mode="bilinear")), (3.0, 3.0), None, False),
    ],
)
def test_settings_of_an_interpolation(
    call: tuple[fx.GraphModule, fx.Node], factors: Any, size: Any, corners: bool
) -> None:
    found = resizing_of(*call)
    assert found is not None
    assert (found[0].factors, found[0].align_corners, found[1]) == (factors, corners, size)


@pytest.mark.parametrize(
    "call",
    [
        node_of(F.interpolate, scale_factor=2),
        node_of(F.interpolate, scale_factor=2, mode="bicubic"),
        node_of(F.interpolate, scale_factor=2, mode="bilinear", antialias=True),
        node_of(F.interpolate, scale_factor=2.5, mode="bilinear", recompute_scale_factor=True),
        node_of(F.interpolate, scale_factor=(2,), mode="bilinear"),
        node_of(F.interpolate, scale_factor="y", mode="bilinear"),
        node_of(F.relu),
    ],
)
def test_interpolations_that_the_engine_computes_in_another_way(
    call: tuple[fx.GraphModule, fx.Node],
) -> None:
    assert resizing_of(*call) is None


def test_sums_and_products_are_those_of_two_tensors() -> None:
    kinds = (is_sum, is_product, is_matrix_product)
    for call, wanted in (
        (node_of(torch.add, "y"), (True, False, False)),
        (node_of(torch.mul, "y"), (False, True, False)),
        (node_of(torch.matmul, "y"), (False, False, True)),
        (node_of(torch.add, 1.0), (False, False, False)),
        (node_of(torch.mul, 2.0), (False, False, False)),
        (node_of(torch.sub, "y"), (False, False, False)),
    ):
        assert tuple(kind(*call) for kind in kinds) == wanted
