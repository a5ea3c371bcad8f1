"""Which quantizers are raised when a graph has parts, each with a target of its own."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dq.quant.analysis.sensitivity import Sensitivity
from dq.quant.ptq import mixed_precision
from dq.quant.ptq.mixed_precision import analyze, choose_raised_
from dq.quant.ptq.settings import Mixed

IMAGES = [torch.zeros(1, 3, 4, 4)]
CALLS = {"head": [(torch.zeros(2, 5),)]}


def sensitivity(name: str, bits: int = 8) -> Sensitivity:
    fields = dict.fromkeys(Sensitivity.__dataclass_fields__, 0.0)
    return Sensitivity(**{**fields, "name": name, "kind": "activation", "bits": bits})  # type: ignore[arg-type]


FOUND = [sensitivity(name) for name in ("a", "x", "b", "y", "c")] + [sensitivity("wide", 16)]


@pytest.fixture
def graph(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a graph with a part; each raised quantizer improves its network by 10 dB."""
    networks = {
        part: SimpleNamespace(sites=[SimpleNamespace(name=name) for name in names], part=part)
        for part, names in {"": ("a", "b", "c", "wide"), "head": ("x", "y")}.items()
    }
    raised: list[str] = []
    measured: list[tuple[str, Any]] = []

    def output_sqnr(network: Any, calls: Any) -> float:
        measured.append((network.part, calls))
        own = {site.name for site in network.sites}
        return (20.0 if network.part else 30.0) + 10.0 * len(own & set(raised))

    monkeypatch.setattr(mixed_precision, "output_sqnr", output_sqnr)
    monkeypatch.setattr(mixed_precision, "raise_bits_", lambda graph, names: raised.extend(names))
    return SimpleNamespace(networks=networks, raised=raised, measured=measured)


@pytest.mark.parametrize(
    ("most", "target", "wanted"),
    [
        (5, None, ("a", "x", "b", "y", "c")),  # One that has 16 bits already is left out.
        (9, None, ("a", "x", "b", "y", "c")),
        (3, None, ("a", "x", "b")),
        (1, None, ("a",)),
        (0, None, ()),
        (5, 40.0, ("a", "x", "y")),  # A network that has reached the target is left alone.
        (5, 40.1, ("a", "x", "b", "y")),
        (5, 30.0, ("x",)),
        (2, 40.0, ("a", "x")),
        (5, 20.0, ()),
    ],
)
def test_every_network_gets_as_few_as_its_target_needs(
    graph: Any, most: int, target: float | None, wanted: tuple[str, ...]
) -> None:
    mixed = Mixed(max_raised=most, target_sqnr=target)
    assert choose_raised_(graph, IMAGES, FOUND, mixed, CALLS) == wanted
    assert tuple(graph.raised) == wanted
    for part, calls in graph.measured:
        assert calls is (CALLS["head"] if part else IMAGES)


def test_a_part_without_calls_has_no_target(graph: Any) -> None:
    own = [each for each in FOUND if each.name in "abc"]
    for parts in (None, {}, {"head": []}):
        graph.raised.clear()
        found = choose_raised_(graph, IMAGES, own, Mixed(target_sqnr=45.0), parts)
        assert found == ("a", "b")
    assert {part for part, _ in graph.measured} == {""}


def test_the_table_has_the_lowest_ratio_of_all_networks_before_and_after(graph: Any) -> None:
    found = analyze(graph, IMAGES, FOUND, Mixed(max_raised=2), CALLS)
    assert (found["sqnr"], found["sqnr_raised"]) == (20.0, 30.0)
    assert found["raised"] == ["a", "x"]
    assert [each["name"] for each in found["quantizers"]] == [each.name for each in FOUND]
