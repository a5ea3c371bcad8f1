"""Sample pictures of an evaluation: one for each image, whatever the images are called."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from dq.tracking.pictures.predictions import Picture, Predictions
from launcher.stage.evidence import _drawn


def test_images_of_one_name_have_a_sample_each(tmp_path: Path) -> None:
    pictures = []
    for number, name in enumerate(("day/1.png", "night/1.png", "night/2.png", "night/1.bmp")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (50 * number, 0, 0)).save(path)
        pictures.append(Picture(name=path.name, path=str(path), truth=[], found=[], reference=[]))
    pictures.append(Picture(name="1.png", path="gone/1.png", truth=[], found=[], reference=[]))
    predictions = Predictions(classes=["cat"], pictures=pictures)
    files = _drawn(predictions, 5, tmp_path / "samples", "int8")
    assert [path.name for path in files] == ["1.jpg", "1_2.jpg", "2.jpg", "1_3.jpg"]
    assert len({path.read_bytes() for path in files}) == 4
