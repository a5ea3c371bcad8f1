"""Time exported int8 detectors in engines, and compare with float and with other quantizers.

    python -m benchmarks.engines [--nets yolox_nano ssd_mobilenet] [--engines onnxruntime] \
        [--nncf-python ENV/bin/python] [--work-dir DIR] [--write FILE.md]

All files of a net run in turn in all engines, in one process. They are prepared once: a second call
with the same --work-dir only times them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks.engines.files import FLOAT, OURS, PLAIN, Place, prepare
from benchmarks.engines.nets import NETS
from benchmarks.engines.table import Cell, Row, table
from dq.engines import ENGINES, is_installed
from dq.quant.latency.engine import Network
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.paired import interleaved, ratio, spread
from dq.quant.latency.terms import example_inputs
from dq.quant.recipes.presets import PRESETS

LIMIT_S = 120.0


def rows_of(
    net: str, size: tuple[int, int], place: Place, *, threads: int, rounds: int
) -> list[Row]:
    """Return a row for each engine, all of them timed in turn."""
    prepare(NETS[net][0], size, place)
    inputs = example_inputs(onnx.load(place.file(FLOAT)))
    networks = {
        (name, maker): opened(name, place.file(maker, name), threads)
        for name in place.targets
        for maker in place.makers
    }
    runs = [lambda network=network: network.compute(inputs) for network in networks.values()]
    ms = dict(zip(networks, interleaved(runs, rounds=rounds, limit_s=LIMIT_S), strict=True))

    def cell(name: str, maker: str) -> Cell:
        network = networks[name, maker]
        return Cell(
            times_as_fast=ratio(ms[name, FLOAT], ms[name, maker]),
            num_integer=network.num_integer,
            num_layers=network.num_integer + network.num_float,
            against_ours=ratio(ms[name, OURS], ms[name, maker]),
        )

    return [
        Row(
            net=net,
            size=size,
            engine=str(timed_engine(name)),
            ms_float=spread(ms[name, FLOAT]).median,
            cells={maker: cell(name, maker) for maker in place.makers if maker != FLOAT},
        )
        for name in place.targets
    ]


def opened(name: str, path: Path, threads: int) -> Network:
    """Return a file in an engine."""
    if path.suffix == ".xml":
        from dq.quant.latency.openvino import OpenVinoNetwork

        return OpenVinoNetwork(str(path), threads=threads)
    return timed_engine(name).open(onnx.load(path), threads=threads)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = [name for name in ENGINES if is_installed(name)]
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=list(NETS))
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=there)
    parser.add_argument("--rounds", type=int, default=15, help="maximum; fewer for large nets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--target", choices=tuple(PRESETS), help="our preset (default: the preset of each engine)"
    )
    parser.add_argument("--size", type=int, nargs=2, help="instead of the real height and width")
    parser.add_argument("--nncf-python", type=Path, help="Python of an environment with NNCF")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/engines"))
    parser.add_argument("--fresh", action="store_true", help="export our files again")
    parser.add_argument("--write", type=Path, help="also write the table into this file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Time the nets and print the table, after every net."""
    arguments = parsed(argv)
    if arguments.nncf_python is None:
        print("NNCF is left out, because --nncf-python is not given", file=sys.stderr)
    rows: list[Row] = []
    targets = {name: arguments.target or name for name in arguments.engines}
    for net in arguments.nets:
        height, width = arguments.size or NETS[net][1]
        folder = arguments.work_dir / f"{net}_{height}x{width}"
        place = Place(folder=folder, targets=targets, nncf_python=arguments.nncf_python)
        if arguments.fresh:
            for engine in targets:
                for maker in (OURS, PLAIN):
                    place.file(maker, engine).unlink(missing_ok=True)
        rows += rows_of(
            net, (height, width), place, threads=arguments.threads, rounds=arguments.rounds
        )
        print(table(rows[-len(arguments.engines) :]), flush=True)
    print(table(rows))
    if arguments.write is not None:
        arguments.write.write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
