"""Evaluate several data sets as mmdet does: each on its own, or all as one."""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from mmdet.datasets import ConcatDataset

from dq.detector.data.leaves import set_name
from dq.detector.instance_methods import replace_method

log = logging.getLogger(__name__)
# mmdet prefixes a metric with the number of its set: ``1_bbox_mAP``.
NUMBER = re.compile(r"^(?:\d+_)+(?=\D)")


class EvaluatedSets(ConcatDataset):  # type: ignore[misc]
    """mmdet's ConcatDataset, but the parts may be nested, of any kind and without files.

    mmdet's own needs ``ann_file`` of each part, and uses the folder of the first part for all.

    Args:
        datasets: In test mode.
        separate_eval: Evaluate each set on its own; metric names then begin with the number of the
            set.
    """

    def evaluate(self, results: Sequence[Any], logger: Any = None, **kwargs: Any) -> dict[str, Any]:
        """Return mmdet's metrics.

        Args:
            results: Results of all sets, in order.
            logger: As for mmdet.
            kwargs: For each set's own metric.
        """
        assert len(results) == len(self), f"{len(results)} results for {len(self)}"
        if not self.separate_eval:
            return dict(self._as_one().evaluate(results, logger=logger, **kwargs))
        found: dict[str, Any] = {}
        begin = 0
        for number, part in enumerate(self.datasets):
            end = self.cumulative_sizes[number]
            log.debug("evaluating set %d, %s", number, set_name(part))
            metrics = part.evaluate(results[begin:end], logger=logger, **kwargs)
            found |= {f"{number}_{name}": value for name, value in metrics.items()}
            begin = end
        return found

    def _as_one(self) -> Any:
        """Return a data set of the same kind with the images and boxes of all parts."""
        one = copy.copy(self.datasets[0])
        one.data_infos = [info for part in self.datasets for info in part.data_infos]
        # Boxes are read from the original set, which knows its own folder.
        replace_method(one, "get_ann_info", self.get_ann_info)
        return one


def evaluated(dataset: Any) -> Any:
    """Return a built data set with `EvaluatedSets` in place of its concatenations.

    Raises:
        ValueError: A part has no metric.
    """
    if type(dataset) is ConcatDataset:
        parts = [evaluated(part) for part in dataset.datasets]
        return EvaluatedSets(parts, dataset.separate_eval)
    if not callable(getattr(dataset, "evaluate", None)):
        raise ValueError(
            f"{type(dataset).__name__} has no metric, so nothing can be evaluated on it; give it a"
            " method evaluate(results, ...), or evaluate on another data set"
        )
    return dataset


def save_best_on(dataset: Any, name: Any) -> Any:
    """Return ``evaluation.save_best`` as the metrics of a data set name it.

    If several sets are evaluated one by one, the first decides, as with mmdet's ``auto``.

    Args:
        dataset: Result of `evaluated`.
        name: The config's value: a metric, ``auto``, or nothing.
    """
    several = isinstance(dataset, EvaluatedSets) and dataset.separate_eval
    if not several or not isinstance(name, str) or name == "auto" or NUMBER.match(name):
        return name
    log.warning("evaluation.save_best=%s: of several data sets the first decides, 0_%s", name, name)
    return f"0_{name}"


def without_number(name: str) -> str:
    """Return the name of a metric without the number of its data set."""
    return NUMBER.sub("", name)


def grouped_by_set(names: Iterable[str]) -> list[list[str]]:
    """Return the names of metrics, grouped by data set, in order."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name[: len(name) - len(without_number(name))], []).append(name)
    return list(groups.values())
