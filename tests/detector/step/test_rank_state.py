"""Plain attributes of modules: what a resumed training restores, and what it leaves out."""

from __future__ import annotations

import torch

from dq.detector.step.rank_state import changed_attributes, plain_attributes, set_attributes
from dq.quant.quantizers.phase import Phase, set_phase
from tests.quant import small_net as nets


def test_a_look_at_the_ranges_is_no_state_of_a_training() -> None:
    """A training that calibrates before its first step has looked; a resumed one has not."""
    graph = nets.calibrated()
    set_phase(graph.root, Phase.FROZEN)
    before = plain_attributes(graph.root)
    with torch.no_grad():
        graph(nets.images())
    assert any(vars(q)["_was_calibrated"] for q in graph.activations().values())
    assert changed_attributes(before, graph.root) == {}


def test_what_has_changed_is_restored() -> None:
    graph, other = nets.calibrated(), nets.calibrated()
    before = plain_attributes(graph.root)
    quantizer = next(iter(graph.activations().values()))
    quantizer.keeps_range = not quantizer.keeps_range
    changed = changed_attributes(before, graph.root)
    assert [list(names) for names in changed.values()] == [["keeps_range"]]
    set_attributes(other.root, {**changed, "not.a.module": {"a": 1}})
    assert changed_attributes(plain_attributes(graph.root), other.root) == {}
