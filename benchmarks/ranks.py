"""Measure what ranks add to a quantized training: step time, collectives, merging ranges.

    python -m benchmarks.ranks [--ranks 1 2 4] [--net ssd_mobilenet] [--size 160] [--batch 2]
        [--steps 9] [--write docs/tables/ranks.md]

Each number of ranks is one torchrun of real gloo processes on the CPU, one computing thread each:
DDP, synchronized norms, and ranges merged once per step. torch's profiler
counts the collectives of a step; dq.dist counts those besides DDP's gradients and the norms'
moments. Then `merge_ranges_` alone is measured, over 10 to 1,000 quantizers. An all-reduce of a few
bytes and one of 16 MiB give latency and bandwidth, from which the cost on more ranks is computed.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

NUM_QUANTIZERS = (10, 100, 1000)
FAR = (64, 256, 1024)


def median_s(work: Callable[[], object], number: int) -> float:
    """Return the median time of ``number`` calls, in seconds, after two warm-up calls."""
    taken = []
    for _ in range(number + 2):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[2:])


def on_rank(given: argparse.Namespace) -> dict[str, Any]:
    """Measure on one rank; every rank must call it."""
    from benchmarks.nets import build
    from benchmarks.speed import batch_of, quantized
    from dq.detector.model.graph import parameters_outside
    from dq.detector.step.parallel_detector import parse_losses
    from dq.dist.exchange import collectives
    from dq.dist.exchange.data_parallel import wrap
    from dq.dist.norm.sync_batch_norm import SyncBatchNorm, convert_sync_batch_norm
    from dq.sync import merge_ranges_

    config, detector = build(given.net, given.size)
    detector = convert_sync_batch_norm(detector)
    data = batch_of(config, given)
    graph, _ = quantized("observing", detector, data["img"])
    for name in parameters_outside(detector, graph.graph):
        detector.get_parameter(name).requires_grad_(False)
    quantizers = list(graph.activations().values())
    model = wrap(detector, device=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss, _ = parse_losses(model(**data))
        loss.backward()
        optimizer.step()
        merge_ranges_(quantizers)

    whole = median_s(step, given.steps)
    before = collectives.collective_count()
    with torch.profiler.profile() as profile:
        step()
    ours = collectives.collective_count() - before
    kinds = Counter({e.key: e.count for e in profile.key_averages() if e.key.startswith("c10d::")})
    # Some are after an output that nothing reads.
    reached = {str(node.target) for node in graph.graph.nodes}
    norms = [
        m for n, m in detector.named_modules() if isinstance(m, SyncBatchNorm) and n in reached
    ]
    return {
        "ranks": collectives.world_size(),
        "step_s": whole,
        "quantizers": len(quantizers),
        "agree_s": median_s(lambda: merge_ranges_(quantizers), 30),
        "norms": len(norms),
        "kinds": dict(kinds),
        # Each synchronized norm issues one forward and one backward.
        "beyond": ours - 2 * len(norms) if collectives.world_size() > 1 else 0,
        "agree_bytes": 8 * len(quantizers),
        "gradient_bytes": 4 * sum(p.numel() for p in detector.parameters() if p.requires_grad),
        "norm_bytes": sum(8 * (4 * m.num_features + 1) for m in norms),
        "by_number": {n: _agreement(n) for n in NUM_QUANTIZERS},
        "latency_s": _all_reduce(2, 30),
        "large_s": _all_reduce(2**22, 5),
    }


def _agreement(number: int) -> float:
    from dq.quant.numerics.spec import QuantSpec
    from dq.quant.observers.min_max import MovingAverageObserver
    from dq.quant.quantizers.fake_quantize import ActivationQuantizer
    from dq.sync import merge_ranges_

    quantizers = [ActivationQuantizer(QuantSpec(), MovingAverageObserver()) for _ in range(number)]

    def work() -> None:
        for quantizer in quantizers:
            quantizer.observer.batch_min.fill_(-1.0)
            quantizer.observer.batch_max.fill_(1.0)
        merge_ranges_(quantizers)

    return median_s(work, 20)


def _all_reduce(numel: int, number: int) -> float:
    from dq.dist.exchange import collectives

    flat = torch.zeros(numel)
    return median_s(lambda: collectives.all_reduce_(flat), number)


def computed_merge_s(found: dict[str, Any], ranks: int) -> float:
    """Return the computed seconds to merge ranges on this number of ranks.

    Recursive doubling: log2(ranks) rounds, each with the latency of one message and the time of its
    bytes (Thakur, Rabenseifner and Gropp 2005, "Optimization of Collective Communication Operations
    in MPICH", section 4.3), with the time measured here for one round of two ranks.
    """
    rounds = math.log2(ranks)
    per_byte = (found["large_s"] - found["latency_s"]) / (4 * 2**22)
    return rounds * (found["latency_s"] + per_byte * found["agree_bytes"])


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    lines = [
        "| ranks | step, ms | merging ranges, ms | share | collectives beyond DDP and norms |"
        " bytes: ranges / norms / gradients |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['ranks']} | {1e3 * r['step_s']:.0f} | {1e3 * r['agree_s']:.2f}"
        f" | {100 * r['agree_s'] / r['step_s']:.2f} % | {r['beyond']}"
        f" | {r['agree_bytes']} / {r['norm_bytes']} / {r['gradient_bytes']} |"
        for r in results
    ]
    lines += [
        "",
        "| ranks | " + " | ".join(f"{n} quantizers, ms" for n in NUM_QUANTIZERS) + " |",
        "|---" * (1 + len(NUM_QUANTIZERS)) + "|",
    ]
    for r in results:
        cells = [f"{1e3 * r['by_number'][str(n)]:.2f}" for n in NUM_QUANTIZERS]
        lines.append(f"| {r['ranks']} | " + " | ".join(cells) + " |")
    two = [r for r in results if r["ranks"] == 2]
    if two:
        lines += ["", "| ranks, computed | merging ranges, ms |", "|---|---|"]
        lines += [f"| {n} | {1e3 * computed_merge_s(two[0], n):.2f} |" for n in FAR]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure every number of ranks and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--net", default="ssd_mobilenet")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    # Ranks with GPUs would need one each, and NCCL; this is about gloo.
    parser.set_defaults(device="cpu")
    given = parser.parse_args(argv)
    words = list(sys.argv[1:] if argv is None else argv)
    if given.result:
        _measure_here(given)
        return 0
    results = []
    for ranks in given.ranks:
        with tempfile.TemporaryDirectory() as folder:
            result = Path(folder) / "result.json"
            start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            start += ["--nproc-per-node", str(ranks), "-m", "benchmarks.ranks"]
            subprocess.run([*start, *words, "--result", str(result)], check=True)
            results.append(json.loads(result.read_text()))
            print(json.dumps(results[-1]), flush=True)
    made = table(results)
    if given.write:
        given.write.write_text(f"Made by `python -m benchmarks.ranks {' '.join(words)}`.\n\n{made}")
    print(made)
    return 0


def _measure_here(given: argparse.Namespace) -> None:
    from dq.dist.exchange import collectives
    from dq.dist.group.process_group import process_group
    from dq.dist.rendezvous.environment import read_environment

    torch.set_num_threads(1)
    with process_group(read_environment(), device=torch.device(given.device)):
        found = on_rank(given)
        if collectives.is_main_rank():
            given.result.write_text(json.dumps(found))


if __name__ == "__main__":
    sys.exit(main())
