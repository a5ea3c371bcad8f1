"""Twelve families of mmdet's configs the whole way, through files and processes of their own."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from launcher.coverage.families import chains
from launcher.coverage.processes import Limits
from launcher.coverage.row import HAS_NOT, STEPS, TIES, WHOLE, YES, Row

pytestmark = pytest.mark.slow

FAMILIES = ("faster_rcnn", "mask_rcnn", "cascade_rcnn", "ssd", "retinanet", "fcos", "atss", "gfl",
            "yolo", "yolox", "centernet", "detr")  # fmt: skip
# Whose boxes are decoded in ONNX.
DECODED = {"ssd", "retinanet", "fcos", "atss", "gfl", "yolo", "yolox"}
PARTLY = {"detr"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Row]:
    folder = tmp_path_factory.mktemp("families")
    return dict(chains(FAMILIES, folder, Limits(seconds=400.0, mib=6000), jobs=2))


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("family", FAMILIES)
def test_family_goes_the_whole_way(rows: Mapping[str, Row], family: str) -> None:
    row = rows[family]
    assert row.result == WHOLE, row
    decoded = YES if family in DECODED else HAS_NOT
    ended = {"boxes": decoded, "nms": decoded, "onnxruntime": row.steps["onnxruntime"]}
    assert row.steps == {step: ended.get(step, YES) for step in STEPS}
    # A net of chance weights gives many boxes one score, which come in another order then.
    assert row.steps["onnxruntime"] in ((YES, TIES) if family in DECODED else (YES,))
    assert row.quantizers > 40
    assert row.quantized == ("partly float" if family in PARTLY else "OK")
