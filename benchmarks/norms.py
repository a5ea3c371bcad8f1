"""Measure a synchronized norm on this CPU without collectives: our kernels, operators, torch.

    python -m benchmarks.norms [--write docs/tables/norms.md]

Forward and backward of one layer, float32, one thread, medians; for comparison torch's own batch
norm, which synchronizes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels import milliseconds, table
from dq.dist.norm import native_passes as native_batch_norm
from dq.dist.norm import torch_passes as torch_batch_norm

SHAPES = ((4, 64, 64, 64), (4, 32, 128, 128), (2, 96, 40, 40), (2, 256, 10, 10))
LAYOUTS = {"as it is": torch.contiguous_format, "channels last": torch.channels_last}
EPS = 1e-5


def over_ranks(passes: Any, x: Tensor, gradient: Tensor, weight: Tensor) -> Callable[[], object]:
    """Return the four passes of a norm; this rank's moments stand for those of all ranks."""

    def work() -> object:
        own = passes.own_moments(x).unsqueeze(0)
        _, mean, variance, count = passes.normalize(x, own, weight, weight, EPS)
        sums, inverse = passes.own_sums(gradient, x, mean), (variance + EPS).rsqrt()
        return passes.input_gradient(gradient, x, weight, mean, inverse, count, sums)

    return work


def of_torch(x: Tensor, gradient: Tensor, weight: Tensor) -> Callable[[], object]:
    """Return forward and backward of torch's batch norm."""
    mean, variance = torch.zeros_like(weight), torch.ones_like(weight)

    def work() -> object:
        _, *saved = torch.native_batch_norm(x, weight, weight, mean, variance, True, 0.1, EPS)
        return torch.ops.aten.native_batch_norm_backward(
            gradient, x, weight, mean, variance, *saved, True, EPS, [True] * 3
        )

    return work


def rows() -> list[str]:
    """Measure every shape and layout."""
    lines = [
        "| input | layout | kernels, ms | operators, ms | torch, ms |",
        "|---|---|---|---|---|",
    ]
    for shape in SHAPES:
        for name, layout in LAYOUTS.items():
            x, gradient = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(2))
            weight = torch.randn(shape[1])
            sides = [
                over_ranks(p, x, gradient, weight) for p in (native_batch_norm, torch_batch_norm)
            ]
            cells = [f"{milliseconds(w):.2f}" for w in (*sides, of_torch(x, gradient, weight))]
            lines.append(f"| {'x'.join(map(str, shape))} | {name} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    return table(argv, __doc__ or "", native_batch_norm.library, rows)


if __name__ == "__main__":
    raise SystemExit(main())
