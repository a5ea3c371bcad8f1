"""Measure the time of every layer of a quantized model and of its float twin."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from onnx import ModelProto

from dq.quant.latency.engine import Engine, Executed
from dq.quant.latency.float_twin import float_twin
from dq.quant.latency.layers import Layer, absorbed, by_layer, with_layer_numbers
from dq.quant.latency.paired import WARM_UP
from dq.quant.latency.terms import ALONE, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTime:
    """A module's time in one run of a network, over all its calls.

    Attributes:
        name: Name of its weight in the file.
        module: Its name in the detector, if `dq.quant.export` has written the file.
        calls: Number of calls; more than one for a head that pyramid levels share.
        is_quantized: Whether the file has integers for its weight.
        num_integer: Number of calls that the engine computes in integers.
        ms_integer: Milliseconds of all calls in the quantized model, including the operations up to
            the next layer; 0 if the engine computes the layer together with a later one, which
            then has the time of both.
        ms_float: The same in the float twin.
        operators: Milliseconds of each of the engine's operators in the quantized model.
    """

    name: str
    module: str
    calls: int
    is_quantized: bool
    num_integer: int
    ms_integer: float
    ms_float: float
    operators: Mapping[str, float]

    @property
    def times_as_fast(self) -> float:
        """Time in float divided by the time in integers."""
        return self.ms_float / max(1e-6, self.ms_integer)

    @property
    def lost_ms(self) -> float:
        """Milliseconds that the layer loses in integers; negative if integers are faster."""
        return self.ms_integer - self.ms_float


def layer_times(model: ModelProto, engine: Engine, terms: Terms = ALONE) -> list[LayerTime]:
    """Return the times of every layer of a quantized model, in the order of execution.

    Args:
        model: With QDQ nodes.
        engine: Runs the model and its float twin, in turn.
        terms: Threads, rounds and sizes.

    Raises:
        ValueError: The model cannot be timed.
    """
    numbered, layers = with_layer_numbers(model)
    plain, _ = with_layer_numbers(float_twin(model))
    inputs = terms.inputs_of(model)
    networks = [engine.profiled(each, threads=terms.threads) for each in (numbered, plain)]
    for _ in range(WARM_UP + terms.rounds):
        for network in networks:
            network.compute(inputs)
    executed = [network.executed() for network in networks]
    found = [by_layer(each) for each in executed]
    # If one of the two computes layers together, only the sums of their times can be compared.
    for earlier, last in absorbed(*executed).items():
        for times in found:
            times[last] = [*times.get(last, ()), *times.pop(earlier, ())]
    return _of_modules(layers, *found)


def _of_modules(
    layers: Sequence[Layer],
    own: Mapping[int, Sequence[Executed]],
    other: Mapping[int, Sequence[Executed]],
) -> list[LayerTime]:
    places: dict[str, list[int]] = {}
    for number, layer in enumerate(layers):
        places.setdefault(layer.name, []).append(number)
    return [
        LayerTime(
            name=name,
            module=layers[numbers[0]].module,
            calls=len(numbers),
            is_quantized=layers[numbers[0]].is_quantized,
            num_integer=sum(any(e.is_integer for e in own.get(n, ())) for n in numbers),
            ms_integer=sum(e.ms for n in numbers for e in own.get(n, ())),
            ms_float=sum(e.ms for n in numbers for e in other.get(n, ())),
            operators=_by_operator(e for n in numbers for e in own.get(n, ())),
        )
        for name, numbers in places.items()
    ]


def _by_operator(executed: Iterable[Executed]) -> dict[str, float]:
    found: dict[str, float] = {}
    for one in executed:
        found[one.operator] = found.get(one.operator, 0.0) + one.ms
    return found


def costly(times: Iterable[LayerTime], most: int = 3) -> list[LayerTime]:
    """Return the layers that lose most time in integers, the worst first."""
    return sorted((t for t in times if t.lost_ms > 0), key=lambda t: -t.lost_ms)[:most]
