"""How fast a candidate's exported model is beside the float detector."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from mmcv import Config
from torch import nn

from dq.detector.engines.latency import measured
from dq.detector.export.write import ExportFormat, export_detector, image_size
from dq.dist.errors.disk import explain_disk
from dq.dist.work.on_main_rank import on_main_rank
from dq.quant.graph.quantized_graph import QuantizedGraph

log = logging.getLogger(__name__)


def times_as_fast(
    config: Config, detector: nn.Module, graph: QuantizedGraph, engine: str
) -> float | None:
    """Export a detector, time it in an engine and return its speed relative to float.

    Every rank must call it; the main rank works, with one thread.

    Args:
        config: Says the size of the images.
        detector: On the CPU, in evaluation mode.
        graph: Its graph, FROZEN.
        engine: A key of `dq.engines.ENGINES`.

    Returns:
        The median of several measurements; None if the detector cannot be exported or the engine
        cannot run it.
    """

    def write(folder: Path) -> Path | None:
        try:
            form = ExportFormat(kind="onnx-qdq", size=image_size(config, None))
            files = export_detector(
                detector, graph, folder, name="candidate", form=form, metadata={}
            )
        except (ValueError, OSError) as error:  # Such as a full folder for temporary files.
            log.info("not timed: %s", explain_disk(error) or error)
            return None
        return files[0]

    with tempfile.TemporaryDirectory() as folder:
        model = on_main_rank(lambda: write(Path(folder)))
        found = None if model is None else measured(model, engine, lambda latency: None)
    if isinstance(found, str):
        log.info("not timed: %s", found)
    return None if found is None or isinstance(found, str) else found.times_as_fast.median
