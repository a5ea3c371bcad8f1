"""Data sets of a config, and loaders of them for calibration and evaluation."""

from __future__ import annotations

import copy
import hashlib
import logging
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv import Config
from mmcv.parallel import collate
from mmdet.datasets import build_dataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

import dq.detector.voc_folder  # noqa: F401  (registers VOCFolderDataset)
from dq.detector.build import explain
from dq.detector.classes import class_list, settle_classes_
from dq.detector.inspect import inspect
from dq.dist import collectives

log = logging.getLogger(__name__)


def dataset_of(config: Config, split: str, **overrides: Any) -> Any:
    """Build the data set of ``data.<split>``, checked for defects.

    Args:
        config: As `dq.detector.config.finish` returns it.
        split: ``train``, ``val`` or ``test``.
        overrides: Arguments for the data set, such as ``test_mode=True``.

    Raises:
        ValueError: The section, a file or folder is missing, or the annotations do not fit.
    """
    if split not in config.data:
        raise ValueError(f"the config has no data.{split} section")
    section = copy.deepcopy(config.data[split])
    try:
        dataset = build_dataset(section, overrides or None)
    except FileNotFoundError as error:
        raise ValueError(
            f"data.{split}: {error.filename or error} does not exist; set the data set's folder,"
            " e.g. --cfg-options data_root=DIR where the config has it, or"
            f" data.{split}.img_prefix and data.{split}.ann_file"
        ) from error
    except (KeyError, TypeError, AssertionError, ValueError, SyntaxError) as error:
        raise ValueError(f"data.{split} cannot be built: {explain(error)}") from error
    settle_classes_(dataset, class_list(config).names if "test" in config.data else None)
    inspect(dataset, split)
    return dataset


def test_classes(config: Config) -> tuple[str, ...]:
    """Return the class names by label, as `dq.detector.classes.class_list` finds them.

    Raises:
        ValueError: There is no test section or data set, or it has no classes.
    """
    return class_list(config).names


def evaluation_loader(dataset: Any, *, workers: int) -> DataLoader[Any]:
    """Return a loader of this rank's images, one image a batch, each image on exactly one rank.

    Batches of one image are mmdet's own way of testing, and make every result independent of
    how the images are shared out. Rank ``r`` of ``n`` takes images ``r, r + n, ...``.
    """
    rank, world_size = collectives.rank(), collectives.world_size()
    share: Subset[Any] = Subset(dataset, range(rank, len(dataset), world_size))
    return DataLoader(
        share, batch_size=1, num_workers=workers, collate_fn=partial(collate, samples_per_gpu=1)
    )


def calibration_dataset(config: Config) -> Any:
    """Return the training images as they will look in use: through the test pipeline."""
    section = copy.deepcopy(config.data.train)
    while "dataset" in section:
        section = section.dataset
    if isinstance(section, list | tuple):
        section = section[0]
    section.pipeline = copy.deepcopy(config.data.test.pipeline)
    section.test_mode = True
    section.pop("filter_empty_gt", None)
    changed = Config({"data": {"train": section}})
    return dataset_of(changed, "train")


def calibration_images(
    dataset: Dataset[Any], *, num_images: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Yield batches of preprocessed images drawn without replacement.

    Images of unequal size (aspect kept) make batches of their own.

    Args:
        dataset: As `calibration_dataset` returns it.
        num_images: How many; all where there are fewer.
        batch_size: Images a batch at most.
        seed: Decides which images.

    Yields:
        Tensors ``(N, 3, H, W)``, float32, on the CPU.
    """
    total = len(dataset)  # type: ignore[arg-type]
    chosen = np.random.default_rng(seed).permutation(total)[:num_images]
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    for index in chosen:
        image = _image_of(dataset[int(index)])
        batch = waiting.setdefault(tuple(image.shape), [])
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(waiting.pop(tuple(image.shape)))
    for batch in waiting.values():
        yield torch.stack(batch)


def _image_of(sample: Any) -> Tensor:
    """Return the image in a sample of the test pipeline (a list of augmented views, or one)."""
    image = sample["img"]
    if isinstance(image, list):
        image = image[0]
    image = getattr(image, "data", image)
    assert isinstance(image, Tensor)
    return image


def dataset_digest(config: Config) -> str | None:
    """Return a SHA-256 over the training annotations' files, None where they cannot be read.

    Files in Pascal VOC's layout are read one by one in the order of the image list.
    """
    digest = hashlib.sha256()
    try:
        section = config.data.train
        while "dataset" in section:
            section = section["dataset"]
        files = section["ann_file"]
        for name in files if isinstance(files, list | tuple) else [files]:
            content = Path(name).read_bytes()
            digest.update(content)
            folder = Path(
                section.get("img_prefix") or ".", section.get("ann_subdir", "Annotations")
            )
            if not str(name).endswith(".json") and folder.is_dir():
                for image in content.decode().split():
                    path = folder / f"{image}.xml"
                    digest.update(path.read_bytes() if path.is_file() else b"")
    except (OSError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
        return None
    return digest.hexdigest()
