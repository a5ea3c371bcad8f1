"""Calibrate the candidates of a search and measure them, over all ranks.

Each candidate is calibrated on one rank, several candidates at once on several ranks. Then all
ranks measure one after the other. Results are kept in files, so a search that was interrupted
continues where it stopped.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from mmcv import Config
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.calibration.calibrate import calibration_of, calls_of_roi_heads
from dq.detector.engines.latency import engine_of_target
from dq.detector.engines.measurement import measure
from dq.detector.evaluation.evaluate import as_share, main_metric
from dq.detector.model.checkpoint_content import compose
from dq.detector.model.graph import quantize_detector
from dq.detector.model.stored_detector import StoredDetector, float_detector, stored_detector
from dq.detector.search.speed import times_as_fast
from dq.dist.exchange import collectives
from dq.dist.files.checkpoint import load_checkpoint, save_checkpoint
from dq.dist.work.all_here import wait_for_all_ranks
from dq.dist.work.on_main_rank import on_main_rank
from dq.dist.work.on_one_rank import run_on_rank
from dq.quant.analysis.sensitivity import Calls
from dq.quant.analysis.statistics import model_bytes
from dq.quant.graph.per_channel.channel_scales import scaled_names
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.ptq.repairs import first_images
from dq.quant.quantizers.phase import Phase, set_phase
from dq.quant.recipes.recipe import RAISED_BITS
from dq.quant.search.candidate import Candidate
from dq.sync import sensitivities_over_ranks
from dq.tracking.record.json_file import json_text
from dq.tracking.record.stage_summary import key_of
from dq.whole_file import write_whole

log = logging.getLogger(__name__)

# Images for the ranking of quantizers, as many as `launcher analyze` uses.
SENSITIVITY_IMAGES = 8
_FLOAT = "float"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What all trials of a search have in common.

    Attributes:
        config: Result of `dq.detector.config.read.finish`.
        content: Of the float checkpoint.
        source: Its name, for messages.
        device: Of this rank.
        batches: Returns the images for calibration, as batches ``(N, C, H, W)`` on the CPU.
        dataset: What is measured on, in test mode.
        begin: Called before each trial; seeds all random generators, so that the order of the
            trials does not matter.
        key: Digest of all this; a result is used again only under the same key.
        folder: For results; it is created.
    """

    config: Config
    content: Mapping[str, Any]
    source: str
    device: torch.device
    batches: Callable[[], Iterable[Tensor]]
    dataset: Any
    begin: Callable[[], None]
    key: str
    folder: Path


class Trials:
    """The trials of one search; every rank must call each method.

    Args:
        setting: Of all trials.
        metric: Name of the metric to compare; None for the data set's main one.

    Raises:
        ValueError: The data set has no such metric, or it is 0 for the float detector.

    Attributes:
        metric: Its name.
        float_value: Of the float detector, 0 to 1.
    """

    def __init__(self, setting: Setting, metric: str | None) -> None:
        self._setting = setting
        on_main_rank(lambda: setting.folder.mkdir(parents=True, exist_ok=True))
        key = key_of(setting.key)[:16]
        kept = self._kept(f"{_FLOAT}.{key}")
        if kept is None:
            kept = self._measured(self._float_detector(), None)
            self._keep(f"{_FLOAT}.{key}", kept)
        self.metric = metric or main_metric(kept)[0]
        if self.metric not in kept:
            raise ValueError(f"there is no metric {self.metric}; there are {', '.join(kept)}")
        self.float_value = as_share(self.metric, kept[self.metric])
        if self.float_value <= 0:
            # Every candidate would lose nothing.
            raise ValueError(
                f"the float detector's {self.metric} is {100 * self.float_value:.2f} % on the"
                f" {counted(len(setting.dataset), 'image[s]')} of the search, so nothing can be"
                f" lost; check that {setting.source} is trained for these images, or choose"
                " another --metric"
                f" ({', '.join(name for name, value in kept.items() if value > 0) or 'all are 0'})"
            )
        log.info("float: %s %.2f %%", self.metric, 100 * self.float_value)

    def path(self, candidate: Candidate) -> Path:
        """Return the path of a candidate's checkpoint."""
        return self._setting.folder / f"{self._key(candidate)}.pth"

    def values(self, candidates: Sequence[Candidate]) -> list[float]:
        """Calibrate the candidates and return their metrics, 0 to 1."""
        self._calibrate([one for one in candidates if self._kept(self._key(one)) is None])
        return [self._value(self._metrics(one)) for one in candidates]

    def stored(self, candidate: Candidate, device: torch.device | None = None) -> StoredDetector:
        """Return a calibrated candidate as its checkpoint has it.

        Args:
            candidate: Whose checkpoint has not been removed.
            device: Of the detector; None for that of the search.
        """
        path = self.path(candidate)
        content = on_main_rank(lambda: load_checkpoint(path))
        device = device or self._setting.device
        return stored_detector(self._setting.config, content, str(path), device)

    def num_bytes(self, candidate: Candidate) -> int:
        """Return the size of a measured candidate's weights."""
        return int(self._metrics(candidate)["bytes"])

    def ranking(self, candidate: Candidate) -> list[str]:
        """Return the names of a candidate's quantizers below 16 bits, the most sensitive first."""
        path = self._setting.folder / f"{self._key(candidate)}.ranking.json"
        kept = _read(path)
        if kept is not None:
            return [str(name) for name in kept]
        log.info("%s: measuring the sensitivity of its quantizers", candidate.name)
        stored, device = self.stored(candidate), self._setting.device
        graph = stored.graph
        assert graph is not None

        def inputs() -> tuple[list[Tensor], Calls]:
            batches = first_images(self._setting.batches(), SENSITIVITY_IMAGES)
            few = [batch.to(device) for batch in batches]
            return few, calls_of_roi_heads(stored.detector, graph, few)

        few, parts = run_on_rank(inputs) or ([], {})
        found = sensitivities_over_ranks(graph, few, parts)
        names = [one.name for one in found if one.bits < RAISED_BITS]
        on_main_rank(lambda: write_whole(path, json_text(names)))
        return names

    def speed(self, candidate: Candidate) -> float | None:
        """Return how many times as fast as float a measured candidate is, if it can be timed."""
        engine = engine_of_target(candidate.recipe.target)
        if engine is None:
            return None
        name = f"{self._key(candidate)}.speed"
        kept = self._kept(name)
        if kept is None:
            stored = self.stored(candidate, torch.device("cpu"))
            stored.detector.eval()  # Not chained: for mmdet's distilling detectors it returns None.
            detector, graph = stored.detector, stored.graph
            assert graph is not None
            found = times_as_fast(self._setting.config, detector, graph, engine)
            kept = {} if found is None else {engine: found}
            self._keep(name, kept)
        return kept.get(engine)

    def remove_checkpoints(self, *, but: Candidate) -> None:
        """Delete the checkpoints of all other candidates; the results stay."""

        def work() -> None:
            for path in self._setting.folder.glob("*.pth*"):
                if not path.name.startswith(self.path(but).name):
                    path.unlink(missing_ok=True)

        on_main_rank(work)

    def _key(self, candidate: Candidate) -> str:
        return key_of(self._setting.key, candidate.recipe, candidate.repair)[:16]

    def _calibrate(self, candidates: Sequence[Candidate]) -> None:
        """Calibrate candidates and write their checkpoints, as many at once as there are ranks."""
        paths = [self.path(one) for one in candidates]
        there: list[bool] = on_main_rank(lambda: [path.is_file() for path in paths])
        missing = [one for one, done in zip(candidates, there, strict=True) if not done]
        world_size, rank = collectives.world_size(), collectives.rank()
        for begin in range(0, len(missing), world_size):
            together = missing[begin : begin + world_size]
            mine = self._calibrated(together[rank]) if rank < len(together) else None
            # A calibration may take longer than a collective is allowed to.
            wait_for_all_ranks(f"candidates {begin + 1} to {begin + len(together)}")
            for source, candidate in enumerate(together):
                # The ranks may have no file system in common.
                self._save(candidate, collectives.broadcast_object(mine, source=source))

    def _save(self, candidate: Candidate, content: dict[str, Any]) -> None:
        path = self.path(candidate)
        on_main_rank(lambda: save_checkpoint(path, content))

    def _calibrated(self, candidate: Candidate) -> dict[str, Any]:
        setting = self._setting
        setting.begin()
        detector = self._float_detector()
        graph = quantize_detector(detector, candidate.recipe)
        began = time.monotonic()
        calibration = calibration_of(
            detector,
            graph,
            setting.device,
            weight_range=candidate.recipe.weight_range,
            repair=candidate.repair,
        )
        calibration.find_ranges_(setting.batches())
        calibration.finish_()
        log.info("%s: calibrated in %.0f s", candidate.name, time.monotonic() - began)
        set_phase(graph.quantizers, Phase.FROZEN)
        recipe = replace(candidate.recipe, scaled=scaled_names(graph))
        return compose(
            detector,
            graph=graph,
            recipe=recipe,
            meta={"stage": candidate.name},
            originals=calibration.originals(),
        )

    def _metrics(self, candidate: Candidate) -> dict[str, float]:
        key = self._key(candidate)
        kept = self._kept(key)
        if kept is None:
            began = time.monotonic()
            stored = self.stored(candidate)
            assert stored.graph is not None
            kept = self._measured(stored.detector, stored.graph)
            kept |= {"bytes": float(model_bytes(stored.detector, stored.graph))}
            self._keep(key, kept)
            value = self._value(kept)
            log.info(
                "%s: %s %.2f %%, %.2f points below float; measured in %.0f s",
                candidate.name,
                self.metric,
                100 * value,
                100 * (self.float_value - value),
                time.monotonic() - began,
            )
        return kept

    def _value(self, metrics: Mapping[str, float]) -> float:
        # A detector that finds nothing may have no entry.
        return as_share(self.metric, metrics.get(self.metric, 0.0))

    def _float_detector(self) -> nn.Module:
        setting = self._setting
        return float_detector(setting.config, setting.content, setting.source, setting.device)

    def _measured(self, detector: nn.Module, graph: QuantizedGraph | None) -> dict[str, float]:
        setting = self._setting
        return measure(
            setting.config, detector, graph, setting.device, dataset=setting.dataset
        ).metrics

    def _kept(self, name: str) -> dict[str, float] | None:
        found: dict[str, float] | None = _read(self._setting.folder / f"{name}.json")
        return found

    def _keep(self, name: str, metrics: Mapping[str, float]) -> None:
        path = self._setting.folder / f"{name}.json"
        on_main_rank(lambda: write_whole(path, json_text(metrics)))


def _read(path: Path) -> Any:
    """Return what a JSON file has, None if there is no such file; on all ranks."""
    return on_main_rank(lambda: json.loads(path.read_text()) if path.is_file() else None)
