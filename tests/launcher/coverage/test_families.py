"""Five families of mmdet's configs pass all steps, each step in a separate process.

`launcher coverage` does this with all families.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

import pytest

from launcher.coverage.row import HAS_NOT, STEPS, TIES, WHOLE, YES, Row
from launcher.coverage.table import rows_of
from tests.launcher.conftest import ROOT

pytestmark = pytest.mark.slow

# Masks after RoIs, anchors, SiLU, peaks of a map, attention.
FAMILIES = ("mask_rcnn", "retinanet", "yolox", "centernet", "detr")
# Families with box decoding in ONNX.
DECODED = {"retinanet", "yolox"}
PARTLY = {"detr"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Row]:
    """The rows of the command's table; the command runs in a process, as users run it."""
    table = tmp_path_factory.mktemp("families") / "coverage.md"
    words = ["coverage", "--families", ",".join(FAMILIES), "--out", str(table), "--jobs", "2"]
    subprocess.run(
        [sys.executable, "-m", "launcher", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    return rows_of(table.read_text())


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_goes_the_whole_way(rows: Mapping[str, Row], family: str) -> None:
    row = rows[family]
    assert row.result == WHOLE, row
    decoded = YES if family in DECODED else HAS_NOT
    ended = {"boxes": decoded, "nms": decoded, "onnxruntime": row.steps["onnxruntime"]}
    assert row.steps == {step: ended.get(step, YES) for step in STEPS}
    # With random weights many boxes have the same score, so their order may differ.
    assert row.steps["onnxruntime"] in ((YES, TIES) if family in DECODED else (YES,))
    assert row.quantizers > 40
    assert row.quantized == ("partly float" if family in PARTLY else "OK")
