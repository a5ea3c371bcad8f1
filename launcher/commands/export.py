"""``launcher export``: write a quantized checkpoint for integer engines."""

from __future__ import annotations

import argparse
from dataclasses import asdict, is_dataclass
from pathlib import Path

from dq.formats import FORMATS
from launcher.command_line.arguments import add_bench, add_checkpoint, add_common

HELP = "export a quantized checkpoint: QDQ ONNX, TIDL's ONNX, or integers for torch"
DECODINGS = ("none", "boxes", "nms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    add_checkpoint(parser, what="calibrated or QAT", required=True)
    parser.add_argument(
        "--format",
        choices=tuple(FORMATS),
        default="onnx-qdq",
        help="what to write (default onnx-qdq)",
    )
    parser.add_argument(
        "--decode",
        choices=DECODINGS,
        default="none",
        help="outputs of the ONNX model: the head's outputs (none, default), boxes and scores of"
        " all priors (boxes), or final detections after non-maximum suppression (nms)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="size of the images (default: the test pipeline's); the batch size is free",
    )
    parser.add_argument(
        "--opset",
        type=int,
        metavar="N",
        help="opset of ONNX (default 18, or 21 if 4-bit or 16-bit integers need it)",
    )
    add_bench(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the stage, print where the files lie and how fast they are; return the exit code."""
    if arguments.decode != "none" and FORMATS[arguments.format].module is None:
        raise ValueError(
            f"--decode is for ONNX; {arguments.format} holds the network's integers alone"
        )
    from launcher.plan import begin_plan
    from launcher.report import say_speed
    from launcher.session import session
    from launcher.stages.export import exported, exported_latency

    with session(arguments) as place:
        paths = exported(
            begin_plan(arguments),
            place,
            Path(arguments.checkpoint),
            kind=arguments.format,
            size=tuple(arguments.size) if arguments.size else None,
            opset=arguments.opset,
            decode=arguments.decode,
            trusted=arguments.trust_checkpoint,
        )
        if place.environment.is_main:
            for path in paths:
                print(f"export: {path} ({path.stat().st_size / 2**20:.2f} MiB)", flush=True)
        place.results["files"] = [str(path) for path in paths]
        if arguments.bench and arguments.format == "onnx-qdq":
            latency = exported_latency(paths[0])
            say_speed(place, paths[0], latency)
            place.results["latency"] = asdict(latency) if is_dataclass(latency) else latency
    return 0
