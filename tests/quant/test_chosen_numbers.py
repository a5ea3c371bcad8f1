"""Numbers that were chosen: other ones give other ranges, other weights and so other results.

The same model and data give the same checkpoint from one version to the next. Who changes a number
here changes the results of all users and says so in the change log.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from types import ModuleType
from typing import Any

import pytest
import torch

from dq.quant.graph import comparison, functions, prepare, quantized_graph, trace_with_fallback
from dq.quant.graph.fused import weights
from dq.quant.graph.per_channel import relu6_limits
from dq.quant.integer import bias_overflow, convert
from dq.quant.integer.engine import layer_calls
from dq.quant.numerics import affine, shrunk_range, spec
from dq.quant.observers import histogram, min_max, range_search
from dq.quant.ptq import (
    adaround,
    bias_correction,
    calibration,
    channel_effects,
    channel_scales,
    equalization,
    repairs,
    settings,
    weight_clipping,
    widths,
)
from dq.quant.ptq.reconstruction import blocks, learning, parameters
from dq.quant.quantizers import (
    batch_norm_fold,
    factory,
    half_precision,
    learned_step,
    pact,
    restore,
)

NUMBERS: dict[ModuleType, dict[str, Any]] = {
    spec: {"MIN_BITS": 2, "MAX_BITS": 16},
    affine: {"SMALLEST_SCALE": 2.0**-120},
    histogram: {
        "MANTISSA_BITS": 7,
        "FIRST_OCTAVE": -24,
        "NUM_OCTAVES": 48,
        "NUM_MAGNITUDES": 6144,
        "NUM_BINS": 12288,
        "FIRST_MAGNITUDE": 13184,
        "DROPPED_BITS": 16,
    },
    range_search: {"ENTROPY_BINS": 2048, "NARROW": 1e-3, "CHEAP": 0.1, "LARGEST_WEIGHT": 1048576},
    batch_norm_fold: {"SMALLEST_FACTOR": 1e-12},
    half_precision: {"SIGNIFICANDS": {torch.float16: 11, torch.bfloat16: 8}},
    weights: {"MOST_BYTES": 26214400, "MOST_TABLES": 256},
    functions: {"_LONGEST": 12, "_SHAPE": (1, 4, 3, 5)},
    trace_with_fallback: {"MOST_ATTEMPTS": 60},
    comparison: {"TOLERANCE": 1e-3},
    relu6_limits: {"LIMIT": 6.0},
    calibration: {"EFFECT_IMAGES": 8, "BOXES_AT_ONCE": 100},
    channel_effects: {"AT_ONCE": 2},
    channel_scales: {"IMAGES": 8, "LEAST_SHARE": 0.1, "_SILU_IS_ZERO": -8.0},
    # Nagel et al. 2020, equation 23, and the schedule of the authors' implementation.
    adaround: {
        "STRETCH_LOW": -0.1,
        "STRETCH_HIGH": 1.1,
        "WARM_UP": 0.2,
        "SHARPNESS": (20.0, 2.0),
        "MAX_PATCH": 8192,
        "POSITIONS": 2048,
    },
    bias_correction: {"PASSES": 2, "IMAGES": 32},
    equalization: {"LARGEST_FACTOR": 4096.0, "_FLOATS": 1e-12},
    repairs: {"CHECK_IMAGES": 16, "PART_IMAGES": 16},
    weight_clipping: {"REQUIRED_GAIN": 1e-6},
    widths: {"WIDE_BITS": 12, "HEADROOM": 1.5},
    blocks: {"FEWEST": 3, "MOST": 8},
    parameters: {"WEIGHT_RATE": 0.03, "BIAS_RATE": 0.01, "SCALE_RATE": 0.01},
    learning: {
        "AT_ONCE": 4,
        "BOXES_AT_ONCE": 100,
        "EFFECT_IMAGES": 8,
        "EFFECTS_AT_ONCE": 2,
        "EFFECT_CALLS": 8,
        "KEPT_ROUNDED": 0.5,
    },
    bias_overflow: {"LARGEST_BIAS": 1073741824.0},
    layer_calls: {"_LEAST_WEIGHT_BITS": 5},
}
# First value, last value and number of those that are tried.
TRIED: dict[str, tuple[Any, tuple[float, float, int]]] = {
    "MSE": (range_search.SHARES, (1.0, 0.5 ** (39 / 6), 40)),
    "fine MSE": (range_search.FINE, (0.9, 1.1, 21)),
    "clipped weights": (weight_clipping.SHARES, (1.0, 0.2, 41)),
    "scaled channels": (channel_scales._SHARES.tolist(), (0.01, 0.95, 95)),
    "functions": (functions._PROBE.tolist(), (-8.0, 8.0, 60)),
}
DEFAULTS: dict[Callable[..., Any], dict[str, Any]] = {
    shrunk_range.best_shrunk_range: {"required_gain": 0.0},
    min_max.MinMaxObserver: {"channel_axis": None, "num_channels": 1},
    min_max.MovingAverageObserver: {"momentum": 0.01, "channel_axis": None, "num_channels": 1},
    histogram.HistogramObserver: {"momentum": 0.01, "spec": None, "collects": True},
    histogram.PercentileObserver: {"percentile": 99.99},
    factory.regroup_: {"lr_factor": 1.0},
    learned_step.learned_fake_quantize: {"factor": 1.0},
    learned_step.least_squares_scale: {"num_candidates": 40},
    learned_step.LsqActivationQuantizer: {"learn_offset": False},
    learned_step.LsqWeightQuantizer: {"num_channels": 1},
    pact.PactActivationQuantizer.clip_and_fake_quantize: {"clip": (-torch.inf, torch.inf)},
    restore.restored_state: {"even_when_done": True},
    prepare.prepare: {"examples": ()},
    adaround.adaround_: {
        "plain_batches": None,
        "steps": 200,
        "learning_rate": 0.01,
        "strength": 1.0,
    },
    adaround.polish: {"sweeps": 20},
    equalization.equalize_: {"rounds": 40, "tolerance": 0.001},
    blocks.blocks_of: {"fewest": 3, "most": 8},
    widths.set_bits_: {"bits": 16},
    convert.integer_network: {"empty": False},
}


@pytest.mark.parametrize("module", NUMBERS, ids=lambda module: module.__name__)
def test_a_number_stays(module: ModuleType) -> None:
    assert {name: getattr(module, name) for name in NUMBERS[module]} == NUMBERS[module]


@pytest.mark.parametrize("what", TRIED)
def test_what_a_search_tries_stays(what: str) -> None:
    values, (first, last, number) = TRIED[what]
    assert (values[0], values[-1]) == pytest.approx((first, last))
    assert len(values) == number


@pytest.mark.parametrize("function", DEFAULTS, ids=lambda function: function.__qualname__)
def test_a_default_stays(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    given = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert {name: given[name] for name in DEFAULTS[function]} == DEFAULTS[function]


def test_defaults_of_the_repairs_stay() -> None:
    assert asdict(settings.Mixed()) == {"max_raised": 5, "target_sqnr": None, "images": 8}
    chosen = asdict(settings.Repair())
    numbers = {name: value for name, value in chosen.items() if isinstance(value, int)}
    assert numbers == {
        "images": 64,
        "rounding_steps": 200,
        "most_scaled": 4,
        "reconstruction_steps": 200,
    }
    step = settings.RepairStep()
    assert [step.changes_ranges, step.in_parts, step.frees_clips] == [False] * 3
    assert step.includes == frozenset()
    assert quantized_graph.Site(name="a", kind="weight", module="a").call == 0
