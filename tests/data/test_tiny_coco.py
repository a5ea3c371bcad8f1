"""The tiny set in COCO's format: complete, and the same each time."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools.coco import COCO

from dq.data.tiny_coco import CLASSES, NUM_IMAGES, SPLITS, write_tiny_coco


def test_everything_that_a_detector_needs_exists(tmp_path: Path) -> None:
    folder = write_tiny_coco(tmp_path, image_size=96)
    for split in SPLITS:
        coco = COCO(str(folder / f"{split}.json"))
        assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == list(CLASSES)
        assert len(coco.getImgIds()) == NUM_IMAGES
        proposals = pickle.loads((folder / f"{split}_proposals.pkl").read_bytes())
        for image, boxes in zip(coco.loadImgs(coco.getImgIds()), proposals, strict=True):
            assert Image.open(folder / "images" / image["file_name"]).size == (96, 96)
            shown = np.asarray(Image.open(folder / "maps" / image["file_name"]))
            found = coco.loadAnns(coco.getAnnIds(image["id"]))
            assert found
            assert len(np.unique(shown)) > 1
            for annotation in found:
                x, y, width, height = annotation["bbox"]
                assert 0 <= x < x + width <= 96
                assert 0 <= y < y + height <= 96
                mask = coco.annToMask(annotation)
                assert 0.5 * width * height < mask.sum() < width * height
                assert shown[y + height // 2, x + width // 2] > 0
            assert boxes.shape[1] == 5
            assert (boxes[:, :4] >= 0).all()
            assert (boxes[:, 2:4] > boxes[:, :2]).all()


def test_the_same_seed_draws_the_same(tmp_path: Path) -> None:
    one, two = (write_tiny_coco(tmp_path / name, seed=5) for name in "ab")
    other = write_tiny_coco(tmp_path / "c", seed=6)
    texts = [json.loads((folder / "train.json").read_text()) for folder in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]
