"""Quantized models and their float twins in an engine, timed in turn: ratios, not times alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from dq.quant.latency.engine import Engine, Network
from dq.quant.latency.float_twin import float_twin, is_quantized, widths_of
from dq.quant.latency.inputs import example_inputs
from dq.quant.latency.paired import Spread, interleaved, ratio

# What the end of an export may take: a second or two.
BRIEF_S = 1.5
MOST_ROUNDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A quantized model's speed beside that of its float twin.

    Attributes:
        engine: Name and version.
        threads: Of one run.
        rounds: In each both ran.
        widths: Of the integers: int8, W4A8.
        num_integer: Layers that run in integers.
        num_layers: All layers.
        ms_integer: Median milliseconds of one run.
        ms_float: Those of the float twin.
        times_as_fast: Float milliseconds by quantized ones, of each round.
        bytes_integer: Size of the model.
        bytes_float: Size of its float twin.
    """

    engine: str
    threads: int
    rounds: int
    widths: str
    num_integer: int
    num_layers: int
    ms_integer: float
    ms_float: float
    times_as_fast: Spread
    bytes_integer: int
    bytes_float: int

    @property
    def is_slower(self) -> bool:
        """Whether the quantized model is slower than in float, in half of the rounds or more."""
        return self.times_as_fast.median < 1

    def sentence(self) -> str:
        """Return the result in one line."""
        faster = self.times_as_fast.median
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        said = f"{self.widths} {faster:.2f} times as fast as float"
        if self.is_slower:
            said = f"{self.widths} is SLOWER than float, {faster:.2f} times as fast"
        return (
            f"{said}: {self.ms_integer:.1f} ms against {self.ms_float:.1f} ms, {threads},"
            f" {self.num_integer} of {self.num_layers} layers in integers ({self.engine})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """One of some models that were timed in turn.

    Attributes:
        rounds: In each all models ran.
        ms: Median milliseconds of one run.
        as_first: The first model's milliseconds by this one's, of each round.
        latency: Beside its float twin; None for a float model.
    """

    rounds: int
    ms: float
    as_first: Spread
    latency: Latency | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How models are timed.

    Attributes:
        threads: Of one run.
        rounds: At most; in each every model runs.
        limit_s: Seconds after which no further round begins, if there have been some.
        batch: Of inputs whose first dimension is free.
        size: Height and width, for images of a free size.
    """

    threads: int = 1
    rounds: int = MOST_ROUNDS
    limit_s: float = math.inf
    batch: int = 1
    size: tuple[int, int] | None = None

    def inputs_of(self, model: ModelProto) -> list[NDArray[Any]]:
        """Return values for a model's inputs.

        Raises:
            ValueError: An input has no size.
        """
        return example_inputs(model, batch=self.batch, size=self.size)


ALONE = Terms()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A model that an engine has opened, and its inputs.

    Attributes:
        network: In the engine.
        inputs: In order.
    """

    network: Network
    inputs: Sequence[NDArray[Any]]

    def run(self) -> object:
        """Compute all outputs once."""
        return self.network.compute(self.inputs)


def compare(
    models: Mapping[str, ModelProto], engine: Engine, terms: Terms = ALONE
) -> dict[str, Timed]:
    """Time models, and the float twins of those that are quantized, all in turn.

    Args:
        models: By name.
        engine: In which all of them run.
        terms: Threads, rounds and sizes.

    Raises:
        ValueError: A model cannot be timed; the message names it.
    """
    own: dict[str, Contestant] = {}
    twins: dict[str, Contestant] = {}
    bytes_float: dict[str, int] = {}
    for name, model in models.items():
        try:
            own[name] = _contestant(model, engine, terms)
            if is_quantized(model):
                plain = float_twin(model)
                twins[name], bytes_float[name] = _contestant(plain, engine, terms), plain.ByteSize()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    # A model and its twin run one after the other, so that both meet the same load.
    places = [(kind, name) for name in own for kind in (own, twins) if name in kind]
    runs = [kind[name].run for kind, name in places]
    times = interleaved(runs, rounds=terms.rounds, limit_s=terms.limit_s)
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
    """Return a model's speed beside its float twin's; None for a float model, which has none.

    Raises:
        ValueError: The model cannot be timed.
    """
    if not is_quantized(model):
        return None
    return compare({"model": model}, engine, terms)["model"].latency


def _contestant(model: ModelProto, engine: Engine, terms: Terms) -> Contestant:
    """Return a model that has run once.

    Raises:
        ValueError: It cannot run.
    """
    network, inputs = engine.open(model, threads=terms.threads), terms.inputs_of(model)
    contestant = Contestant(network=network, inputs=inputs)
    try:
        contestant.run()
    except MemoryError:
        raise
    except Exception as error:  # Engines have exceptions of their own.
        sizes = " and ".join("x".join(map(str, array.shape)) for array in inputs)
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{engine} cannot run it on inputs of {sizes}: {reason}") from error
    return contestant
