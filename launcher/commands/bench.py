"""``launcher bench``: how fast exported models run, each beside itself in float."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dq.engines import ENGINES
from launcher.command_line.written import write_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from dq.quant.latency.comparison import Terms, Timed
    from dq.quant.latency.engine import Engine
    from dq.quant.latency.per_layer import LayerTime

HELP = "time exported models in an engine, each in turn with the same model in float"
# A large detector takes seconds for an image; some rounds run in any case.
LIMIT_S = 60.0
PROFILED_ROUNDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "models",
        metavar="MODEL.onnx",
        nargs="+",
        type=Path,
        help="what `launcher export` wrote, or any other ONNX model; several are timed in turn",
    )
    parser.add_argument(
        "--backend",
        choices=tuple(ENGINES),
        default="onnxruntime",
        help="the engine (default onnxruntime)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of a run (default 1)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        metavar="N",
        help=f"in each every model runs (default 30, fewer where they take {LIMIT_S:.0f} s)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images of a run (default 1)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the images, for a model that leaves it open",
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="time every layer as well, and print a rule that leaves in float those where integers"
        " bring nothing",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers there")


def run(arguments: argparse.Namespace) -> int:
    """Print the ratios, say which layers cost time where integers are slower, and return 0."""
    from dq.dist.rendezvous.environment import read_environment

    _check(arguments)
    if not read_environment().is_main:  # Another rank would disturb what is timed.
        return 0
    from dq.quant.latency.comparison import Terms, compare
    from dq.quant.latency.engines import timed_engine
    from dq.quant.latency.float_twin import is_quantized
    from dq.quant.latency.text import table
    from dq.quant.verify.onnxruntime_session import load_model

    engine = timed_engine(arguments.backend)
    models = {str(path): load_model(path) for path in arguments.models}
    if not any(map(is_quantized, models.values())):
        raise ValueError(
            f"{arguments.models[0]} is a float model, with nothing to compare it with; give a"
            " quantized one, as `launcher export` writes it, alone or beside it"
        )
    size = tuple(arguments.size) if arguments.size else None
    terms = Terms(
        threads=arguments.threads,
        rounds=arguments.rounds,
        limit_s=LIMIT_S,
        batch=arguments.batch,
        size=size,
    )
    timed = compare(models, engine, terms)
    rounds = max(own.rounds for own in timed.values())
    print(f"{engine}, {terms.threads} thread(s), {rounds} rounds in turn; medians (quartiles)")
    print("\n".join(table(timed)))
    layers = {}
    for name, own in timed.items():
        if own.latency is not None and (arguments.per_layer or own.latency.is_slower):
            print()
            layers[name] = _say_layers(name, models[name], engine, terms, whole=arguments.per_layer)
    if arguments.json is not None:
        write_text(arguments.json, _json(engine, terms, timed, layers))
        print(arguments.json)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    """Raise ValueError for a number below 1, and for a file that is given twice."""
    for name in ("threads", "rounds", "batch", "size"):
        for number in given if isinstance(given := getattr(arguments, name), list) else [given]:
            if number is not None and number < 1:
                raise ValueError(f"--{name} is {number}; give a whole number of at least 1")
    for path in arguments.models:
        if arguments.models.count(path) > 1:
            raise ValueError(f"{path} is given twice; give each model once")


def _say_layers(
    name: str, model: ModelProto, engine: Engine, terms: Terms, *, whole: bool
) -> list[LayerTime]:
    """Print where a model's time goes: all layers and a rule, or the most costly ones alone."""
    from dq.quant.latency.per_layer import layer_times
    from dq.quant.latency.text import layer_table, rule_lines, slower_line
    from dq.quant.verify.onnxruntime_session import metadata_of

    times = layer_times(model, engine, replace(terms, rounds=min(terms.rounds, PROFILED_ROUNDS)))
    if whole:
        print("\n".join(layer_table(times)))
        print("\n".join(rule_lines(name, times, is_ours="recipe" in metadata_of(model))))
    else:
        print(slower_line(name, times))
    return times


def _json(
    engine: Engine,
    terms: Terms,
    timed: Mapping[str, Timed],
    layers: Mapping[str, Sequence[LayerTime]],
) -> str:
    from dq.tracking.record.json_file import json_text

    models = {
        name: {**asdict(own), "layers": [asdict(layer) for layer in layers.get(name, ())]}
        for name, own in timed.items()
    }
    return json_text({"engine": str(engine), **asdict(terms), "models": models}, indent=1)
