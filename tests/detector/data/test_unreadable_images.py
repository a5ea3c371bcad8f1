"""What a loading transform could not read is named: the image, or what fails beside a good one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from dq.detector.data.unreadable_images import BadImageError, name_bad_images


class LoadLabels:
    """Fails as mmdet does for a mask that is None, and for an image that OpenCV cannot decode."""

    def __call__(self, results: Any) -> Any:
        return None["counts"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("image", "TypeError: 'NoneType' object is not subscriptable"),
        ("text", "it is not an image"),
        (None, "it is not an image"),
    ],
)
def test_only_what_cannot_be_decoded_is_no_image(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    path = tmp_path / "a.png"
    if content == "image":
        assert cv2.imwrite(str(path), np.zeros((4, 4, 3), np.uint8))
    elif content is not None:
        path.write_text(content)
    leaf = SimpleNamespace(pipeline=SimpleNamespace(transforms=[LoadLabels()]))
    name_bad_images(leaf)
    sample = {"img_info": {"filename": "a.png"}, "img_prefix": str(tmp_path)}
    with pytest.raises(BadImageError) as caught:
        leaf.pipeline.transforms[0](sample)
    assert caught.value.image == (str(path), reason)
