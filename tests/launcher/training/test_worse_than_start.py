"""A quantized training that makes its detector worse warns early and at its end."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from dq.dist.files.checkpoint import load_checkpoint
from tests.launcher.conftest import Launch, write_untrained

pytestmark = pytest.mark.slow
Result = tuple[int, str, str]
# A hundred times the usual learning rate of this detector.
CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=['tests.launcher.training.first_result'], allow_failed_imports=False)
data = dict(
    val=dict(type='FirstResultDataset', reference={reference!r} + '.val'),
    test=dict(type='FirstResultDataset', reference={reference!r} + '.test'))
log_config = dict(interval=50)
optimizer_config = dict(_delete_=True)
quant = dict(training={{'optimizer.lr': {rate}, 'runner.max_epochs': 2}})
lr_config = dict(_delete_=True, policy='fixed')
guards = dict({guards})
"""


@pytest.fixture
def checkpoint(config: Path, tmp_path: Path) -> Path:
    return write_untrained(config, tmp_path / "float.pth")


def qat(launch: Launch, path: Path, checkpoint: Path, folder: Path, *more: str) -> Result:
    words = ("qat", path, "--checkpoint", checkpoint, "--work-dir", folder, "--threads", 1)
    return launch(*words, *more)


def write(config: Path, folder: Path, rate: float, guards: str = "") -> Path:
    path = folder / "worse.py"
    reference = str(folder / "reference")
    path.write_text(CONFIG.format(base=str(config), reference=reference, rate=rate, guards=guards))
    return path


def test_it_warns_keeps_the_start_as_the_best_and_says_so_at_its_end(
    launch: Launch, config: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path = write(config, tmp_path, 0.4)
    code, out, err = qat(launch, path, checkpoint, tmp_path / "w")
    assert code == 0, err
    assert "the start, before the first step: mAP 100.00 %" in out
    # Each epoch is logged, although it has fewer steps than the interval.
    assert re.search(r"Epoch \[1\]\[6/6\].*loss: ", out)
    assert re.search(r"Epoch \[2\]\[6/6\].*loss: ", out)
    assert re.search(
        r"step \d+: the weights of \S+ have moved by \S+ times their norm .* lower optimizer.lr",
        out,
    )
    assert re.search(r"after epoch 1 mAP is \S+ %, \S+ points below the start \(100.00 %\)", out)
    assert re.search(r"one step at a learning rate of 0.4 moves the weights of \S+ by", out)
    assert re.search(
        r"^warning: the last evaluation of qat was \S+ points below its start; the result is"
        r" best_mAP_epoch_0.pth, the last step is in last.pth",
        err,
    )
    folder = tmp_path / "w/qat"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["start"] == pytest.approx(1.0)
    # The result is the start, and the last step is kept.
    assert (summary["value"], summary["chosen"]) == (1.0, "best_mAP_epoch_0.pth")
    assert summary["last_drop"] > 0.01
    begun = load_checkpoint(checkpoint)["state_dict"]
    result = load_checkpoint(folder / "qat.pth")
    assert all(torch.equal(result["state_dict"][name], value) for name, value in begun.items())
    last = load_checkpoint(folder / "last.pth")
    assert any(not torch.equal(last["state_dict"][name], value) for name, value in begun.items())
    assert [p.name for p in folder.glob("best_*.pth")] == ["best_mAP_epoch_0.pth"]
    best = load_checkpoint(folder / "best_mAP_epoch_0.pth")
    begun = load_checkpoint(checkpoint)["state_dict"]
    assert all(torch.equal(best["state_dict"][name], value) for name, value in begun.items())
    assert "quantization" in best
    # A command that finds the stage done warns again, and fails if the guard asks for it.
    (tmp_path / "worse.py").write_text(path.read_text() + "guards = dict(worse='stop')\n")
    code, _, err = qat(launch, path, checkpoint, tmp_path / "w", "--reuse")
    assert code == 1
    assert "below its start" in err


ENDS = {
    "runaway='stop'": "one step at a learning rate of 0.4 moves",
    "runaway='stop', max_update=1e9": "the weights of .* have moved",
    "worse='stop', runaway='off'": "after epoch 1 mAP is",
}


@pytest.mark.parametrize("guards", ENDS)
def test_a_guard_ends_it(
    guards: str, launch: Launch, config: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path = write(config, tmp_path, 0.4, guards)
    code, _, err = qat(launch, path, checkpoint, tmp_path / "w")
    assert code == 1
    assert re.search(rf"^error: .*{ENDS[guards]}.*lower optimizer.lr", err), err
    assert len(err.strip().splitlines()) == 1
    # The trial of a step comes before anything is written.
    begun = (tmp_path / "w/qat/best_mAP_epoch_0.pth").exists()
    assert begun == ("one step" not in ENDS[guards])


def test_a_training_that_stays_near_its_start_says_nothing(
    launch: Launch, config: Path, checkpoint: Path, tmp_path: Path
) -> None:
    path = write(config, tmp_path, 0.0)
    code, out, err = qat(launch, path, checkpoint, tmp_path / "w")
    assert code == 0, err
    assert "have moved" not in out
    # Its ranges still change a little.
    assert "points below the start" not in out
    assert "warning" not in err
