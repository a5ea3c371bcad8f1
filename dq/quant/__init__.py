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
from dq.quant.ptq.settings import Mixed, Repair
from dq.quant.quantizers.phase import Phase
from dq.quant.recipes.presets import preset
from dq.quant.recipes.recipe import Recipe, Rule

__all__ = [
    "Mixed",
    "Phase",
    "QuantSpec",
    "QuantizedGraph",
    "QuantizedModel",
    "Recipe",
    "Repair",
    "Rule",
    "Sensitivity",
    "Site",
    "TraceError",
    "calibrate",
    "export_onnx",
    "prepare",
    "preset",
    "sensitivities",
    "set_phase",
    "update_ranges",
]
