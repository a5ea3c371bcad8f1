"""The phase of a quantizer: whether it observes, fake-quantizes, or both."""

from __future__ import annotations

from enum import Enum

from torch import nn


class Phase(Enum):
    """The state of all quantizers of a model, changed between steps only.

    OFF: the float model. CALIBRATE: observe only (post-training calibration).
    OBSERVE: observe in training mode (the beginning of a training).
    TRAIN: fake-quantize with the present scale, and observe in training mode.
    FROZEN: fake-quantize only.
    """

    OFF = "off"
    CALIBRATE = "calibrate"
    OBSERVE = "observe"
    TRAIN = "train"
    FROZEN = "frozen"

    @property
    def quantizes(self) -> bool:
        """Whether values are fake-quantized."""
        return self in (Phase.TRAIN, Phase.FROZEN)

    def observes(self, training: bool) -> bool:
        """Whether ranges are observed, given the module's training flag."""
        if self is Phase.CALIBRATE:
            return True
        return training and self in (Phase.OBSERVE, Phase.TRAIN)


class Phased(nn.Module):
    """A module whose behaviour depends on its `phase`."""

    def __init__(self) -> None:
        super().__init__()
        self._phase = Phase.OFF

    @property
    def phase(self) -> Phase:
        """The present phase."""
        return self._phase

    @phase.setter
    def phase(self, phase: Phase) -> None:
        self._phase = phase
        self.entered(phase)

    def entered(self, phase: Phase) -> None:
        """Prepare for the phase that was set; nothing to do here."""


def set_phase(module: nn.Module, phase: Phase) -> None:
    """Put every quantizer below ``module`` into ``phase``."""
    for child in module.modules():
        if isinstance(child, Phased):
            child.phase = phase
