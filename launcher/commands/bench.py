"""``launcher bench``: time exported models, each in turn with the same model in float."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dq.counted import counted
from dq.engines import ENGINES
from launcher.command_line.written import check_outputs, write_text

if TYPE_CHECKING:
    from onnx import ModelProto

    from dq.quant.latency.comparison import Timed
    from dq.quant.latency.engine import Engine
    from dq.quant.latency.terms import Terms

HELP = "time exported models in an engine, each in turn with the same model in float"
# A large detector takes seconds for an image. A minimum number of rounds is run in any case.
LIMIT_S = 60.0
PROFILED_ROUNDS = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "models",
        metavar="MODEL.onnx",
        nargs="+",
        type=Path,
        help="a file of `launcher export`, or any other ONNX model; several are timed in turn",
    )
    parser.add_argument(
        "--backend",
        choices=tuple(ENGINES),
        default="onnxruntime",
        help="the engine (default onnxruntime)",
    )
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="CPU threads of each run (default 1)"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        default=30,
        metavar="N",
        help=f"runs of each model (default 30; fewer if they would take over {LIMIT_S:.0f} s)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images per run (default 1)"
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images, for a model with a free image size",
    )
    parser.add_argument(
        "--per-layer",
        action="store_true",
        help="also time every layer, and print a rule that keeps in float the layers that are not"
        " faster in integers",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all numbers to this file")


def run(arguments: argparse.Namespace) -> int:
    """Print the times, and the slowest layers if integers are slower than float; return 0."""
    from dq.dist.rendezvous.environment import read_environment

    _check(arguments)
    if not read_environment().is_main:  # Another rank would disturb the timing.
        return 0
    from dq.quant.latency.comparison import compare
    from dq.quant.latency.engines import timed_engine
    from dq.quant.latency.formats import is_quantized
    from dq.quant.latency.terms import Terms
    from dq.quant.latency.text import table
    from dq.quant.verify.onnxruntime_session import load_model

    engine = timed_engine(arguments.backend)
    models = {str(path): load_model(path) for path in arguments.models}
    if not any(map(is_quantized, models.values())):
        raise ValueError(
            f"{arguments.models[0]} is a float model, so there is nothing to compare it with; give"
            " a quantized model, as `launcher export` writes it"
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
    print(
        f"{engine}, {counted(terms.threads, 'thread[s]')}, {counted(rounds, 'round[s]')} in turn;"
        " medians (quartiles)"
    )
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
    """Raise ValueError if a number is below 1, or a file is given twice."""
    for name in ("threads", "rounds", "batch", "size"):
        for number in given if isinstance(given := getattr(arguments, name), list) else [given]:
            if number is not None and number < 1:
                raise ValueError(f"--{name} is {number}; give a whole number of at least 1")
    for path in arguments.models:
        if arguments.models.count(path) > 1:
            raise ValueError(f"{path} is given twice; give each model once")
    check_outputs({"--json": arguments.json}, arguments.models)


def _say_layers(
    name: str, model: ModelProto, engine: Engine, terms: Terms, *, whole: bool
) -> dict[str, Any]:
    """Print the time of a model's layers.

    Args:
        name: Of the model.
        model: The model.
        engine: The engine to time it in.
        terms: Threads, rounds, batch and size.
        whole: Print all layers and a rule, instead of only the slowest layers.

    Returns:
        The numbers, for JSON.
    """
    from dq.quant.latency.advice import advice
    from dq.quant.latency.left_float import is_ours
    from dq.quant.latency.per_layer import layer_times
    from dq.quant.latency.text import advice_lines, layer_table, slower_line

    times = layer_times(model, engine, replace(terms, rounds=min(terms.rounds, PROFILED_ROUNDS)))
    found = {"layers": [asdict(layer) for layer in times]}
    if not whole:
        print(slower_line(name, times))
        return found
    print("\n".join(layer_table(times)))
    if not is_ours(model):  # Exported by another tool: its names are not names of modules.
        return found
    advised = advice(model, times, engine, terms)
    print("\n".join(advice_lines(name, advised)))
    return {**found, "in_float": None if advised is None else asdict(advised)}


def _json(
    engine: Engine,
    terms: Terms,
    timed: Mapping[str, Timed],
    layers: Mapping[str, Mapping[str, Any]],
) -> str:
    from dq.tracking.record.json_file import json_text

    models = {name: {**asdict(own), **layers.get(name, {})} for name, own in timed.items()}
    return json_text({"engine": str(engine), **asdict(terms), "models": models}, indent=1)
