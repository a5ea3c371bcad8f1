import pytest
import torch

from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import Recipe
from dq.quant.training.distillation import Distill, Distillation, feature_names, relative_error
from tests.quant import small_net as nets


def test_the_teacher_is_and_stays_the_float_model() -> None:
    graph = nets.calibrated(Recipe(weight=nets.W4))
    set_phase(graph.root, Phase.OFF)
    x = nets.images(3)
    expected = graph(x)[0].detach()
    distillation = Distillation(graph, Distill())
    set_phase(graph.root, Phase.FROZEN)
    with torch.no_grad():
        graph.root.head.weight.add_(1.0)
    assert torch.equal(distillation.teacher(x)[0][0], expected)
    assert not any(p.requires_grad for p in distillation.teacher.root.parameters())


def test_the_teacher_has_the_weights_of_before_calibration_changed_them() -> None:
    graph = nets.calibrated(Recipe(weight=nets.W4))
    x = nets.images(3)
    set_phase(graph.root, Phase.OFF)
    expected = graph(x)[0].detach()
    originals = {"neck.weight": graph.root.neck.weight.detach().clone()}
    with torch.no_grad():
        graph.root.neck.weight.clamp_(-0.05, 0.05)
    distillation = Distillation(graph, Distill(), originals)
    assert torch.equal(distillation.teacher(x)[0][0], expected)
    assert not torch.equal(distillation(x)[0], expected)


def test_a_layer_that_computes_what_a_file_lacks_keeps_its_values_in_the_teacher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """mmcv's ConvAWS2d does so: loading a part of its weights replaces the others."""

    def load(module: torch.nn.Conv2d, *_: object) -> None:
        module.bias.detach().fill_(100.0)

    monkeypatch.setattr(torch.nn.Conv2d, "_load_from_state_dict", load)
    graph = nets.calibrated(Recipe(weight=nets.W4))
    x = nets.images(3)
    set_phase(graph.root, Phase.OFF)
    originals = {"neck.weight": graph.root.neck.weight.detach().clone()}
    teacher = Distillation(graph, Distill(), originals).teacher
    assert torch.equal(teacher(x)[0][0], graph(x)[0])


def test_without_quantization_the_losses_are_zero() -> None:
    graph = nets.calibrated()
    distillation = Distillation(graph, Distill(features=("re*",)))
    set_phase(graph.root, Phase.OFF)
    distillation(nets.images(1))
    losses = distillation.losses()
    assert list(losses) == ["loss_distill", "loss_distill_features"]
    assert all(value == 0 for value in losses.values())


def test_outputs_are_the_graphs_and_gradients_reach_only_the_student() -> None:
    graph = nets.calibrated(Recipe(weight=nets.W4, learned="lsq"))
    distillation = Distillation(graph, Distill(weight=2.0, features=("re*",), feature_weight=3.0))
    set_phase(graph.root, Phase.TRAIN)
    x = nets.images(1)
    outputs = distillation(x)
    for own, other in zip(outputs, graph(x), strict=True):
        assert torch.equal(own, other)
    distillation(x)
    losses = distillation.losses()
    assert all(value > 0 for value in losses.values())
    sum(losses.values()).backward()
    assert graph.root.stem.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in distillation.teacher.root.parameters())


def test_learning_from_the_teacher_lowers_the_error() -> None:
    graph = nets.calibrated(Recipe(weight=nets.W4, learned="lsq"))
    distillation = Distillation(graph, Distill())
    set_phase(graph.root, Phase.TRAIN)
    with torch.no_grad():
        graph.root.neck.weight.add_(0.1 * torch.randn_like(graph.root.neck.weight))
    optimizer = torch.optim.SGD(graph.root.parameters(), lr=0.01)
    history = []
    for seed in range(40):
        distillation(nets.images(seed % 4))
        loss = distillation.losses()["loss_distill"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert sum(history[-4:]) < 0.5 * sum(history[:4])


def test_a_pattern_without_a_match_is_refused_with_existing_names() -> None:
    graph = nets.calibrated()
    with pytest.raises(ValueError, match=r"'neckk\.\*' matches no module .* there are head, "):
        Distillation(graph, Distill(features=("neckk.*",)))
    assert feature_names(graph, ["head"]) == ["head/out"]
    assert Distill(features="head").features == ("head",)


def test_the_error_is_a_ratio_over_nested_outputs() -> None:
    teacher = [torch.ones(3), (torch.full((2, 2), 10.0),)]
    student = [torch.zeros(3), (torch.full((2, 2), 5.0),)]
    assert relative_error(student, teacher).item() == pytest.approx((1.0 + 0.25) / 2)
    assert relative_error([torch.ones(2)], [torch.zeros(2)]).isfinite()


def test_the_student_compiles_as_one_graph() -> None:
    graph = nets.calibrated(Recipe(learned="lsq"))
    distillation = Distillation(graph, Distill(features=("re*",)))
    set_phase(graph.root, Phase.TRAIN)
    torch._dynamo.reset()
    student = torch.compile(distillation.student, backend="aot_eager", fullgraph=True)
    x = nets.images(1)
    (outputs, features), (expected, others) = student(x), distillation.student(x)
    assert torch.allclose(outputs[0], expected[0], atol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(features, others, strict=True))
