"""``launcher eval``: evaluate a checkpoint, quantized or float, or an exported model."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from launcher.arguments import add_checkpoint, add_common

HELP = "evaluate a checkpoint on data.test, rounded where it is quantized; or an exported model"
GATE_MISSED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_common(parser)
    parser.add_argument(
        "model",
        metavar="MODEL.onnx",
        nargs="?",
        help="with --backend onnxruntime: what `launcher export` wrote; it holds its config, so"
        " that CONFIG may be left out",
    )
    add_checkpoint(parser, what="float, calibrated or QAT", required=False)
    parser.add_argument(
        "--backend",
        choices=("torch", "onnxruntime"),
        default="torch",
        help="onnxruntime evaluates an exported model beside the checkpoint it came from and fails"
        f" with exit code {GATE_MISSED} where their mAP differs by more than 0.1 points",
    )
    parser.add_argument(
        "--float", action="store_true", dest="as_float", help="ignore quantizers, evaluate in float"
    )
    parser.add_argument(
        "--table",
        action="store_true",
        help="print and write the table of all stages that the work dir has the results of",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the stage and return the exit code."""
    # Either order reads well: eval MODEL.onnx CONFIG, eval CONFIG MODEL.onnx.
    given = [word for word in (arguments.config, arguments.model) if word is not None]
    models = [word for word in given if not word.endswith(".py")]
    if arguments.backend == "onnxruntime":
        if len(models) != 1:
            raise ValueError(
                "--backend onnxruntime needs one MODEL.onnx; `launcher export` makes it"
            )
        configs = [word for word in given if word.endswith(".py")]
        return _run_in_onnxruntime(arguments, Path(models[0]), configs)
    if arguments.model is not None:
        raise ValueError(f"{models[-1] if models else given[-1]}: add --backend onnxruntime")
    if arguments.checkpoint is None:
        raise ValueError("eval needs --checkpoint FILE.pth")
    return _run_in_torch(arguments)


def _run_in_torch(arguments: argparse.Namespace) -> int:
    from launcher import stages
    from launcher.report import say_metrics, say_table, stage_summaries
    from launcher.session import session

    with session(arguments) as place:
        plan = stages.read_plan(arguments)
        summary = stages.evaluated(
            plan,
            place,
            Path(arguments.checkpoint),
            as_float=arguments.as_float,
            trusted=arguments.trust_checkpoint,
        )
        say_metrics(place, summary)
        if arguments.table:
            say_table(place, stage_summaries(place), plan.settings.recipe)
    return 0


def _run_in_onnxruntime(arguments: argparse.Namespace, model: Path, configs: list[str]) -> int:
    from launcher.plan import read_plan
    from launcher.report import say_gate, say_integer
    from launcher.session import session
    from launcher.stages.integer_evaluation import evaluated_in_onnxruntime, exported_metadata

    metadata = exported_metadata(model)
    with tempfile.TemporaryDirectory() as folder:
        if configs:
            arguments.config = configs[0]
        else:
            text = Path(folder) / f"{model.stem.replace('.', '_')}.py"
            text.write_text(metadata["config"])
            arguments.config = str(text)
        arguments.work_dir = arguments.work_dir or str(Path("runs") / Path(arguments.config).stem)
        checkpoint = arguments.checkpoint or model.parent / metadata["checkpoint"]
        with session(arguments) as place:
            result = evaluated_in_onnxruntime(
                read_plan(arguments),
                place,
                model,
                Path(checkpoint),
                trusted=arguments.trust_checkpoint,
            )
            say_integer(place, result)
    if result.passed:
        return 0
    say_gate(place, result)
    return GATE_MISSED
