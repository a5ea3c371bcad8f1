"""Quantize your own torch model: calibrate, train quantization-aware, export, run in ONNX Runtime.

A small network learns to tell in which direction stripes run. It needs no detector and no data:

    python examples/quantize_own_model.py

It prints the accuracy after each step, and compares the exported file with the model in torch. The
file is written to runs/examples. Quantization-aware training ends above float here, because it is
also more training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

import dq.quant as dq

CLASSES, SIZE = 8, 24
Batch = tuple[Tensor, Tensor]


def batches(number: int, *, seed: int) -> Iterator[Batch]:
    """Yield images (32, 1, SIZE, SIZE) of noisy stripes, and their directions (32,)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    for _ in range(number):
        direction = torch.randint(CLASSES, (32,), generator=generator)
        angle = (direction * math.pi / CLASSES)[:, None, None]
        phase = 6.3 * torch.rand(32, 1, 1, generator=generator)
        stripes = torch.sin(0.9 * (x * angle.cos() + y * angle.sin()) + phase)
        noise = 2.0 * torch.randn(32, SIZE, SIZE, generator=generator)
        yield (stripes + noise)[:, None], direction


def network() -> nn.Module:
    """Return convolutions with batch norms, a pooling layer and a linear layer."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        convolution = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False)
        return [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 8), *block(8, 16), *block(16, 16)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES))


def train(model: nn.Module, *, steps: int, rate: float, seed: int) -> None:
    """Train in float, or quantization-aware if the model is prepared."""
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for images, labels in batches(steps, seed=seed):
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        if isinstance(model, dq.QuantizedModel):
            dq.update_ranges(model)  # The only line that quantization adds to a training step.
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Return the share of new images whose direction is found."""
    right = [(model(x).argmax(1) == y).float().mean() for x, y in batches(20, seed=99)]
    return float(torch.stack(right).mean())


def main() -> None:
    """Go through all steps."""
    torch.manual_seed(0)
    model = network()
    train(model, steps=150, rate=3e-3, seed=1)
    print(f"float                     {accuracy(model):.3f}")

    # At 8 bits calibration alone would do; at 4 bits training makes a difference.
    last = dq.Rule(position="last", bits=8)
    recipe = replace(dq.preset("w4a4").for_target("onnxruntime"), rules=(last,))
    images = next(batches(1, seed=2))[0]
    quantized = dq.prepare(model, recipe, images)
    dq.calibrate(quantized, batches(8, seed=2))
    print(f"calibrated                {accuracy(quantized):.3f}")

    dq.set_phase(quantized, dq.Phase.TRAIN)
    train(quantized, steps=100, rate=1e-3, seed=3)
    dq.set_phase(quantized, dq.Phase.FROZEN)
    print(f"quantization-aware        {accuracy(quantized):.3f}")

    folder = Path("runs/examples")
    folder.mkdir(parents=True, exist_ok=True)
    file = dq.export_onnx(quantized, folder / "stripes.onnx", images)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        expected = quantized(images)
    difference = float((torch.from_numpy(found) - expected).abs().max())
    print(f"{file} in ONNX Runtime: scores differ by at most {difference:.2g}")
    same = torch.from_numpy(found).argmax(1) == expected.argmax(1)
    print(f"the same direction for {int(same.sum())} of {len(same)} images")
    assert int(same.sum()) >= 30, "the exported file computes something else"


if __name__ == "__main__":
    main()
