"""Quantize a float model with NNCF; OUT.onnx is for ONNX Runtime and OUT.xml for OpenVINO."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nncf
import numpy as np
import onnx
import openvino

MAX_DROP = 0.005
Batches = Sequence[dict[str, np.ndarray]]


def quantized(model: Any, batches: Batches, method: str, draft: Path) -> Any:
    """Return the quantized model.

    Args:
        model: Of ONNX or OpenVINO.
        batches: The calibration images.
        method: ``default``, ``mixed`` (the preset for functions other than ReLU), or
            ``accuracy_control``, the mixed preset with layers left in float until the metric on the
            calibration images is at most `MAX_DROP` below float; for ONNX alone.
        draft: A file for the models to evaluate.
    """
    settings: dict[str, Any] = {"subset_size": len(batches)}
    if method != "default":
        settings["preset"] = nncf.QuantizationPreset.MIXED
    dataset = nncf.Dataset(batches)
    if method != "accuracy_control":
        return nncf.quantize(model, dataset, **settings)

    def metric(asked: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        # With a value for each image NNCF ranks layers by this metric. Otherwise it ranks by the
        # outputs, which it cannot do for ONNX. One image says little: each value is that of all.
        number = sum(1 for _ in items)
        onnx.save(asked, draft)
        print(f"\nEVALUATE {draft}", flush=True)
        value = float(sys.stdin.readline())
        return value, [value] * number

    return nncf.quantize_with_accuracy_control(
        model, dataset, nncf.Dataset(batches), metric, max_drop=MAX_DROP, **settings
    )


def main(source: str, images: str, out: str, method: str) -> None:
    """Write the quantized model."""
    batches = [{"images": image[None]} for image in np.load(images)]
    path = Path(out)
    if path.suffix == ".xml":
        model = openvino.Core().read_model(source)
        draft = path.with_suffix(".draft.xml")
        openvino.save_model(quantized(model, batches, method, draft), str(draft))
        # The weights first: the file that is looked for is the other one.
        draft.with_suffix(".bin").replace(path.with_suffix(".bin"))
        draft.replace(path)
    else:
        draft = path.with_suffix(".draft.onnx")
        onnx.save(quantized(onnx.load(source), batches, method, draft), draft)
        draft.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
