"""Which differences between the peers' rows may be chance."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from benchmarks.ptq_peers import chance
from benchmarks.ptq_peers.chance import main, together
from dq.tracking.record.matches import Matches
from dq.tracking.reports.bootstrap import mean_precisions

IMAGES = 8


def matches(names: str, wrong: int) -> Matches:
    """Return one detection in each image, of which the first ones are wrong."""
    image = np.arange(IMAGES, dtype=np.int32)
    hit = np.ones((IMAGES, 1), bool)
    hit[:wrong] = False
    return Matches(
        image=image,
        label=np.zeros(IMAGES, np.int32),
        score=np.linspace(0.9, 0.1, IMAGES, dtype=np.float32),
        hit=hit,
        counted=np.ones((IMAGES, 1), bool),
        annotations=np.ones((IMAGES, 1), np.int32),
        names=np.array([f"{names}{i}" for i in image]),
    )


class FakeDetector:
    """A detector whose files say how many detections are wrong."""

    def __init__(self, config: Path, *_: object, **__: object) -> None:
        self.names = config.parent.name

    def matches(self, path: Path) -> Matches:
        return matches(self.names, int(path.read_text()))


def test_each_row_is_compared_with_ours_on_all_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(chance, "Detector", FakeDetector)
    outs = [tmp_path / "even", tmp_path / "odd"]
    for out in outs:
        for part in ("rows", "files"):
            (out / part).mkdir(parents=True)
        for name, wrong in (("ours", 2), ("same", 2), ("bad", 8), ("failed", 0)):
            row = {"title": f"the {name}", **({} if name == "failed" else {"value": 1 - wrong / 8})}
            (out / f"rows/{name}.json").write_text(json.dumps(row))
            (out / f"files/{name}.onnx").write_text(str(wrong))
    words = [*map(str, outs), "--checkpoint", "float.pth", "--write", str(tmp_path / "page.md")]
    assert main(words) == 0
    lines = (tmp_path / "page.md").read_text().splitlines()[2:-2]
    heads, _, same, bad = [[part.strip() for part in line.split("|")[1:-1]] for line in lines]
    assert heads == ["minus the ours", "even", "odd", "together"]
    assert same == ["the same", *["+0.00 points (+0.00 to +0.00), within chance"] * 3]
    assert bad[0] == "the bad"
    assert all(cell.startswith("-") and "chance" not in cell for cell in bad[1:])
    # The matches are kept: a second call evaluates nothing.
    monkeypatch.setattr(chance, "Detector", None)
    capsys.readouterr()
    assert main(words) == 0
    assert capsys.readouterr().out.strip().splitlines() == lines
    # A row that was made again is evaluated again.
    for out in outs:
        (out / "files/bad.onnx").write_text("2")
        later = (out / "matches/bad/matches.npz").stat().st_mtime + 10
        os.utime(out / "files/bad.onnx", (later, later))
    monkeypatch.setattr(chance, "Detector", FakeDetector)
    assert main(words) == 0
    assert "| the bad | +0.00 points" in capsys.readouterr().out
    assert main([*words, "--rows", "same"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()) == 3
    (outs[0] / "rows/ours.json").unlink()
    assert main(words) == 1
    assert "no row 'ours' is evaluated" in capsys.readouterr().err


def test_two_evaluations_together_are_one_of_all_images() -> None:
    both = together([matches("even", 2), matches("odd", 4)])
    assert both.image.tolist() == [part * IMAGES + i for i in range(IMAGES) for part in (0, 1)]
    assert (np.diff(both.score) <= 0).all()
    kept = (np.arange(2 * IMAGES) < IMAGES).astype(float)
    first, last, all_of_them = mean_precisions(
        both, np.stack([kept, 1 - kept, np.ones(2 * IMAGES)])
    )
    assert mean_precisions(matches("even", 2), np.ones((1, IMAGES))) == first
    assert mean_precisions(matches("odd", 4), np.ones((1, IMAGES))) == last
    assert last < all_of_them < first
