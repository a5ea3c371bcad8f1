"""Read the data sections of a config, in any of mmdet's forms.

mmdet accepts a section, a list of sections, wrappers of one section (``dataset``) or several
(``datasets``), a section with several annotation files, and nestings of all these. All access to
``data.train``, ``data.val`` and ``data.test`` goes through this module.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmcv import Config, ConfigDict
from mmdet.datasets import DATASETS, CustomDataset

import dq.detector.data.voc_folder  # noqa: F401  (registers VOCFolderDataset)
from dq.detector.config.nested_sections import (
    from_outside_in,
    innermost,
    with_innermost,
    with_parts,
)
from dq.detector.data.leaves import loads_images
from dq.names import did_you_mean

log = logging.getLogger(__name__)

CONCAT, MIX = "ConcatDataset", "MultiImageMixDataset"
# They repeat or mix the images of a data set, so they cannot be evaluated.
RESAMPLING = ("RepeatDataset", "ClassBalancedDataset", MIX)
# Keys that may be lists if there is a list of annotation files.
LISTED = ("img_prefix", "seg_prefix", "proposal_file")
# The step that ends a pipeline, at any nesting level.
COLLECTING = "Collect"


def has_section(config: Config, split: str) -> bool:
    """Return whether the config has a ``data.<split>``."""
    return bool(config.data.get(split))


def section_of(config: Config, split: str) -> ConfigDict:
    """Return a copy of ``data.<split>``, with lists of sections and of files as wrappers.

    So the result nests in two ways only: ``dataset`` is one section, ``datasets`` are several.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        split: ``train``, ``val`` or ``test``.

    Raises:
        ValueError: It is missing, or not a section.
    """
    if not has_section(config, split):
        raise ValueError(
            f"the config has no data.{split} section; add data = dict({split}=dict(type=...))"
        )
    return _plain(copy.deepcopy(config.data[split]), f"data.{split}")


def _plain(section: Any, where: str) -> ConfigDict:
    if isinstance(section, list | tuple):
        if not section:
            raise ValueError(f"{where} is an empty list; name a data set")
        parts = [_plain(part, f"{where}.{number}") for number, part in enumerate(section)]
        return ConfigDict(type=CONCAT, datasets=parts)
    if not isinstance(section, Mapping):
        raise ValueError(f"{where} is {section!r}; give a dict(type=...) or a list of them")
    if not section.get("type"):
        raise ValueError(f"{where} has no type; add the name of a data set")
    found = ConfigDict(section)
    if isinstance(found.get("datasets"), list | tuple):
        found["datasets"] = _plain(found["datasets"], f"{where}.datasets")["datasets"]
    elif isinstance(found.get("dataset"), Mapping | list | tuple):
        found["dataset"] = _plain(found["dataset"], f"{where}.dataset")
    elif isinstance(found.get("ann_file"), list | tuple):
        return _split_by_file(found, where)
    else:
        # mmdet reads these itself; they are not arguments of the data set.
        for name in ("separate_eval", "samples_per_gpu", "workers_per_gpu"):
            found.pop(name, None)
        _check_innermost(found, where)
    return found


def _split_by_file(section: ConfigDict, where: str) -> ConfigDict:
    """Split a section with several annotation files into several sections, as mmdet does."""
    files = section["ann_file"]
    separate = section.pop("separate_eval", True)
    parts = []
    for number, file in enumerate(files):
        part = copy.deepcopy(section)
        part["ann_file"] = file
        for name in LISTED:
            values = section.get(name)
            if isinstance(values, list | tuple):
                if len(values) != len(files):
                    raise ValueError(
                        f"{where} has {len(files)} ann_file and {len(values)} {name}; give as many"
                        " of both, or one for all"
                    )
                part[name] = values[number]
        parts.append(_plain(part, where))
    if not parts:
        raise ValueError(f"{where}.ann_file is an empty list; name a file")
    return ConfigDict(type=CONCAT, datasets=parts, separate_eval=separate)


def _check_innermost(section: Mapping[str, Any], where: str) -> None:
    for name in LISTED:
        if isinstance(section.get(name), list | tuple):
            raise ValueError(f"{where}.{name} is a list and ann_file is not; make both lists")
    classes = section.get("classes")
    if isinstance(classes, str) and not Path(classes).is_file():
        raise ValueError(
            f"{where}.classes is {classes!r}, and there is no file of that name; a single class is"
            f" written classes=({classes!r},)"
        )


def image_sections(config: Config, split: str) -> list[ConfigDict]:
    """Return the innermost sections of ``data.<split>``; empty if the config has none."""
    return list(innermost(section_of(config, split))) if has_section(config, split) else []


def without_resampling(section: Mapping[str, Any]) -> ConfigDict:
    """Return the section without the wrappers that repeat or mix images."""
    if section["type"] in RESAMPLING and isinstance(section.get("dataset"), Mapping):
        return without_resampling(section["dataset"])
    return with_parts(section, without_resampling)


def steps(pipeline: Any, kind: str) -> Iterator[Mapping[str, Any]]:
    """Yield the steps of one type in a pipeline, from outside in, at any nesting level."""
    waiting = [pipeline]
    while waiting:
        here = waiting.pop(0)
        if isinstance(here, Mapping):
            if here.get("type") == kind:
                yield here
            waiting += list(here.values())
        elif isinstance(here, list | tuple):
            waiting += list(here)


def test_pipeline(config: Config) -> list[Any] | None:
    """Return the pipeline of the first test set with one, else of the first validation set.

    None if no set has one: a custom data set may have it built in.
    """
    for split in ("test", "val"):
        for section in image_sections(config, split):
            if section.get("pipeline"):
                return list(section["pipeline"])
    return None


def training_section(config: Config) -> ConfigDict:
    """Return ``data.train`` as training reads it."""

    def not_evaluated(part: ConfigDict) -> ConfigDict:
        found = with_parts(part, not_evaluated)
        # Evaluation settings do not matter here, and mmdet refuses some of them.
        found.pop("separate_eval", None)
        return found

    return not_evaluated(section_of(config, "train"))


def evaluation_section(config: Config, split: str) -> ConfigDict:
    """Return ``data.<split>`` as evaluation reads it: in test mode, each image once.

    Raises:
        ValueError: It mixes images, and there is no pipeline for single images.
    """
    section = section_of(config, split)
    plain = without_resampling(section)
    if plain != section:
        log.info("data.%s is evaluated image by image, nothing repeated or mixed", split)

    def tested(part: ConfigDict) -> ConfigDict:
        if next(steps(section, MIX), None) and not _collects(part.get("pipeline")):
            raise ValueError(
                f"data.{split} mixes images ({MIX}), on which nothing can be evaluated; give its"
                " innermost data set the test pipeline"
            )
        return _in_mode(part, test_mode=True)

    return with_innermost(plain, tested)


def _collects(pipeline: Any) -> bool:
    return next(steps(pipeline, COLLECTING), None) is not None


def validation_loss_section(config: Config) -> ConfigDict:
    """Return ``data.val`` for ``('val', 1)`` in the workflow: through the training pipeline.

    If training mixes images, so does this.

    Raises:
        ValueError: One of the two sections is missing.
    """
    *wrappers, section = from_outside_in(section_of(config, "train"))
    mixes = [wrapper for wrapper in wrappers if wrapper["type"] == MIX]

    def trained_on(part: ConfigDict) -> ConfigDict:
        found = _in_mode(part, test_mode=False)
        if section.get("pipeline"):
            found["pipeline"] = _loaded_as(section["pipeline"], part)
        return found

    found = with_innermost(without_resampling(section_of(config, "val")), trained_on)
    for mix in reversed(mixes):
        found = ConfigDict(mix, dataset=found)
    return found


def calibration_sections(config: Config) -> list[ConfigDict]:
    """Return each training set once, with the test pipeline.

    The images are still loaded as the training set stores them: its own loading steps replace those
    of the test pipeline if they differ.

    Raises:
        ValueError: ``data.train`` is missing.
    """
    pipeline = test_pipeline(config)
    found: list[ConfigDict] = []
    for section in innermost(section_of(config, "train")):
        # A class that only implements training samples uses them here too.
        part = _in_mode(section, test_mode=not _only_trains(section))
        part.pop("filter_empty_gt", None)
        if pipeline is not None and (section.get("pipeline") or _accepts(section, "pipeline")):
            part["pipeline"] = _loaded_as(pipeline, section)
        if part not in found:
            found.append(part)
    return found


def _loaded_as(pipeline: Sequence[Any], section: Mapping[str, Any]) -> list[Any]:
    """Return a pipeline that loads its images as the section's own pipeline does."""
    found = copy.deepcopy(list(pipeline))
    own = [step for step in section.get("pipeline") or () if _loads_images(step)]
    given = [step for step in found if _loads_images(step)]
    if not section.get("pipeline") or not given or (not own and not _only_trains(section)):
        return found
    rest = [step for step in found if not _loads_images(step)]
    if [step["type"] for step in own] != [step["type"] for step in given]:
        return [*copy.deepcopy(own), *rest]
    for step, mine in zip(given, own, strict=True):
        step.pop("file_client_args", None)
        if "file_client_args" in mine:
            step["file_client_args"] = copy.deepcopy(mine["file_client_args"])
    return found


def _loads_images(step: Any) -> bool:
    return isinstance(step, Mapping) and loads_images(str(step.get("type", "")))


def _in_mode(section: ConfigDict, *, test_mode: bool) -> ConfigDict:
    found = copy.deepcopy(section)
    if "test_mode" in found or _accepts(section, "test_mode"):
        found["test_mode"] = test_mode
    return found


def _accepts(section: Mapping[str, Any], name: str) -> bool:
    """Return whether the data set of a section takes an argument; mmdet's own always do."""
    kind = DATASETS.get(section["type"])
    if kind is None:
        return True
    parameters = inspect.signature(kind).parameters
    return name in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def _only_trains(section: Mapping[str, Any]) -> bool:
    """Return whether the class implements its own training samples, but no test samples."""
    kind: Any = DATASETS.get(section["type"])
    return (
        isinstance(kind, type)
        and issubclass(kind, CustomDataset)
        and not kind.__module__.startswith("mmdet.")
        and "prepare_train_img" in (own := _own_methods(kind))
        and "prepare_test_img" not in own
    )


def _own_methods(kind: type) -> set[str]:
    """Return the methods of mmdet's CustomDataset that a class overrides."""
    kinds = kind.__mro__[: kind.__mro__.index(CustomDataset)]
    return {name for each in kinds for name in vars(each)}


def configured_classes(section: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the class names of an innermost section without reading its annotations.

    Returns:
        The names by label; empty if only the built data set knows them.

    Raises:
        ValueError: There is no such data set.
    """
    kind = DATASETS.get(section["type"])
    if kind is None:
        known = did_you_mean(section["type"], DATASETS.module_dict)
        raise ValueError(f"{where}.type: there is no data set {section['type']}{known}")
    get_classes = getattr(kind, "get_classes", None)
    if get_classes is None:
        return tuple(section.get("classes") or getattr(kind, "CLASSES", None) or ())
    return tuple(kind.__new__(kind).get_classes(section.get("classes")) or ())


def annotation_files(section: Mapping[str, Any]) -> Iterator[Path]:
    """Yield the annotation files of all sets in a section; for Pascal VOC, also of each image."""
    for part in innermost(section):
        root = Path(part.get("data_root") or "")
        if not isinstance(part.get("ann_file"), str):
            continue
        path = root / part["ann_file"]
        yield path
        folder = root / (part.get("img_prefix") or ".") / part.get("ann_subdir", "Annotations")
        if path.suffix != ".json" and folder.is_dir():
            yield from (folder / f"{image}.xml" for image in path.read_text().split())
