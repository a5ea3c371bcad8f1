"""Measure the speed of ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from dq.error_text import error_text
from dq.quant.latency.engine import Executed
from dq.quant.verify.onnxruntime_session import ENGINE, INTEGER_LAYERS, LAYERS, open_session

_EVENT = "_kernel_time"


class OnnxRuntime:
    """Opens models with ONNX Runtime's default settings; see `dq.quant.latency.engine.Engine`."""

    def open(self, model: onnx.ModelProto, *, threads: int) -> OnnxRuntimeNetwork:
        """Return the model, ready to run on this number of threads.

        Raises:
            ValueError: ONNX Runtime cannot run it.
            OSError: The disk of the folder for temporary files is full.
        """
        return OnnxRuntimeNetwork(model, threads=threads, profile=False)

    def profiled(self, model: onnx.ModelProto, *, threads: int) -> OnnxRuntimeNetwork:
        """Return the model, ready to run with a timer for each node; see `open`."""
        return OnnxRuntimeNetwork(model, threads=threads, profile=True)

    def __str__(self) -> str:
        return str(ENGINE)


class OnnxRuntimeNetwork:
    """A model in a session; see `dq.quant.latency.engine.ProfiledNetwork`.

    Attributes:
        nodes: The executed nodes, after all optimizations.
    """

    def __init__(self, model: onnx.ModelProto, *, threads: int, profile: bool) -> None:
        self.num_runs = 0
        # The session writes two files here: the optimized model and the profile.
        self.folder = tempfile.TemporaryDirectory()
        folder = Path(self.folder.name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_profiling = profile
        options.profile_file_prefix = str(folder / "profile")
        # Threads that spin while they wait for the next run would slow down the other models.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self.session, self.nodes = open_session(model, options, folder)
        except (MemoryError, OSError):
            raise
        except Exception as error:  # Each kind of failure has its own exception class.
            reason = error_text(error)[:200]
            raise ValueError(f"ONNX Runtime cannot run it: {reason}") from error
        self.inputs = [given.name for given in self.session.get_inputs()]
        self.num_integer = sum(node.op_type in INTEGER_LAYERS for node in self.nodes)
        self.num_float = sum(node.op_type in LAYERS for node in self.nodes)

    def compute(self, arrays: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Return all outputs in order, for all inputs in order."""
        self.num_runs += 1
        found: Sequence[NDArray[np.float32]] = self.session.run(
            None, dict(zip(self.inputs, arrays, strict=True))
        )
        return found

    def executed(self) -> list[Executed]:
        """Return all nodes with their times in the runs so far, and end the measurement."""
        events = json.loads(Path(self.session.end_profiling()).read_text())
        times: dict[str, list[float]] = {}
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith(_EVENT):
                times.setdefault(event["name"].removesuffix(_EVENT), []).append(event["dur"] / 1000)
        makers = {name: place for place, n in enumerate(self.nodes) for name in n.output if name}
        return [
            Executed(
                operator=node.op_type,
                names=" ".join([node.name, *node.output]),
                after=tuple(makers[name] for name in node.input if name in makers),
                ms=self._ms(times.get(node.name, [])),
                is_integer=node.op_type in INTEGER_LAYERS,
            )
            for node in self.nodes
        ]

    def _ms(self, times: list[float]) -> float:
        """Return a node's time in one run; in a loop it runs more than once."""
        if not times:
            return 0.0
        return statistics.median(times) * len(times) / max(1, self.num_runs)


TIMED = OnnxRuntime()
