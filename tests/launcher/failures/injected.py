"""Raise an unexpected error instead of calling a function of the launcher.

Processes that import it read ``$DQ_INJECT`` (``MODULE:NAME``), ``$DQ_INJECT_RANK`` (the only rank
that fails) and ``$DQ_INJECT_LATE`` (seconds by which all ranks except the main rank fail later).
"""

from __future__ import annotations

import importlib
import os
import time
from typing import Any, NoReturn

# A function that each command calls early, and further arguments of the command.
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "train": ("launcher.stages.float_training:dataset_of", ("CONFIG",)),
    "calibrate": ("launcher.stages.calibration:read_checkpoint", ("CONFIG", "--checkpoint", "x")),
    "quantize": (
        "launcher.stages.recipe_search:read_checkpoint",
        ("CONFIG", "--checkpoint", "x", "--max-drop", "1"),
    ),
    "qat": ("launcher.stages.quantized_training:read_checkpoint", ("CONFIG", "--checkpoint", "x")),
    "eval": ("launcher.stages.evaluation:read_checkpoint", ("CONFIG", "--checkpoint", "x")),
    "analyze": ("launcher.stages.analysis:read_checkpoint", ("CONFIG", "--checkpoint", "x")),
    "export": ("launcher.stages.export:read_checkpoint", ("CONFIG", "--checkpoint", "x")),
    "bench": ("dq.quant.verify.onnxruntime_session:load_model", ("MODEL.onnx",)),
    "run": ("launcher.stages.float_training:dataset_of", ("CONFIG",)),
    "init": ("dq.data.formats.registry:read_folder", ("photos",)),
    "data": ("dq.data.voc:fetch_voc", ("voc2007",)),
    "coverage": ("launcher.coverage.families:chains", ("--families", "ssd")),
    "compare": ("dq.tracking.reports.experiments:find_experiments", ()),
    "show": ("launcher.stages.showing:shown", ("CONFIG",)),
    "watch": ("dq.tracking.live.state:reader_of", ("w",)),
    "sync": ("dq.tracking.wandb_copy.send_offline:pending_runs", ()),
    "submit": ("launcher.commands.cluster.submit:read_profile", ("train", "CONFIG")),
    "jobs": ("slurm.record:chains", ()),
    "logs": ("slurm.record:chains", ("1",)),
    "cancel": ("slurm.record:chains", ("1",)),
    "configs": ("dq.shipped:shipped", ()),
    "completion": ("shtab:complete", ("bash",)),
    "doctor": ("dq.detector.doctor.examine:examine", ()),
}


def fail(*_: Any, **__: Any) -> NoReturn:
    if _rank not in (None, "0"):
        time.sleep(float(os.environ.get("DQ_INJECT_LATE", "0")))
    raise ZeroDivisionError("injected\nfault")


def inject(place: str) -> None:
    module, name = place.split(":")
    setattr(importlib.import_module(module), name, fail)


_rank = os.environ.get("RANK")
if "DQ_INJECT" in os.environ and os.environ.get("DQ_INJECT_RANK", _rank) == _rank:
    inject(os.environ["DQ_INJECT"])
