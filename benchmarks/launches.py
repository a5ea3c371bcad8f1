"""Count the operators of a training step, float and QAT: on a GPU each is at least one launch.

    python -m benchmarks.launches [--nets ssd_mobilenet ...] [--sides float observing frozen lsq]
        [--size 256] [--batch 2] [--device cpu] [--out FILE.json] [--write FILE.md]

It counts the operators that torch dispatches in forward pass, backward pass, optimizer and range
update, without views and empty tensors, which launch nothing. On a CPU each of our sides is counted
with our kernels for a GPU, on the GPU of `tests.devices.pretended_gpu` that computes on the CPU,
and with torch's operators alone; the optimizer updates all parameters together, as on a GPU. On a
GPU the profiler also counts the launched kernels, and how often the host waits for the device.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import peers, speed
from benchmarks.nets import NETS, build
from dq.quant.graph.quantized_graph import CONTAINER
from dq.quant.numerics.affine import range_over, scale_and_zero_point
from dq.quant.numerics.spec import QuantSpec
from dq.quant.quantizers import learned_step
from dq.quant.targets.registry import TARGETS
from tests.devices.pretended_gpu import NO_LAUNCH, pretended_gpu

FLOAT = ("float", "float_frozen")


class Counting(TorchDispatchMode):
    """Count the operators that are called within the context, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Count, and compute."""
        if not func.is_view and not func.overloadpacket.__name__.startswith(NO_LAUNCH):
            self.calls[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def measure(net: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Return one row for each side of a net, and on a CPU another one with our kernels."""
    rows = []
    for name in given.sides:
        try:
            rows.append(_operators(net, name, given))
        except Exception as error:  # A library that cannot do this net is part of the result.
            if name not in peers.PEERS:
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            rows.append({"net": net, "side": name, "fails": reason})
            continue
        if given.device == "cpu" and name not in peers.PEERS:
            found = _with_kernels(net, name, given)
            if name in FLOAT:
                rows[-1]["waits"] = found["waits"]
            else:
                rows.append(found)
    return rows


def _operators(net: str, name: str, given: argparse.Namespace) -> dict[str, Any]:
    work = speed.without_kernels(_step(net, name, given))
    work()
    work()
    with Counting() as counting:
        work()
    row = _row(net, name, counting.calls)
    return row if given.device == "cpu" else row | _profiled(work)


def _with_kernels(net: str, name: str, given: argparse.Namespace) -> dict[str, Any]:
    # The search for the first scales takes minutes here and is not part of a step.
    from_range = mock.patch.object(learned_step, "least_squares_scale", _scale_of_range)
    with pretended_gpu(kernels=True) as gpu, from_range:
        work = _step(net, name, argparse.Namespace(**{**vars(given), "device": "cuda"}))
        work()
        with gpu.watched() as step:
            work()
    row = _row(net, f"{name}, our kernels", step.launches)
    return row | {"waits": len(step.reads)}


def _scale_of_range(weight: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    return scale_and_zero_point(*range_over(weight, spec.channel_axis), spec)


def _step(net: str, name: str, given: argparse.Namespace) -> speed.Work:
    config, detector = build(net, given.size)
    work, _ = speed.side(name, detector, speed.batch_of(config, given), given)

    def together() -> None:
        # As the default is on a GPU.
        with mock.patch("torch.optim.sgd._default_to_fused_or_foreach", return_value=(False, True)):
            work()

    return together


def _row(net: str, name: str, calls: Counter[str]) -> dict[str, Any]:
    most = dict(calls.most_common(12))
    return {"net": net, "side": name, "operators": calls.total(), "most called": most}


def _profiled(work: speed.Work) -> dict[str, int]:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    names = Counter(event.name for event in profiler.events())
    return {
        "kernels": sum(
            n for name, n in names.items() if name.startswith(("cudaLaunch", "cuLaunch"))
        ),
        "synchronizations": names["cudaStreamSynchronize"] + names["cudaDeviceSynchronize"] - 1,
    }


def num_quantizers(net: str, size: int) -> tuple[int, int]:
    """Return the numbers of quantized activations and weights of a net."""
    from dq.detector.model.graph import quantize_detector
    from dq.quant.recipes.recipe import Recipe

    _, detector = build(net, size)
    graph = quantize_detector(detector, Recipe())
    assert hasattr(detector, CONTAINER)
    return len(graph.activations()), sum(1 for _ in graph.layers())


def table(rows: Sequence[dict[str, Any]], counts: dict[str, tuple[int, int]]) -> str:
    """Return the rows as Markdown, with the operators that QAT adds per quantizer."""
    lines = [
        "| net | side | operators | in addition to float, per quantized tensor | kernels | waits |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        if "fails" in row:
            lines.append(f"| {row['net']} | {row['side']} | {row['fails']} | | | |")
            continue
        base = next(r for r in rows if r["net"] == row["net"] and r["side"] == "float")
        more = (row["operators"] - base["operators"]) / sum(counts[row["net"]])
        lines.append(
            f"| {row['net']} | {row['side']} | {row['operators']} | {more:.1f}"
            f" | {row.get('kernels', '')}"
            f" | {row.get('synchronizations', row.get('waits', ''))} |"
        )
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Count and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["ssd_mobilenet"])
    parser.add_argument("--sides", nargs="+", default=["float", "observing", "frozen", "lsq"])
    parser.add_argument("--target", choices=TARGETS, default="int8")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--write", type=Path, help="the Markdown file")
    given = parser.parse_args(argv)
    if given.out and given.out == given.write:
        parser.error(f"--out and --write are both {given.out}; give two files")
    given.compile = given.amp = given.channels_last = False
    warnings.filterwarnings("ignore")
    rows = [row for net in given.nets for row in measure(net, given)]
    made = table(rows, {net: num_quantizers(net, given.size) for net in given.nets})
    if given.out:
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
    if given.write:
        line = "python -m benchmarks.launches " + " ".join(argv or sys.argv[1:])
        given.write.write_text(f"Made by `{line}`.\n\n{made}")
    print(made)
    return 0


if __name__ == "__main__":
    sys.exit(main())
