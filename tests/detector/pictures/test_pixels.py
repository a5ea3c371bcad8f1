"""Images of any numbers and channels as RGB, and normalized ones as they were."""

from __future__ import annotations

import mmcv
import numpy as np
import pytest
import torch

from dq.detector.pictures.pixels import LARGEST, as_rgb, denormalized, reduced

BGR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def test_channels() -> None:
    assert (as_rgb(BGR) == BGR[:, :, ::-1]).all()
    assert (as_rgb(BGR, is_rgb=True) == BGR).all()
    for gray in (BGR[:, :, 0], BGR[:, :, :1], BGR[:, :, :2]):
        assert (as_rgb(gray) == BGR[:, :, :1].repeat(3, axis=2)).all()
    six = np.concatenate([BGR, BGR], axis=2)
    assert (as_rgb(six) == BGR[:, :, ::-1]).all()


def test_numbers() -> None:
    assert (as_rgb(BGR.astype(np.uint16) * 257) == as_rgb(BGR)).all()
    assert (as_rgb(BGR.astype(np.float32)) == as_rgb(BGR)).all()
    assert as_rgb(BGR > 100).max() == 255
    wide = as_rgb(np.array([[[-1000.0, np.nan, np.inf]], [[5.0, 0.0, 3000.0]]]), is_rgb=True)
    assert (wide.min(), wide.max()) == (0, 255)
    assert as_rgb(np.zeros((2, 2), dtype=np.float64)).max() == 0


@pytest.mark.parametrize("to_rgb", [True, False])
def test_a_normalization_is_undone(to_rgb: bool) -> None:
    mean, std = np.array([123.0, 116.0, 103.0]), np.array([58.0, 57.0, 55.0])
    changed = mmcv.imnormalize(BGR, mean, std, to_rgb)
    image = torch.from_numpy(np.ascontiguousarray(changed.transpose(2, 0, 1)))
    norm = {"mean": mean, "std": std, "to_rgb": to_rgb}
    back = denormalized(image, {"img_norm_cfg": norm}).astype(int)
    assert np.abs(back - BGR[:, :, ::-1]).max() <= 1


def test_large_images_are_reduced() -> None:
    assert reduced(np.zeros((10, 2 * LARGEST, 3), dtype=np.uint8)).shape == (5, LARGEST, 3)
    assert reduced(np.zeros((1, 9000, 3), dtype=np.uint8)).shape == (1, LARGEST, 3)
    assert reduced(BGR) is BGR
