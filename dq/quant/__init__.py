"""Quantization-aware training and post-training quantization of any torch model, on one process.

    import dq.quant as dq

    model = dq.prepare(model, dq.preset("int8"), example)
    dq.calibrate(model, batches)
    dq.set_phase(model, dq.Phase.TRAIN)
    model.train()
    for x, y in loader:
        loss(model(x), y).backward(); optimizer.step(); optimizer.zero_grad()
        dq.update_ranges(model)
    dq.set_phase(model, dq.Phase.FROZEN)
    dq.export_onnx(model.eval(), "model.onnx", example)

Plain torch and torch.fx, no ranks, no detector library. `dq.sync` brings it to several ranks.
"""

from __future__ import annotations

from dq.quant.analysis.sensitivity import Sensitivity, sensitivities
from dq.quant.graph.quantized_graph import QuantizedGraph, Site
from dq.quant.graph.trace import TraceError
from dq.quant.model.quantized_model import QuantizedModel
from dq.quant.model.steps import calibrate, export_onnx, prepare, set_phase, update_ranges
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.histogram import HistogramObserver, bin_edges
from dq.quant.observers.min_max import MinMaxObserver, MovingAverageObserver
from dq.quant.ptq.settings import Mixed, Repair
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule
from dq.quant.recipes.registration import register_observer, register_target
from dq.quant.targets.target import Results, Sums, Target

__all__ = [
    "HistogramObserver",
    "MinMaxObserver",
    "Mixed",
    "MovingAverageObserver",
    "Phase",
    "QuantSpec",
    "QuantizedGraph",
    "QuantizedModel",
    "Recipe",
    "Repair",
    "Results",
    "Rule",
    "Sensitivity",
    "Site",
    "Sums",
    "Target",
    "TraceError",
    "bin_edges",
    "calibrate",
    "export_onnx",
    "prepare",
    "preset",
    "register_observer",
    "register_target",
    "sensitivities",
    "set_phase",
    "update_ranges",
]
