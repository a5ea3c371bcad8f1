"""Learned quantizers on two real ranks are equal without a collective of their own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.processes.ranks import run_ranks


def _train() -> dict[str, Any]:
    from types import SimpleNamespace

    from dq.detector.hooks.quantization import AgreementHook, OscillationHook, QuantizationHook
    from dq.dist.exchange import collectives
    from dq.dist.exchange.data_parallel import wrap
    from dq.quant.quantizers.factory import learned_parameters, regroup_
    from dq.quant.recipes.recipe import Recipe
    from dq.quant.training.oscillation import Oscillation, OscillationTracker
    from dq.quant.training.schedule import Schedule
    from dq.quant.training.weight_average import WeightAverage
    from dq.sync import check_equal_on_ranks
    from dq.tracking.tracker import Tracker
    from tests.quant import small_net as nets

    graph = nets.calibrated(Recipe(weight=nets.W4, learned="lsq+"))
    root, rank = graph.root, collectives.rank()
    root.forward = lambda x: graph(x)
    model = wrap(root, device=torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    regroup_(optimizer, root)
    average = WeightAverage(root, 0.1)
    tracker = OscillationTracker(graph, Oscillation(momentum=0.2, freeze_above=0.1))
    schedule = Schedule(
        round_after={"iteration": 3}, freeze_norm_after=1.0, freeze_ranges_after={"iteration": 7}
    )
    quantization, agreement, oscillation = (
        QuantizationHook(graph, schedule),
        AgreementHook(graph),
        OscillationHook(tracker, schedule),
    )
    runner = SimpleNamespace(
        iter=0, epoch=0, max_iters=11, model=model, optimizer=optimizer, tracker=Tracker()
    )
    digests = []
    model.train()
    for step in range(11):
        runner.iter = step
        quantization.before_train_iter(runner)
        # Each rank has other images, rank 1 larger ones; the norms are not synchronized.
        x = nets.images(10 * rank + step) * (1 + 3 * rank)
        optimizer.zero_grad()
        model(x)[0].square().mean().backward()
        optimizer.step()
        agreement.after_train_iter(runner)
        oscillation.after_train_iter(runner)
        average.update_()
        digests.append(check_equal_on_ranks(graph, f"after step {step}"))
    return {
        "digests": digests,
        "learned": {n: p.detach().clone() for n, p in learned_parameters(root).items()},
        "frozen": tracker.share_frozen(),
        "weight": root.neck.weight.detach(),
        "average": average.values["neck.weight"],
    }


@pytest.mark.slow
def test_learned_scales_and_frozen_weights_stay_equal_through_every_phase() -> None:
    first, second = run_ranks(_train, 2)
    assert first["digests"] == second["digests"]
    # Ranges change in the observed phase, scales in the learned phase, nothing when frozen.
    assert len(set(first["digests"][:7])) == 7
    assert len(set(first["digests"][6:])) == 1
    assert all(torch.equal(value, second["learned"][n]) for n, value in first["learned"].items())
    assert first["frozen"] == second["frozen"] > 0
    assert torch.equal(first["weight"], second["weight"])
    assert torch.equal(first["average"], second["average"])
