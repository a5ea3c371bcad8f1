"""An observer of your own: a range of so many standard deviations, registered by name.

An observer watches the values of a tensor and gives the range to quantize. This one keeps counts of
all values in fixed bins, as its base class does, and leaves out what is further than `WIDTH`
standard deviations from the mean. It is compared with the package's observers on a network whose
activations have rare large values:

    python examples/custom_observer.py

In a config of the launcher: `custom_imports = dict(imports=["custom_observer"])` and
`quant = dict(observer="deviations")`, started where this file is, or with its folder in PYTHONPATH.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

import dq.quant as dq

WIDTH = 6.0


class DeviationsObserver(dq.HistogramObserver):
    """The mean and `WIDTH` standard deviations to both sides, within the values seen."""

    def search(self, counts: Tensor, lowest: Tensor, highest: Tensor) -> tuple[Tensor, Tensor]:
        """Return the range, two scalars.

        Args:
            counts: How many values are in each bin of `dq.bin_edges`.
            lowest: The smallest value.
            highest: The largest value.
        """
        edges = dq.bin_edges(counts.device)
        middles = (edges[:-1] + edges[1:]) / 2
        share = counts / counts.sum().clamp(min=1)
        mean = (share * middles).sum()
        deviation = (share * (middles - mean).square()).sum().sqrt()
        low, high = mean - WIDTH * deviation, mean + WIDTH * deviation
        return low.clamp(lowest, highest), high.clamp(lowest, highest)


# At import, so that a config's custom_imports is enough. It is tried on a few values here.
dq.register_observer("deviations", DeviationsObserver)


def network() -> nn.Module:
    """Return a small network with random weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)),
    ).eval()


def images(number: int, *, seed: int) -> Tensor:
    """Return images (number, 3, 16, 16); one value in two thousand is thirty times as large."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(number, 3, 16, 16, generator=generator)
    rare = torch.rand(values.shape, generator=generator) < 1 / 2000
    return torch.where(rare, 30 * values, values)


@torch.no_grad()
def main() -> None:
    """Print the first range and the error of the outputs for each observer."""
    test = images(64, seed=2)
    expected = network()(test)
    print("observer      range of the images     relative error of the outputs")
    for name in ("min_max", "percentile", "mse", "deviations"):
        recipe = replace(dq.preset("w4a4"), observer=name, weight=dq.preset("int8").weight)
        model = dq.prepare(network(), recipe, test[:1])
        dq.calibrate(model, images(256, seed=1).split(32))
        observer = model.graph.activations()["input_1/out"].observer
        low, high = float(observer.range_min), float(observer.range_max)
        error = float((model(test) - expected).norm() / expected.norm())
        print(f"{name:12}  {low:7.2f} to {high:6.2f}       {error:.3f}")
        if name == "deviations":
            assert -30 < low < 0 < high < 30, "rare values have widened the range"


if __name__ == "__main__":
    main()
