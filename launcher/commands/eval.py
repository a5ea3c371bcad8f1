"""``launcher eval``: evaluate a checkpoint, quantized or float, or an exported model."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dq.engines import ENGINES, engine_named
from launcher.command_line.arguments import add_bench, add_checkpoint, add_common
from launcher.command_line.words import CONFIGS

if TYPE_CHECKING:
    from dq.detector.engines.agreement import Agreement
    from dq.detector.engines.onnx_evaluation import IntegerResult
    from dq.quant.latency.result import Latency
    from launcher.session import Session

HELP = "evaluate a checkpoint on data.test, fake-quantized if it is quantized; or an exported model"
GATE_MISSED = 1
# The file that each backend evaluates.
EXPORTED = {**dict.fromkeys(ENGINES, "MODEL.onnx"), "torch-int": "MODEL.int.pth"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    parser.add_argument(
        "model",
        metavar="EXPORTED",
        nargs="?",
        help=f"with --backend {', '.join(EXPORTED)}: a file of `launcher export`; it contains its"
        " config, so CONFIG may be left out",
    )
    add_checkpoint(parser, what="float, calibrated or QAT", required=False)
    parser.add_argument(
        "--backend",
        choices=("torch", *EXPORTED),
        default="torch",
        help=f"{', '.join(ENGINES)} (an ONNX file) and torch-int (a file of integers) evaluate an"
        " exported file and the checkpoint that it was exported from; exit code"
        f" {GATE_MISSED} if their mAP differs by more than 0.1 points",
    )
    parser.add_argument(
        "--float", action="store_true", dest="as_float", help="ignore quantizers, evaluate in float"
    )
    add_bench(parser)
    _add_results(parser)
    parser.add_argument(
        "--table",
        action="store_true",
        help="print and write a table of all finished stages in the work dir",
    )


def _add_results(parser: argparse.ArgumentParser) -> None:
    """Add the options of mmdet's ``tools/test.py``, with the same names."""
    parser.add_argument(
        "--eval",
        metavar="METRIC",
        nargs="+",
        default=[],
        help="the metrics, instead of the config's evaluation.metric: bbox segm proposal (COCO),"
        " mAP (VOC), ...",
    )
    parser.add_argument(
        "--eval-options",
        metavar="KEY=VALUE",
        nargs="+",
        default=[],
        help="further settings of the evaluation: classwise=True jsonfile_prefix=DIR/NAME; with"
        " --format-only settings of the format",
    )
    parser.add_argument(
        "--out", metavar="FILE.pkl", type=Path, help="write the results of all images, like mmdet"
    )
    parser.add_argument(
        "--format-only",
        action="store_true",
        help="write the results in the format of the data set's benchmark, and compute no metric",
    )
    parser.add_argument(
        "--show-dir", metavar="DIR", type=Path, help="write the test images with the boxes drawn in"
    )
    parser.add_argument(
        "--show-score-thr",
        metavar="SCORE",
        type=float,
        default=0.3,
        help="lowest score of a box that --show-dir draws (default 0.3)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    # Both orders are allowed: eval MODEL.onnx CONFIG, eval CONFIG MODEL.onnx.
    given = [word for word in (arguments.config, arguments.model) if word is not None]
    models = [word for word in given if not word.endswith(CONFIGS)]
    if arguments.format_only and arguments.eval:
        raise ValueError("--eval and --format-only exclude each other")
    if not arguments.format_only:
        arguments.cfg_options = [*arguments.cfg_options, *_overrides(arguments)]
    if arguments.backend in EXPORTED:
        for option in ("out", "format_only", "show_dir"):
            if getattr(arguments, option):
                raise ValueError(f"--{option.replace('_', '-')} is for a checkpoint in torch")
        if len(models) != 1:
            raise ValueError(
                f"--backend {arguments.backend} needs one {EXPORTED[arguments.backend]};"
                " `launcher export` makes it"
            )
        configs = [word for word in given if word.endswith(CONFIGS)]
        return _run_exported(arguments, Path(models[0]), configs)
    if arguments.model is not None:
        last = models[-1] if models else given[-1]
        backend = "torch-int" if last.endswith(".pth") else "onnxruntime"
        raise ValueError(f"{last}: add --backend {backend}")
    if arguments.config.endswith(".onnx"):
        raise ValueError(f"{arguments.config}: add --backend onnxruntime, or openvino")
    if arguments.checkpoint is None:
        raise ValueError("eval needs --checkpoint FILE.pth")
    return _run_in_torch(arguments)


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """Return ``--eval`` and ``--eval-options`` as overrides of the config."""
    found = [f"evaluation.{option}" for option in arguments.eval_options]
    if arguments.eval:
        found.append(f"evaluation.metric=[{','.join(arguments.eval)}]")
    return found


def _run_in_torch(arguments: argparse.Namespace) -> int:
    from dq.detector.config.options import parse_options
    from dq.detector.evaluation.results_file import check_results_file
    from launcher import stages
    from launcher.report import say_files, say_metrics, say_table, say_tables, stage_summaries
    from launcher.session import session

    if arguments.out is not None:
        check_results_file(arguments.out)
    keep = stages.Keep(
        out=arguments.out, painted=arguments.show_dir, lowest_score=arguments.show_score_thr
    )
    given = {"as_float": arguments.as_float, "trusted": arguments.trust_checkpoint, "keep": keep}
    checkpoint = Path(arguments.checkpoint)
    with session(arguments) as place:
        plan = stages.begin_plan(arguments)
        if arguments.format_only:
            settings = parse_options(arguments.eval_options, where="--eval-options")
            say_files(place, stages.formatted(plan, place, checkpoint, settings, **given))
            return 0
        summary, tables = stages.evaluated(plan, place, checkpoint, **given)
        say_tables(place, tables)
        say_metrics(place, summary)
        if arguments.table:
            say_table(place, stage_summaries(place), plan.bits)
    return 0


def _run_exported(arguments: argparse.Namespace, model: Path, configs: list[str]) -> int:
    from dq.detector.config.read import CarriedConfig
    from launcher.report import say_agreement, say_gate, say_layers, say_speed
    from launcher.session import session

    metadata = _metadata(arguments.backend, model)
    if configs:
        arguments.config = configs[0]
    else:
        arguments.config = str(model)
        # The config's own work_dir is not used, because the file may come from another machine.
        folder = Path("runs") / model.stem.replace(".", "_")
        arguments.work_dir = arguments.work_dir or str(folder)
        arguments.carried = CarriedConfig(
            text=metadata["config"], trusted=arguments.trust_checkpoint
        )
    checkpoint = Path(arguments.checkpoint or model.parent / metadata["checkpoint"])
    with session(arguments) as place:
        result, measured, latency = _evaluated(arguments, place, model, checkpoint)
        say_agreement(place, result, arguments.backend)
        if measured is not None:
            say_layers(place, measured)
        say_speed(place, model, latency)
    if result.passed:
        return 0
    say_gate(place, result, measured)
    return GATE_MISSED


def _metadata(backend: str, model: Path) -> Mapping[str, str]:
    if backend == "torch-int":
        from dq.detector.engines.integer_file import read_integer_file

        meta: Mapping[str, str] = read_integer_file(model)["meta"]
        return meta
    # This raises an error about a missing package before the model is read.
    engine_named(backend)
    from dq.detector.engines.onnx_evaluation import exported_metadata

    return exported_metadata(model)


def _evaluated(
    arguments: argparse.Namespace, place: Session, model: Path, checkpoint: Path
) -> tuple[Agreement, IntegerResult | None, Latency | str | None]:
    """Evaluate an exported model.

    Returns:
        The agreement with the checkpoint; the same object as an `IntegerResult` if an engine
        evaluated the model, else None; and the model's latency.
    """
    from launcher.plan import begin_plan
    from launcher.stages.exported_evaluation import evaluated_in_engine, evaluated_integer_file

    plan, trusted = begin_plan(arguments), arguments.trust_checkpoint
    if arguments.backend == "torch-int":
        return evaluated_integer_file(plan, place, model, checkpoint, trusted=trusted), None, None
    result, latency = evaluated_in_engine(
        plan, place, arguments.backend, model, checkpoint, trusted=trusted, bench=arguments.bench
    )
    return result, result, latency
