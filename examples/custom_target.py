"""A target engine of your own: where it needs quantizers, and in which integer formats.

Bit widths do not make a network fast: an engine computes an operation in integers only if
quantizers are where it expects them. This file describes an engine, registers it by name, and
prints where quantizers stand for it and for a general integer engine:

    python examples/custom_target.py

It also exports the network for the engine to runs/examples/own_engine.onnx.

In a config of the launcher: `custom_imports = dict(imports=["custom_target"])` and
`quant = dict(preset="own_engine")`, started where this file is, or with its folder in PYTHONPATH.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

import dq.quant as dq

ENGINE = dq.Target(
    name="own_engine",
    engine="Own Engine",
    source="section 4 of the engine's manual: which operations are fused, which integers it has",
    # Symmetric integers with scales that are powers of two: it shifts instead of multiplying.
    weight=dq.QuantSpec(bits=8, signed=True, symmetric=True, channel_axis=0, power_of_two=True),
    activation=dq.QuantSpec(bits=8, signed=True, symmetric=True, power_of_two=True),
    # What is not quantized after an operation runs in float on the host, so everything is.
    results=dq.Results.ALL,
    # ReLU and ReLU6 are part of the convolution before them; SiLU is a sigmoid and a product.
    fuses=frozenset({"clip"}),
    splits=frozenset({"silu"}),
    # Its sigmoid is a table with fixed results, so there is nothing to calibrate.
    fixed={"sigmoid": (0.0, 1.0)},
    observer="mse",
)
# At import, so that a config's custom_imports is enough. The preset of this name has its formats.
dq.register_target(ENGINE)


class Network(nn.Module):
    """A residual block with SiLU and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.silu = nn.SiLU()
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.relu = nn.ReLU()
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return a map (N, 4, H, W) for images (N, 3, H, W)."""
        x = self.silu(self.norm(self.stem(x)))
        result: Tensor = self.head(x + self.relu(self.body(x)))
        return result


def main() -> None:
    """Quantize for both engines, and export for one."""
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    places: dict[str, list[str]] = {}
    for name in ("int8", "own_engine"):
        torch.manual_seed(0)
        model = dq.prepare(Network().eval(), dq.preset(name), images[:1])
        dq.calibrate(model, images.split(4))
        places[name] = [site.name for site in model.graph.sites]
    print(f"{'quantizer':20}", *(f"{name:12}" for name in places))
    for site in dict.fromkeys(places["own_engine"] + places["int8"]):
        print(f"{site:20}", *(f"{'yes' if site in found else '-':12}" for found in places.values()))

    scales = [float(quantizer.scale) for quantizer in model.graph.activations().values()]
    print("scales of the activations:", *sorted(scales))
    assert all(scale == 2 ** round(torch.tensor(scale).log2().item()) for scale in scales)

    folder = Path("runs/examples")
    folder.mkdir(parents=True, exist_ok=True)
    file = dq.export_onnx(model, folder / "own_engine.onnx", images[:1])
    operators = [node.op_type for node in onnx.load(file).graph.node]
    print(f"{file}: {len(operators)} operators, {operators.count('QuantizeLinear')} QuantizeLinear")
    assert "Sigmoid" in operators


if __name__ == "__main__":
    main()
