"""Build the operator tables of torch's exporter at import, which saves a second in each export."""

from __future__ import annotations

import logging
import warnings

import torch
from torch import nn


def export_something() -> None:
    """Export a net of one layer without output, and discard the result."""
    torch.set_num_threads(1)
    logging.getLogger("torch.onnx").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval(),
            (torch.zeros(2, 3, 8, 8),),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            verbose=False,
        )


export_something()
