"""Measure each pass over memory on this CPU: the measured half of the cost model.

    python -m benchmarks.kernels [--write docs/tables/kernels.md]

One tensor of 2 million values (8 x 64 x 64 x 64, float32), one thread; medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from dq.native import pointer
from dq.quant.kernels import native
from dq.quant.kernels.operators import learned_gradients


def passes() -> dict[str, tuple[float, Callable[[], object]]]:
    """Return for each pass, by name, the bytes it moves per value, and the pass itself."""
    x = torch.randn(8, 64, 64, 64)
    gradient, y = torch.randn_like(x), torch.empty_like(x)
    mask = torch.ones_like(x, dtype=torch.uint8)
    scale, zero_point = torch.tensor(0.02), torch.tensor(3, dtype=torch.int32)
    record = torch.tensor(torch.inf), torch.tensor(-torch.inf)

    def activation(rounds: bool, masks: bool, observes: bool) -> None:
        native.call(
            "dq_activation",
            *(pointer(x), pointer(y), pointer(mask) if masks else None, x.numel(), 0.0, 6.0),
            *(pointer(scale) if rounds else None, pointer(zero_point), 0, 255),
            *((pointer(record[0]), pointer(record[1])) if observes else (None, None)),
        )

    def masked() -> None:
        native.call("dq_masked", pointer(gradient), pointer(mask), pointer(y), x.numel())

    fake = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask
    return {
        "torch: copy": (8, lambda: y.copy_(x)),
        "torch: ReLU6 in place": (8, lambda: torch.nn.functional.relu6(y, inplace=True)),
        "torch: minimum and maximum": (4, lambda: torch.aminmax(x)),
        "torch: fake quantize, with mask": (9, lambda: fake(x, 0.02, 3, 0, 255)),
        "torch: gradient times mask": (9, lambda: gradient * mask),
        "ours: ReLU6 and record": (8, lambda: activation(False, False, True)),
        "ours: ReLU6 and fake quantize": (8, lambda: activation(True, False, False)),
        "ours: ReLU6, fake quantize and mask": (9, lambda: activation(True, True, False)),
        "ours: ReLU6, record, fake quantize and mask": (9, lambda: activation(True, True, True)),
        "ours: masked gradient": (9, masked),
        "ours: gradients of a learned scale": (
            12,
            lambda: learned_gradients(gradient, x, scale, zero_point, 0, 255, 0.0, 6.0, False, 1.0),
        ),
    }


def milliseconds(work: Callable[[], object], number: int = 21) -> float:
    """Return the median time of a call, in milliseconds."""
    taken = []
    for _ in range(number + 3):
        began = time.perf_counter()
        work()
        taken.append(1000 * (time.perf_counter() - began))
    return statistics.median(taken[3:])


def table(
    argv: Sequence[str] | None,
    title: str,
    library: Callable[[], object | None],
    rows: Callable[[], list[str]],
) -> int:
    """Measure with one thread, print the table, and write it to the file given by ``--write``.

    Args:
        argv: The arguments of the command.
        title: The docstring of the command's module.
        library: The kernels to measure; None if they are not available.
        rows: Measures and returns the lines of the Markdown table.
    """
    parser = argparse.ArgumentParser(description=title.splitlines()[0])
    parser.add_argument("--write", type=Path)
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    if library() is None:
        parser.error("there are no kernels; install g++")
    made = "\n".join(rows()) + "\n"
    if given.write:
        command = f"python -m benchmarks.{Path(sys.argv[0]).stem}"
        given.write.write_text(f"Made by `{command}`.\n\n{made}")
    print(made)
    return 0


def rows() -> list[str]:
    """Measure every pass."""
    return ["| pass | bytes a value | ms |", "|---|---|---|"] + [
        f"| {name} | {moved} | {milliseconds(work):.2f} |"
        for name, (moved, work) in passes().items()
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and write."""
    return table(argv, __doc__ or "", native.library, rows)


if __name__ == "__main__":
    raise SystemExit(main())
