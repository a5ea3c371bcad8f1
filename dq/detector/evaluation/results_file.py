"""Write test results as mmdet's tools do: pickled, in a benchmark's format, drawn on images."""

from __future__ import annotations

import inspect
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mmcv
import torch
from mmcv.image import tensor2imgs
from torch import nn

from dq.detector.config.registry_errors import explain
from dq.detector.data.leaves import leaves
from dq.detector.evaluation.drawing_paths import drawing_paths, inside
from dq.detector.metrics.mmdet_metrics import metrics_of_mmdet
from dq.detector.metrics.results import own_copy
from dq.error_text import with_type
from dq.whole_file import drafts

log = logging.getLogger(__name__)
ENDINGS = (".pkl", ".pickle")


def check_results_file(path: Path) -> None:
    """Raise ValueError if results cannot be written to such a file."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"--out {path} must end with {' or '.join(ENDINGS)}")


def write_results(path: Path, results: Sequence[Any]) -> None:
    """Write results for mmdet's ``tools/analysis_tools``, with masks as COCO's RLE."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with drafts(path) as (draft,):
        mmcv.dump(list(results), str(draft), file_format="pkl")


def check_format(dataset: Any) -> None:
    """Raise ValueError if a data set, or one inside it, has no ``format_results``."""
    for leaf in leaves(dataset):
        _prefix_of(leaf)


def format_results(
    dataset: Any, results: Sequence[Any], folder: Path, settings: Mapping[str, Any]
) -> list[Path]:
    """Write results in the format of the data set's benchmark, and return the files.

    Each data set writes into an empty folder first, so these are its files alone. They replace
    files of the same names.

    Args:
        dataset: The evaluated data set; the parts of a concatenation write one set of files each,
            with their number in the name.
        results: Results of all images, in order.
        folder: Folder for the files, unless the settings contain a prefix (``jsonfile_prefix``,
            ``txtfile_prefix``).
        settings: Arguments of the data set's ``format_results``. Each part of a concatenation adds
            its number to a prefix, as none may replace the files of another.

    Raises:
        ValueError: The data set has no such format or settings.
    """
    parts, begin = list(leaves(dataset)), 0
    files: list[Path] = []
    for number, leaf in enumerate(parts):
        own = list(results[begin : begin + len(leaf)])
        begin += len(leaf)
        key = _prefix_of(leaf)
        prefix = settings.get(key) or str(folder / "results")
        if not isinstance(prefix, str):
            raise ValueError(
                f"{key} is {prefix!r}; give DIR/NAME, the beginning of the files' names"
            )
        goal, name = os.path.split(prefix if len(parts) == 1 else f"{prefix}_{number}")
        Path(goal).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=goal or ".", prefix=".format-") as new:
            arguments = {**settings, key: os.path.join(new, name)}
            try:
                with metrics_of_mmdet():
                    leaf.format_results(own_copy(own), **arguments)
            except (KeyError, TypeError, AssertionError, ImportError) as error:
                raise ValueError(f"{type(leaf).__name__}: {explain(error)}") from error
            files += _moved(Path(new), Path(goal))
    return sorted(set(files))


def _moved(source: Path, goal: Path) -> list[Path]:
    """Move all files of a folder, and return their new paths."""
    files = [path for path in source.rglob("*") if path.is_file()]
    moved = [goal / path.relative_to(source) for path in files]
    for path, new in zip(files, moved, strict=True):
        new.parent.mkdir(parents=True, exist_ok=True)
        path.replace(new)
    return moved


def _prefix_of(leaf: Any) -> str:
    """Return the name of the argument of ``format_results`` for the path of the files."""
    known = inspect.signature(getattr(leaf, "format_results", len)).parameters
    found = next((name for name in known if name.endswith("_prefix")), None)
    if found is None:
        raise ValueError(f"{type(leaf).__name__} has no format of results")
    return found


class Painter:
    """Draws detections on the images, as mmdet's ``--show-dir`` does.

    Args:
        detector: Its ``show_result`` draws them.
        dataset: Provides the colours of its classes, if it has any.
        folder: Folder for the images, with their own names; see `drawing_paths`.
        lowest_score: Boxes with a lower score are not drawn.
    """

    def __init__(
        self, detector: nn.Module, dataset: Any, folder: Path, lowest_score: float
    ) -> None:
        self.detector: Any = detector
        self.colors = getattr(dataset, "PALETTE", None)
        self.folder, self.lowest_score = folder, lowest_score
        self.fails = False
        self._paths = {} if dataset is None else drawing_paths(dataset)

    def __call__(self, batch: Mapping[str, Any], results: list[Any]) -> None:
        """Draw a batch of one image; a failure is one line in the log."""
        if self.fails:
            return
        try:
            for result in results:
                self._paint(batch, result)
        except Exception as error:
            self.fails = True
            log.warning("no images are painted: %s", with_type(explain(error), error))

    def _paint(self, batch: Mapping[str, Any], result: Any) -> None:
        images, metas = batch["img"][0], batch["img_metas"][0]
        meta = metas[0]
        assert isinstance(images, torch.Tensor)
        image = tensor2imgs(images, **meta["img_norm_cfg"])[0]
        height, width = meta["img_shape"][:2]
        image = mmcv.imresize(image[:height, :width], meta["ori_shape"][:2][::-1])
        colors = {f"{part}_color": self.colors for part in ("bbox", "text", "mask")}
        known = inspect.signature(self.detector.show_result).parameters
        more = colors if "bbox_color" in known else {}
        if "score_thr" in known:
            more["score_thr"] = self.lowest_score
        name = meta["ori_filename"]
        path = self._paths.get(str(Path(meta.get("filename") or name)), inside(name))
        file = str(self.folder / path)
        self.detector.show_result(image, result, show=False, out_file=file, **more)
