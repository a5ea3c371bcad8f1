"""The hook for mmcv's runner that shows a training as a bar in a terminal."""

from __future__ import annotations

from typing import Any

from mmcv.runner.hooks import Hook

from dq.progress import Pace, Piece, show


class ProgressHook(Hook):  # type: ignore[misc]
    """Show the epoch, the step, this rank's loss and the time left, a few times a second.

    The loss is copied from the device only when the bar is drawn, so training does not wait for it
    in each step. The time left includes evaluations at the pace of those so far.
    """

    def __init__(self) -> None:
        self._first = 0
        self._pace = Pace(None)

    def before_run(self, runner: Any) -> None:
        """Begin to measure the pace, at the step that a resumed training begins with."""
        self._first, self._pace = runner.iter, Pace(runner.max_iters - runner.iter)

    def after_train_iter(self, runner: Any) -> None:
        """Show this step if it is time."""
        if not self._pace.is_due():
            return
        done = runner.iter + 1
        epoch = f"epoch {runner.epoch + 1} of {runner.max_epochs}"
        loss = runner.outputs["log_vars"].get("loss")
        show(
            Piece(
                what=epoch if runner.counts_epochs else "training",
                done=done,
                total=runner.max_iters,
                unit="step[s]",
                left_s=self._pace.left_s(done - self._first),
                note="" if loss is None else f"loss {float(loss):.4g}",
            )
        )

    def after_run(self, runner: Any) -> None:
        """Remove the bar."""
        show(None)
