"""Data loader options of a config."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mmcv import Config

from dq.dist.exchange import collectives
from dq.field_types import check_fields, check_value
from dq.names import check_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """A config's ``data.train_dataloader``: arguments of mmdet and of torch's DataLoader.

    Attributes:
        samples_per_gpu: Images in a micro-batch.
        workers_per_gpu: Worker processes of each rank; 0 loads in the rank's own process, and then
            the options of worker processes have no effect.
        shuffle: If False, images come in the data set's order, regardless of aspect ratio.
        class_aware_sampler: mmdet's, with ``num_sample_class``; None for the usual order.
        persistent_workers: Keep worker processes between epochs.
        prefetch_factor: Micro-batches that each worker process prefetches; None for torch's
            default.
        pin_memory: As in torch.
        timeout: Seconds to wait for a batch; 0 waits forever.
        multiprocessing_context: How worker processes start; None for Python's default.
        opencv_num_threads: The config's value, for each worker process.
        drop_last: Has no effect: the last batch is always filled up.
    """

    samples_per_gpu: int = 2
    workers_per_gpu: int = 2
    shuffle: bool = True
    class_aware_sampler: dict[str, Any] | None = None
    persistent_workers: bool = False
    prefetch_factor: int | None = None
    pin_memory: bool = False
    timeout: float = 0
    multiprocessing_context: str | None = None
    drop_last: bool = False
    opencv_num_threads: int = 0

    def __post_init__(self) -> None:
        smallest = {"samples_per_gpu": 1, "workers_per_gpu": 0, "prefetch_factor": 1, "timeout": 0}
        for name, least in smallest.items():
            value = getattr(self, name)
            kind = int | float if name == "timeout" else int
            if name == "prefetch_factor" and value is None:
                continue
            if not isinstance(value, kind) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"data.train_dataloader.{name} is {value!r}; give a number from {least} up"
                )
        if self.class_aware_sampler is not None:
            where = "data.train_dataloader.class_aware_sampler"
            if not isinstance(self.class_aware_sampler, Mapping):
                raise ValueError(
                    f"{where} is {self.class_aware_sampler!r}; use dict(num_sample_class=1)"
                )
            check_keys(self.class_aware_sampler, ["num_sample_class"], where)
            for name, value in self.class_aware_sampler.items():
                check_value(f"{where}.{name}", value, int)
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        check_fields(given, LoaderOptions, "data.train_dataloader")

    @classmethod
    def of(cls, config: Config) -> LoaderOptions:
        """Read the options from a config.

        Raises:
            ValueError: An option is unknown or invalid.
        """
        given = dict(config.data.get("train_dataloader") or {})
        known = [field.name for field in fields(cls) if field.name != "opencv_num_threads"]
        check_keys(given, known, "data.train_dataloader")
        return cls(**given, opencv_num_threads=config.get("opencv_num_threads") or 0)

    def of_torch(self) -> dict[str, Any]:
        """Return the arguments of torch's DataLoader, with 0 workers only those allowed."""
        chosen: dict[str, Any] = {
            "num_workers": self.workers_per_gpu,
            "pin_memory": self.pin_memory,
        }
        if self.workers_per_gpu:
            chosen["persistent_workers"] = self.persistent_workers
            chosen["prefetch_factor"] = self.prefetch_factor
            chosen["timeout"] = self.timeout
            chosen["multiprocessing_context"] = self.multiprocessing_context
        return chosen


def evaluation_workers(config: Config, split: str) -> int:
    """Return the number of worker processes per rank for evaluation of ``data.<split>``.

    No other setting of ``data.<split>_dataloader`` changes a result: images come in order, one per
    batch.

    Raises:
        ValueError: A setting is unknown or invalid.
    """
    name = f"data.{split}_dataloader"
    given = dict(config.data.get(f"{split}_dataloader") or {})
    check_keys(given, [field.name for field in fields(LoaderOptions)], name)
    workers = given.get("workers_per_gpu", 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f"{name}.workers_per_gpu is {workers!r}; give a number from 0 up")
    check_fields(given, LoaderOptions, name)
    if given.get("shuffle") or given.get("class_aware_sampler"):
        raise ValueError(f"{name} shuffles, and results are compared in order; leave that out")
    if given.get("samples_per_gpu", 1) != 1:
        log.info("%s.samples_per_gpu has no effect: each image is evaluated alone", name)
    return workers


def images_per_step(config: Config) -> int:
    """Return the number of images of a training step over all ranks.

    Args:
        config: Complete, of the training.
    """
    accumulate = int(config.get("accumulate", 1))
    return LoaderOptions.of(config).samples_per_gpu * collectives.world_size() * accumulate
