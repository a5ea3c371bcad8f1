"""Time quantized models and their float twins in turn, and compute the ratios of their times."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from dq.error_text import error_text
from dq.quant.latency.engine import Engine, Network
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.formats import is_quantized, widths_of
from dq.quant.latency.paired import Spread, interleaved, ratio
from dq.quant.latency.result import Latency
from dq.quant.latency.terms import ALONE, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """The result of one of several models that were timed in turn.

    Attributes:
        rounds: Number of rounds; in each all models ran.
        ms: Median time of one run in milliseconds.
        as_first: Time of the first model divided by this one's, over the rounds.
        latency: Comparison with its float twin; None for a float model.
    """

    rounds: int
    ms: float
    as_first: Spread
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A model that an engine has opened, and its inputs.

    Attributes:
        name: Name of the model.
        engine: Name and version of the engine.
        network: The opened model.
        inputs: Values of all inputs, in order.
    """

    name: str
    engine: str
    network: Network
    inputs: Sequence[NDArray[Any]]

    def run(self) -> None:
        """Compute all outputs once.

        Raises:
            ValueError: The engine cannot run the model on these inputs.
        """
        try:
            self.network.compute(self.inputs)
        except MemoryError:
            raise
        except Exception as error:  # Each engine has its own exceptions.
            sizes = " and ".join("x".join(map(str, array.shape)) for array in self.inputs)
            reason = error_text(error)[:200]
            raise ValueError(
                f"{self.name}: {self.engine} cannot run it on inputs of {sizes}: {reason}"
            ) from error


def compare(
    models: Mapping[str, ModelProto], engine: Engine, terms: Terms = ALONE
) -> dict[str, Timed]:
    """Time models, and the float twins of the quantized ones, all in turn.

    Args:
        models: By name.
        engine: Runs all of them.
        terms: Threads, rounds and sizes.

    Raises:
        ValueError: A model cannot be timed; the message names it.
    """
    own: dict[str, Contestant] = {}
    twins: dict[str, Contestant] = {}
    bytes_float: dict[str, int] = {}
    for name, model in models.items():
        with _named(name):
            own[name] = _contestant(name, model, engine, terms)
            if is_quantized(model):
                plain = float_twin(model)
                twins[name] = _contestant(name, plain, engine, terms)
                bytes_float[name] = plain.ByteSize()
    # A model and its twin run one after the other, so that the load of the machine is the same.
    places = [(kind, name) for name in own for kind in (own, twins) if name in kind]
    runs = [kind[name].run for kind, name in places]
    times = interleaved(runs, rounds=terms.rounds, fewest=terms.fewest, limit_s=terms.limit_s)
    ms = {name: t for (kind, name), t in zip(places, times, strict=True) if kind is own}
    ms_float = {name: t for (kind, name), t in zip(places, times, strict=True) if kind is twins}
    found = {}
    for name, model in models.items():
        latency = None
        if name in twins:
            network = own[name].network
            latency = Latency(
                engine=str(engine),
                threads=terms.threads,
                rounds=len(ms[name]),
                widths=widths_of(model),
                num_integer=network.num_integer,
                num_layers=network.num_integer + network.num_float,
                ms_integer=median(ms[name]),
                ms_float=median(ms_float[name]),
                times_as_fast=ratio(ms_float[name], ms[name]),
                bytes_integer=model.ByteSize(),
                bytes_float=bytes_float[name],
            )
        found[name] = Timed(
            rounds=len(ms[name]),
            ms=median(ms[name]),
            as_first=ratio(times[0], ms[name]),
            latency=latency,
        )
    return found


def latency_of(model: ModelProto, engine: Engine, terms: Terms = ALONE) -> Latency | None:
    """Compare a model's speed with its float twin's; return None for a float model.

    Raises:
        ValueError: The model cannot be timed.
    """
    if not is_quantized(model):
        return None
    return compare({"model": model}, engine, terms)["model"].latency


def _contestant(name: str, model: ModelProto, engine: Engine, terms: Terms) -> Contestant:
    network = engine.open(model, threads=terms.threads)
    inputs = terms.inputs_of(model)
    return Contestant(name=name, engine=str(engine), network=network, inputs=inputs)


@contextlib.contextmanager
def _named(name: str) -> Iterator[None]:
    """Put a model's name before the message of a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
