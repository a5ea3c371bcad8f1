import copy

import pytest
import torch

from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.norm_reestimation import reestimate_norms_
from tests.quant import small_net as nets


def spoil(graph) -> None:
    with torch.no_grad():
        for norm in (graph.root.norm, graph.root.neck_norm):
            norm.running_mean.add_(0.2)
            norm.running_var.mul_(1.5)


def test_without_quantization_they_are_the_moments_of_each_norms_input() -> None:
    graph = nets.calibrated()
    root = graph.root
    set_phase(root, Phase.OFF)
    spoil(graph)
    batches = [nets.images(seed) for seed in range(3)]
    assert reestimate_norms_(graph, batches) == 3
    x = root.stem(torch.cat(batches)).transpose(0, 1).flatten(1).double()
    assert torch.allclose(root.norm.running_mean.double(), x.mean(1), atol=1e-6)
    assert torch.allclose(root.norm.running_var.double(), x.var(1), rtol=1e-5)


def test_wrong_statistics_of_a_quantized_net_recover() -> None:
    graph = nets.calibrated()
    x = nets.images(50)
    with torch.no_grad():
        good = graph(x)[0]
        spoil(graph)
        spoilt = graph(x)[0]
        reestimate_norms_(graph, [nets.images(seed) for seed in range(16)])
        repaired = graph(x)[0]
    assert (repaired - good).square().mean() < 0.2 * (spoilt - good).square().mean()


def test_nothing_else_changes() -> None:
    graph = nets.calibrated(Recipe(learned="lsq+"))
    root = graph.root
    root.train()
    root.neck.eval()
    before = copy.deepcopy(root.state_dict())
    modes = [m.training for m in root.modules()]
    reestimate_norms_(graph, [nets.images(1)])
    changed = {n for n, v in root.state_dict().items() if not torch.equal(v, before[n])}
    names = {f"{n}.running_{s}" for n in ("norm", "neck_norm") for s in ("mean", "var")}
    scales = {n for n in before if n.endswith("weight.learned_scale") and "norm" in n}
    assert changed == names | scales
    assert [m.training for m in root.modules()] == modes
    assert (root.norm.momentum, root.norm._forward_pre_hooks) == (0.1, {})


def test_learned_weight_scales_follow_so_that_weights_keep_their_integers() -> None:
    graph = nets.calibrated(Recipe(weight=nets.W4, learned="lsq"))
    spoil(graph)

    def integers() -> list[torch.Tensor]:
        found = []
        for _, quantized, layer, norm in graph.layers():
            weight, scale, _ = quantized.quantized_weight(layer, norm)
            found.append(weight / scale.reshape(-1, 1, 1, 1))
        return found

    before = integers()
    reestimate_norms_(graph, [nets.images(seed) for seed in range(4)])
    for a, b in zip(before, integers(), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_no_batch_changes_nothing_and_an_error_leaves_no_hook() -> None:
    graph = nets.calibrated()
    before = copy.deepcopy(graph.root.state_dict())
    assert reestimate_norms_(graph, []) == 0
    with pytest.raises(RuntimeError):
        reestimate_norms_(graph, [torch.zeros(1, 7, 8, 8)])
    assert all(torch.equal(v, before[n]) for n, v in graph.root.state_dict().items())
    assert not graph.root.norm._forward_pre_hooks


def test_ranks_merge_before_scales_are_updated() -> None:
    graph = nets.calibrated(Recipe(learned="lsq"))
    called = []
    scale = graph.quantizers["stem+norm"].weight.learned_scale.clone()

    def merge_(root) -> None:
        called.append(root)
        root.norm.running_var.mul_(4.0)

    reestimate_norms_(graph, [nets.images(seed) for seed in range(8)], merge_=merge_)
    assert called == [graph.root]
    ratio = graph.quantizers["stem+norm"].weight.learned_scale / scale
    assert (ratio < 0.7).all()
