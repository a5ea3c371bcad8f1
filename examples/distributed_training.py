"""Calibration and quantization-aware training on several ranks, in your own training loop.

One rank calibrates and all get its ranges. Batch norms are synchronized, and after each step all
ranks compute the same new ranges. The training is stopped in the middle, and a new model resumes
from the checkpoint: it ends with the same bits as a training that was not stopped.

    torchrun --standalone --nproc-per-node 2 examples/distributed_training.py

Started with plain python, the script starts these two ranks itself. It prints digests of weights
and ranges, and writes runs/examples/last.pth.
"""

from __future__ import annotations

import os
import subprocess
import sys

import torch
from torch import Tensor, nn

import dq.quant as dq
from dq.dist import (
    Environment,
    convert_sync_batch_norm,
    digest,
    load_checkpoint,
    on_main_rank,
    process_group,
    read_environment,
    save_checkpoint,
    unwrap,
    wrap,
)
from dq.sync import calibrate_on_one_rank, check_equal_on_ranks, merge_ranges_

STEPS, STOP_AFTER, CHECKPOINT = 8, 4, "runs/examples/last.pth"
DEVICE = torch.device("cpu")


def batch(step: int, rank: int) -> tuple[Tensor, Tensor]:
    """Return this rank's images (8, 3, 12, 12) of a step and their labels (8,)."""
    generator = torch.Generator().manual_seed(1000 * step + rank)
    labels = torch.randint(4, (8,), generator=generator)
    images = torch.randn(8, 3, 12, 12, generator=generator) + labels[:, None, None, None]
    return images, labels


class Training:
    """A quantized model in data-parallel training: calibrated, or resumed from a checkpoint."""

    def __init__(self, environment: Environment, *, resume: bool) -> None:
        self.rank = environment.rank
        torch.manual_seed(0)
        net = nn.Sequential(
            *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
        )
        self.model = dq.prepare(net, dq.preset("int8"), batch(0, self.rank)[0])
        # One rank reads the file, and all get its content.
        stored = on_main_rank(lambda: load_checkpoint(CHECKPOINT)) if resume else None
        if stored is None:
            # The other ranks do not wait in a collective, so this may take hours.
            images = [batch(-step, 0) for step in range(1, 5)]
            calibrate_on_one_rank(self.model.graph, lambda: dq.calibrate(self.model, images))
        else:
            self.model.load_state_dict(stored["model"])
        dq.set_phase(self.model, dq.Phase.TRAIN)
        convert_sync_batch_norm(self.model)
        self.parallel = wrap(self.model.train(), device=DEVICE)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.05, momentum=0.9)
        self.step = 0 if stored is None else int(stored["step"])
        if stored is not None:
            self.optimizer.load_state_dict(stored["optimizer"])

    def run_until(self, end: int) -> None:
        """Train up to this step; every rank computes on batches of its own."""
        quantizers = list(self.model.graph.activations().values())
        while self.step < end:
            images, labels = batch(self.step, self.rank)
            nn.functional.cross_entropy(self.parallel(images), labels).backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            merge_ranges_(quantizers)  # Instead of dq.update_ranges: one collective.
            self.step += 1

    def save(self) -> None:
        """Write the checkpoint on the main rank, whole or not at all; all ranks wait."""
        weights, optimizer = unwrap(self.parallel).state_dict(), self.optimizer.state_dict()
        content = {"model": weights, "optimizer": optimizer, "step": self.step}
        on_main_rank(lambda: save_checkpoint(CHECKPOINT, content))

    def digest(self) -> str:
        """Return a digest of all weights and ranges, after comparing the ranges of all ranks."""
        check_equal_on_ranks(self.model.graph, f"after step {self.step}")
        return digest(sorted(self.model.state_dict().items()))


def main() -> None:
    """Train once without a stop, once with one."""
    environment = read_environment()
    with process_group(environment, device=DEVICE):
        whole = Training(environment, resume=False)
        whole.run_until(STOP_AFTER)
        whole.save()
        whole.run_until(STEPS)
        resumed = Training(environment, resume=True)
        assert resumed.step == STOP_AFTER
        resumed.run_until(STEPS)
        one, other = whole.digest()[:16], resumed.digest()[:16]
        # In one piece, so that the lines of two ranks do not mix.
        print(f"rank {environment.rank}: {one} without a stop, {other} resumed\n", end="")
        assert one == other, "the resumed training differs"


if __name__ == "__main__":
    if "RANK" in os.environ:  # Started by torchrun.
        main()
    else:
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        sys.exit(subprocess.call([*start, "--nproc-per-node", "2", __file__]))
