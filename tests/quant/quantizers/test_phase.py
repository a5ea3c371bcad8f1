"""What each phase does, and that it reaches every quantizer and is put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dq.quant.quantizers.phase import Phase, Phased, set_phase
from dq.quant.quantizers.restore import in_phase, restored_state, undo_additions_on_error

# Phase: it fake-quantizes, it observes in training, it observes in evaluation.
WANTED = {
    Phase.OFF: (False, False, False),
    Phase.CALIBRATE: (False, True, True),
    Phase.OBSERVE: (False, True, False),
    Phase.TRAIN: (True, True, False),
    Phase.FROZEN: (True, False, False),
}


class Entering(Phased):
    """Remembers the phases that it entered."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Phase] = []

    def entered(self, phase: Phase) -> None:
        self.seen.append(phase)


def model() -> nn.Sequential:
    inner = nn.Sequential(Entering(), nn.BatchNorm2d(3))
    net = nn.Sequential(Entering(), inner, nn.Dropout())
    net[1][1].eval()  # A frozen norm in a model that trains.
    return net


def state(net: nn.Module) -> list[tuple[bool, Phase | None]]:
    return [(m.training, m.phase if isinstance(m, Phased) else None) for m in net.modules()]


@pytest.mark.parametrize("phase", Phase)
def test_what_a_phase_does(phase: Phase) -> None:
    assert (phase.quantizes, phase.observes(True), phase.observes(False)) == WANTED[phase]


def test_a_new_quantizer_is_off_and_set_phase_reaches_all() -> None:
    net = model()
    quantizers = [m for m in net.modules() if isinstance(m, Entering)]
    assert [q.phase for q in quantizers] == [Phase.OFF] * 2
    set_phase(net, Phase.TRAIN)
    assert [q.phase for q in quantizers] == [Phase.TRAIN] * 2
    assert [q.seen for q in quantizers] == [[Phase.TRAIN]] * 2


@pytest.mark.parametrize("training", [None, True, False])
def test_a_phase_holds_in_the_body_alone(training: bool | None) -> None:
    net = model()
    set_phase(net[0], Phase.OBSERVE)
    before = state(net)
    with in_phase(net, Phase.FROZEN, training=training):
        modes = [mode for mode, _ in state(net)]
        assert modes == ([m for m, _ in before] if training is None else [training] * len(modes))
        assert {phase for _, phase in state(net)} == {Phase.FROZEN, None}
    assert state(net) == before
    with pytest.raises(KeyError), in_phase(net, Phase.TRAIN, training=training):
        raise KeyError
    assert state(net) == before


@pytest.mark.parametrize("even_when_done", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_modes_are_restored_after_an_error_and_if_asked_after_success(
    even_when_done: bool, fails: bool
) -> None:
    net = model()
    before = state(net)
    try:
        with restored_state(net, even_when_done=even_when_done):
            net.eval()
            set_phase(net, Phase.CALIBRATE)
            changed = state(net)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert changed != before
    assert state(net) == (before if fails or even_when_done else changed)


@pytest.mark.parametrize("fails", [True, False])
def test_additions_are_undone_after_an_error_alone(fails: bool) -> None:
    net = model()
    names = [name for name, _ in net.named_modules()]
    buffers = [name for name, _ in net.named_buffers()]
    try:
        with undo_additions_on_error(net):
            net.add_module("new", nn.Identity())
            net[1].add_module("0", nn.ReLU())  # In place of another.
            net[1][1].register_buffer("more", torch.zeros(1))
            if fails:
                raise ValueError
    except ValueError:
        assert fails
    found = [name for name, _ in net.named_modules()]
    assert (found == names) is fails
    assert isinstance(net[1][0], Entering) is fails
    assert ([name for name, _ in net.named_buffers()] == buffers) is fails
    assert hasattr(net[1][1], "more") is not fails
