import argparse

import pytest
import torch

from benchmarks import kernels, ranks, speed
from benchmarks.nets import NETS, build
from dq.quant.kernels import native


@pytest.fixture
def given() -> argparse.Namespace:
    return argparse.Namespace(
        size=64,
        batch=2,
        rounds=2,
        device="cpu",
        compile=False,
        amp=False,
        channels_last=False,
        target="int8",
        sides=["float", "observing", "composed", "frozen", "inference", "calibrating"],
    )


@pytest.mark.slow
def test_sides_are_measured_against_their_base(given: argparse.Namespace) -> None:
    takes = native.takes
    found = speed.measure("ssd_mobilenet", given)
    assert list(found["sides"]) == given.sides
    assert found["left_out"] == {}
    assert native.takes is takes
    for name, side in found["sides"].items():
        base = "inference" if name in speed.WITHOUT_GRADIENT else "float"
        assert len(side["ratio"]) == 3
        held = side["memory_mib"] / found["sides"][base]["memory_mib"]
        assert held == pytest.approx(side["memory_ratio"])
    # The composition keeps tensors that the kernels do not keep.
    memory = {name: side["memory_mib"] for name, side in found["sides"].items()}
    assert memory["composed"] > memory["observing"]
    text = speed.table([found])
    assert text.count("\n") == 2 + len(given.sides)


def test_a_peer_that_fails_is_named(
    given: argparse.Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(graph: object, images: object) -> object:
        raise RuntimeError("cannot do\nthis net")

    monkeypatch.setitem(speed.peers.PEERS, "fx", refuse)
    given.sides = ["float", "fx"]
    found = speed.measure("ssd_mobilenet", given)
    assert found["left_out"] == {"fx": "RuntimeError: cannot do this net"}
    assert "cannot do this net" in speed.table([found])


def test_a_side_without_its_base_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        speed.main(["--sides", "observing"])
    assert "measured against float" in capsys.readouterr().err


@pytest.mark.parametrize("name", NETS)
def test_every_layer_of_every_net_trains(name: str) -> None:
    _, detector = build(name, 64)
    norms = [m for m in detector.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms)
    assert all(p.requires_grad for p in detector.parameters())


def test_the_computed_cost_grows_with_the_logarithm_of_the_ranks() -> None:
    found = {"latency_s": 1e-3, "large_s": 1e-3 + 4 * 2**22 * 1e-9, "agree_bytes": 1000}
    assert ranks.computed_merge_s(found, 2) == pytest.approx(1.001e-3)
    assert ranks.computed_merge_s(found, 1024) == pytest.approx(
        10 * ranks.computed_merge_s(found, 2)
    )


def test_every_pass_can_be_measured() -> None:
    for _, work in kernels.passes().values():
        work()
