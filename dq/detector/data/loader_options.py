"""What a config may say about loading training images."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields
from typing import Any

from mmcv import Config

from dq.names import check_keys

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoaderOptions:
    """A config's ``data.train_dataloader``: mmdet's arguments and those of torch's loader.

    Attributes:
        samples_per_gpu: Images in a micro-batch.
        workers_per_gpu: Loader processes of each rank; 0 loads in the rank's own process, and
            then none of what concerns processes matters.
        shuffle: Else images come in the data set's order, whatever their aspect ratio.
        class_aware_sampler: mmdet's, with ``num_sample_class``; None for the usual order.
        persistent_workers: Keep processes from epoch to epoch.
        prefetch_factor: Micro-batches that each process has ready; None for torch's choice.
        pin_memory: As in torch.
        timeout: Seconds to wait for a batch; 0 for ever.
        multiprocessing_context: How processes start; None for Python's choice.
        opencv_num_threads: The config's, of each loader process.
        drop_last: Changes nothing: a last batch is filled up, never small.
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
            check_keys(self.class_aware_sampler, ["num_sample_class"], where)

    @classmethod
    def of(cls, config: Config) -> LoaderOptions:
        """Read them from a config.

        Raises:
            ValueError: One is unknown or cannot be.
        """
        given = dict(config.data.get("train_dataloader") or {})
        known = [field.name for field in fields(cls) if field.name != "opencv_num_threads"]
        check_keys(given, known, "data.train_dataloader")
        return cls(**given, opencv_num_threads=config.get("opencv_num_threads") or 0)

    def of_torch(self) -> dict[str, Any]:
        """Return what concerns torch's loader, less what needs processes where there are none."""
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
    """Return how many loader processes each rank has where ``data.<split>`` is evaluated.

    Of the other settings of ``data.<split>_dataloader`` none changes a result: images come one a
    batch, in their order.

    Raises:
        ValueError: A setting is unknown or cannot be.
    """
    name = f"data.{split}_dataloader"
    given = dict(config.data.get(f"{split}_dataloader") or {})
    check_keys(given, [field.name for field in fields(LoaderOptions)], name)
    if given.get("shuffle") or given.get("class_aware_sampler"):
        raise ValueError(f"{name} shuffles, and results are compared in order; leave that out")
    if given.get("samples_per_gpu", 1) != 1:
        log.info("%s.samples_per_gpu: images are evaluated one by one all the same", name)
    workers = given.get("workers_per_gpu", 1)
    if not isinstance(workers, int) or isinstance(workers, bool) or workers < 0:
        raise ValueError(f"{name}.workers_per_gpu is {workers!r}; give a number from 0 up")
    return workers
