"""Time exported int8 detectors in engines, beside float and beside other quantizers' files.

    python -m benchmarks.engines [--nets yolox_nano ssd_mobilenet] [--engines onnxruntime] \
        [--nncf-python ENV/bin/python] [--work-dir DIR] [--write FILE.md]

All files of a net, in all engines, run in turn in one process. They are prepared once: the second
call with the same --work-dir only times.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import onnx

from benchmarks.engines.files import FLOAT, NNCF, OURS, Place, prepare
from benchmarks.engines.nets import NETS
from benchmarks.engines.table import Cell, Row, table
from dq.engines import ENGINES
from dq.quant.latency.engine import Engine, Network
from dq.quant.latency.engines import timed_engine
from dq.quant.latency.inputs import example_inputs
from dq.quant.latency.paired import interleaved, ratio, spread
from dq.quant.recipes.presets import PRESETS

LIMIT_S = 120.0


def rows_of(
    net: str, size: tuple[int, int], place: Place, arguments: argparse.Namespace
) -> list[Row]:
    """Return a row for each engine, all of them timed in turn."""
    files = prepare(NETS[net][0], size, place)
    inputs = example_inputs(onnx.load(files[FLOAT]))
    networks: dict[tuple[str, str], Network] = {}
    for name in arguments.engines:
        engine = timed_engine(name)
        for maker, path in files.items():
            networks[name, maker] = opened(name, engine, maker, path, place, arguments.threads)
    times = interleaved(
        [lambda network=network: network.compute(inputs) for network in networks.values()],
        rounds=arguments.rounds,
        limit_s=LIMIT_S,
    )
    ms = dict(zip(networks, times, strict=True))
    return [
        Row(
            net=net,
            size=size,
            engine=str(timed_engine(name)),
            ms_float=spread(ms[name, FLOAT]).median,
            cells={
                maker: Cell(
                    times_as_fast=ratio(ms[name, FLOAT], ms[name, maker]),
                    num_integer=networks[name, maker].num_integer,
                    num_layers=networks[name, maker].num_integer + networks[name, maker].num_float,
                    against_ours=ratio(ms[name, OURS], ms[name, maker]),
                )
                for maker in files
                if maker != FLOAT
            },
        )
        for name in arguments.engines
    ]


def opened(
    name: str, engine: Engine, maker: str, path: Path, place: Place, threads: int
) -> Network:
    """Return a file in an engine; NNCF's for OpenVINO is in OpenVINO's own format."""
    if (name, maker) == ("openvino", NNCF):
        from dq.quant.latency.openvino import OpenVinoNetwork

        return OpenVinoNetwork(str(place.nncf_openvino), threads=threads)
    return engine.open(onnx.load(path), threads=threads)


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    there = [name for name in ENGINES if importlib.util.find_spec(name) is not None]
    parser.add_argument("--nets", nargs="+", choices=tuple(NETS), default=list(NETS))
    parser.add_argument("--engines", nargs="+", choices=tuple(ENGINES), default=there)
    parser.add_argument("--rounds", type=int, default=15, help="at most; fewer for large nets")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--target", choices=tuple(PRESETS), default="onnxruntime", help="our preset"
    )
    parser.add_argument("--size", type=int, nargs=2, help="height and width in place of the real")
    parser.add_argument("--nncf-python", type=Path, help="Python of an environment with NNCF")
    parser.add_argument("--work-dir", type=Path, default=Path("runs/engines"))
    parser.add_argument("--fresh", action="store_true", help="export our files again")
    parser.add_argument("--write", type=Path, help="write the table there as well")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Time the nets and print the table, after every net."""
    arguments = parsed(argv)
    if arguments.nncf_python is None:
        print("NNCF is left out: --nncf-python names no environment", file=sys.stderr)
    rows: list[Row] = []
    for net in arguments.nets:
        size = tuple(arguments.size or NETS[net][1])
        place = Place(
            folder=arguments.work_dir / f"{net}_{size[0]}x{size[1]}",
            target=arguments.target,
            nncf_python=arguments.nncf_python,
        )
        if arguments.fresh:
            place.file(OURS).unlink(missing_ok=True)
        rows += rows_of(net, (size[0], size[1]), place, arguments)
        print(table(rows[-len(arguments.engines) :]), flush=True)
    print(table(rows))
    if arguments.write is not None:
        arguments.write.write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
