"""Build the data sets of a config, and data loaders for calibration and evaluation."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from mmcv import Config, ConfigDict
from mmcv.parallel import collate
from mmdet.datasets import ConcatDataset, CustomDataset, build_dataset
from mmdet.datasets.pipelines import LoadAnnotations
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from dq.detector.config.known_types import check_data_types
from dq.detector.config.nested_sections import innermost
from dq.detector.config.registry_errors import explain
from dq.detector.data.checks.images import inspect
from dq.detector.data.class_names import class_list, set_classes_
from dq.detector.data.data_section import (
    annotation_files,
    calibration_sections,
    evaluation_section,
    section_of,
    training_section,
    validation_loss_section,
)
from dq.detector.data.evaluated_sets import evaluated
from dq.detector.data.leaves import classes_of, leaves
from dq.detector.data.loader_options import evaluation_workers
from dq.detector.data.seeded_samples import generators_kept, seed_generators_
from dq.detector.data.storage import check_storage
from dq.detector.data.wrapped_classes import add_get_cat_ids
from dq.dist.exchange import collectives

log = logging.getLogger(__name__)


def dataset_of(config: Config, split: str, *, test_mode: bool = False, quiet: bool = False) -> Any:
    """Build the data set of ``data.<split>``, in any of mmdet's forms, and check it for defects.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        split: ``train``, ``val`` or ``test``.
        test_mode: For evaluation: each image once, without its boxes.
        quiet: Log nothing but errors.

    Raises:
        ValueError: The section, a file or folder is missing, or the annotations do not fit.
    """
    section = evaluation_section(config, split) if test_mode else _trained_on(config, split)
    dataset = _built(section, split)
    set_classes_(dataset, class_list(config).names)
    inspect(dataset, split, quiet=quiet)
    classes_of(dataset, split)
    if not test_mode:
        return dataset
    _refuse_annotations(dataset, split)
    return evaluated(dataset)


def _refuse_annotations(dataset: Any, split: str) -> None:
    """Raise ValueError if a test pipeline reads boxes, which mmdet does not pass to it."""
    for leaf in leaves(dataset):
        prepare = getattr(type(leaf), "prepare_test_img", None)
        steps = getattr(getattr(leaf, "pipeline", None), "transforms", ())
        if prepare is CustomDataset.prepare_test_img and any(
            type(step) is LoadAnnotations for step in steps
        ):
            raise ValueError(
                f"data.{split}: its pipeline has LoadAnnotations, as for training; an evaluation"
                " reads images alone, so use mmdet's test pipeline (MultiScaleFlipAug) there"
            )


def validation_loss_dataset(config: Config) -> Any:
    """Build ``data.val`` for the losses of ``('val', 1)`` in the workflow.

    Raises:
        ValueError: As `dataset_of`.
    """
    dataset = _built(validation_loss_section(config), "val")
    set_classes_(dataset, class_list(config).names)
    inspect(dataset, "val")
    return dataset


def _trained_on(config: Config, split: str) -> ConfigDict:
    return training_section(config) if split == "train" else section_of(config, split)


def _built(section: Mapping[str, Any], split: str) -> Any:
    add_get_cat_ids()
    check_data_types(section, f"data.{split}")
    for part in innermost(section):
        check_storage(part, split)
    try:
        # pycocotools prints its progress.
        with contextlib.redirect_stdout(io.StringIO()):
            return build_dataset(copy.deepcopy(section))
    except FileNotFoundError as error:
        raise ValueError(
            f"data.{split}: {error.filename or error} does not exist; set the data set's folder,"
            " e.g. --cfg-options data_root=DIR if the config has it, or"
            f" data.{split}.img_prefix and data.{split}.ann_file"
        ) from error
    except (
        KeyError,
        TypeError,
        AssertionError,
        AttributeError,
        ImportError,
        IndexError,
        NotImplementedError,
        OSError,
        ValueError,
        SyntaxError,
    ) as error:
        raise ValueError(f"data.{split} cannot be built: {explain(error)}") from error


def check_evaluation(config: Config) -> None:
    """Raise ValueError if ``data.test`` cannot be evaluated.

    Call it before training, so that the error does not come after it.
    """
    evaluation_workers(config, "test")
    dataset_of(config, "test", test_mode=True, quiet=True)


def test_classes(config: Config) -> tuple[str, ...]:
    """Return the class names by label, as `dq.detector.data.class_names.class_list` finds them.

    Raises:
        ValueError: No section of the data has any.
    """
    return class_list(config).names


def evaluation_loader(dataset: Any, *, workers: int) -> DataLoader[Any]:
    """Return a data loader of this rank's images: one per batch, each image on exactly one rank.

    mmdet also tests with batches of one image. So no result depends on how the images are
    distributed over ranks. Rank ``r`` of ``n`` takes images ``r, r + n, ...``.
    """
    rank, world_size = collectives.rank(), collectives.world_size()
    share: Subset[Any] = Subset(dataset, range(rank, len(dataset), world_size))
    return DataLoader(
        share, batch_size=1, num_workers=workers, collate_fn=partial(collate, samples_per_gpu=1)
    )


def calibration_dataset(config: Config) -> Any:
    """Return the training images with the test pipeline, as in inference.

    Returns:
        A data set; for several training sets, mmdet's concatenation of them.
    """
    parts = [_built(section, "train") for section in calibration_sections(config)]
    for part in parts:
        set_classes_(part, class_list(config).names)
        inspect(part, "train")
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def calibration_images(
    dataset: Any, *, num_images: int, batch_size: int, seed: int
) -> Iterator[Tensor]:
    """Yield batches of preprocessed images drawn without replacement.

    Several data sets take turns, so that each has an equal share until its images run out. Images
    of different sizes (aspect ratio is kept) go into separate batches.

    Args:
        dataset: Result of `calibration_dataset`.
        num_images: How many; all images if there are fewer.
        batch_size: Maximum number of images per batch.
        seed: Decides which images.

    Yields:
        Tensors ``(N, C, H, W)``, float32, on the CPU.
    """
    waiting: dict[tuple[int, ...], list[Tensor]] = {}
    for place, index in enumerate(interleaved(dataset, seed)[:num_images]):
        with generators_kept():
            # A pipeline or a custom data set may use random numbers.
            seed_generators_(seed, 0, place)
            image = _image_of(dataset[index])
        batch = waiting.setdefault(tuple(image.shape), [])
        batch.append(image)
        if len(batch) == batch_size:
            yield torch.stack(waiting.pop(tuple(image.shape)))
    for batch in waiting.values():
        yield torch.stack(batch)


def interleaved(dataset: Any, seed: int) -> list[int]:
    """Return all indices, shuffled; the parts of a concatenation take turns."""
    generator = np.random.default_rng(seed)
    ends = list(dataset.cumulative_sizes) if isinstance(dataset, ConcatDataset) else [len(dataset)]
    orders = [
        begin + generator.permutation(end - begin)
        for begin, end in zip([0, *ends], ends, strict=False)
    ]
    turns = np.concatenate([np.arange(len(order)) for order in orders])
    # Stable: within a turn the parts keep their order.
    return [int(i) for i in np.concatenate(orders)[np.argsort(turns, kind="stable")]]


def _image_of(sample: Any) -> Tensor:
    """Return the image in a sample of the test pipeline (a list of augmented views, or one)."""
    image = sample["img"]
    if isinstance(image, list):
        image = image[0]
    image = getattr(image, "data", image)
    assert isinstance(image, Tensor)
    return image


def dataset_digest(config: Config, split: str = "train") -> str | None:
    """Return a SHA-256 over the annotation files of a split, or None if they cannot be read.

    For Pascal VOC, the file of each image is read in the order of the image list.
    """
    digest, number = hashlib.sha256(), 0
    try:
        for path in annotation_files(section_of(config, split)):
            number += 1
            # An image may have no annotation; the listed files exist.
            digest.update(path.read_bytes() if path.suffix != ".xml" or path.is_file() else b"")
    except (OSError, ValueError, KeyError, TypeError, UnicodeDecodeError):
        return None
    return digest.hexdigest() if number else None
