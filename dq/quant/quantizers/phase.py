"""Which of its two acts, observing and rounding, a quantizer performs at present."""

from __future__ import annotations

from enum import Enum

from torch import nn


class Phase(Enum):
    """State of every quantizer of a model, changed between steps and never inside one.

    OFF: the float model. CALIBRATE: observe, do not round (post-training calibration).
    OBSERVE: observe in training mode, do not round (the beginning of a training).
    TRAIN: round with the scale agreed so far and observe in training mode. FROZEN: round only.
    """

    OFF = "off"
    CALIBRATE = "calibrate"
    OBSERVE = "observe"
    TRAIN = "train"
    FROZEN = "frozen"

    @property
    def rounds(self) -> bool:
        """Whether values are rounded."""
        return self in (Phase.TRAIN, Phase.FROZEN)

    def observes(self, training: bool) -> bool:
        """Whether ranges are recorded, given the module's training flag."""
        if self is Phase.CALIBRATE:
            return True
        return training and self in (Phase.OBSERVE, Phase.TRAIN)


class Phased(nn.Module):
    """A module that behaves by its `phase`."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = Phase.OFF

    @property
    def phase(self) -> Phase:
        """Which acts it performs at present."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self.entered(phase)

    def entered(self, phase: Phase) -> None:
        """Make ready for a phase that was set; here nothing."""


def set_phase(module: nn.Module, phase: Phase) -> None:
    """Put every quantizer below ``module`` into ``phase``."""
    for child in module.modules():
        if isinstance(child, Phased):
            child.phase = phase
