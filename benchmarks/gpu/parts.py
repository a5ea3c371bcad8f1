"""The parts of the GPU check: each is a separate process, the most important first."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NETS = ("ssd_mobilenet", "retinanet_r50", "yolox_s")
CONFIG = "configs/digits/ssd_resnet_fpn_160.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One process of the check.

    Attributes:
        name: Name of its log file, section and entry in the results.
        words: The command line after the interpreter.
        limit_s: Time limit in seconds, further limited by the time that is left.
        files: Names of the JSON or Markdown files that it writes into the results' folder.
        environ: Variables in addition to those of the check itself.
    """

    name: str
    words: Sequence[str]
    limit_s: float
    files: Sequence[str] = ()
    environ: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Return the whole command line."""
        return [sys.executable, *self.words]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """The amount of work of each part: full on a GPU, very little in a rehearsal.

    Attributes:
        epochs: Of the chain's trainings.
        images: Training images; at most as many calibrate.
        nets: The detectors whose steps are measured.
        size: Width and height of their images in pixels.
        batch: Images of a step.
        rounds: Rounds of `benchmarks.speed`.
        tests: Files and folders for pytest.
        peers: The other libraries that are measured, keys of `benchmarks.peers.PEERS`.
    """

    epochs: int
    images: int
    nets: Sequence[str]
    size: int
    batch: int
    rounds: int
    tests: Sequence[str]
    peers: Sequence[str]


FULL = Scale(
    epochs=2,
    images=200,
    nets=NETS,
    size=512,
    batch=8,
    rounds=15,
    tests=("tests/quant", "tests/detector/model/operators", "tests/test_sync.py"),
    peers=("fx", "pt2e"),
)
REHEARSAL = Scale(
    epochs=1,
    images=8,
    nets=("ssd_mobilenet",),
    size=64,
    batch=2,
    rounds=2,
    tests=("tests/quant/numerics/test_affine.py",),
    peers=(),
)


def build_mmcv() -> Part:
    """Return the part that compiles mmcv-full's CUDA operators and installs them.

    pip's variables ``PIP_NO_INDEX`` and ``PIP_FIND_LINKS`` name wheels on a machine without a
    network: mmcv-full's sdist and nvcc's packages.
    """
    return Part(name="mmcv", words=["setup/mmcv_wheel.py", "--install"], limit_s=400)


def parts(out: Path, device: str, scale: Scale) -> list[Part]:
    """Return all parts but `build_mmcv`, the most important first.

    Args:
        out: The results' folder.
        device: "cuda" or, for a rehearsal, "cpu".
        scale: The amount of work of each part.
    """
    return [
        *_chain(out, device, scale),
        _tests(out, device, scale),
        *_speed(out, device, scale),
        _calibration(out, device, scale),
        *_two_ranks(out, device, scale),
    ]


def _chain(out: Path, device: str, scale: Scale) -> list[Part]:
    data = str(out / "digits")
    digits = ["-m", "launcher", "data", "digits", "--folder", data]
    if scale.images != FULL.images:
        digits += ["--num-train", str(scale.images), "--num-val", "4", "--num-test", "4"]
    run = ["-m", "launcher", "run", CONFIG, "--device", device, *_chain_options(out, scale)]
    checkpoint = out / "chain" / "qat" / "qat.pth"
    evaluation = ["-m", "launcher", "eval", CONFIG, "--checkpoint", str(checkpoint)]
    options = _chain_options(out, scale)
    return [
        Part(name="digits", words=digits, limit_s=120),
        Part(name="chain", words=[*run, "--work-dir", str(out / "chain")], limit_s=240),
        # The same checkpoint on both devices, so only the arithmetic differs.
        *(
            Part(
                name=f"evaluation on {kind}",
                words=[
                    *evaluation,
                    *options,
                    "--device",
                    kind,
                    "--work-dir",
                    str(out / f"eval_{kind}"),
                ],
                limit_s=90,
            )
            for kind in dict.fromkeys((device, "cpu"))
        ),
    ]


def _chain_options(out: Path, scale: Scale) -> list[str]:
    options = ["--cfg-options", f"data_root={out / 'digits'}"]
    options += [f"runner.max_epochs={scale.epochs}", "data.workers_per_gpu=2"]
    return options


def _two_ranks(out: Path, device: str, scale: Scale) -> list[Part]:
    """Return the chain on two ranks that share one GPU, with gloo, because NCCL refuses that."""
    place = "cuda:0" if device == "cuda" else "cpu"
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "launcher", "run", CONFIG, "--device", place, *_chain_options(out, scale)]
    words += ["runner.max_epochs=1", "--work-dir", str(out / "two_ranks")]
    return [Part(name="two ranks", words=words, limit_s=120)]


def _calibration(out: Path, device: str, scale: Scale) -> Part:
    words = ["-m", "benchmarks.calibration", CONFIG, "--device", device, "--rounds", "2"]
    words += ["--checkpoint", str(out / "chain" / "float" / "float.pth")]
    words += ["--images", str(min(64, scale.images)), *_chain_options(out, scale)]
    return Part(name="calibration", words=words, limit_s=60)


def _tests(out: Path, device: str, scale: Scale) -> Part:
    words = ["-m", "pytest", *scale.tests, "-m", "not slow", "--device", device, "-q"]
    words += ["-p", "no:cacheprovider", f"--junit-xml={out / 'tests.xml'}"]
    if device != "cpu":
        words += ["-n", str(min(8, os.cpu_count() or 1))]
    return Part(name="tests", words=words, limit_s=180, files=["tests.xml"])


def _speed(out: Path, device: str, scale: Scale) -> list[Part]:
    common = ["--size", str(scale.size), "--batch", str(scale.batch), "--device", device]
    launches = ["-m", "benchmarks.launches", *common, "--nets", *scale.nets]
    launches += ["--out", str(out / "launches.json"), "--write", str(out / "launches.md")]
    found = [Part(name="launches", words=launches, limit_s=120, files=["launches.md"])]
    sides = ["float", "observing", "frozen", "lsq"]
    for name, options in {
        "eager": [],
        "bf16 channels_last": ["--amp", "--channels-last"],
        "compiled bf16 channels_last": ["--compile", "--amp", "--channels-last"],
    }.items():
        for net in scale.nets:
            own = [*sides, *(scale.peers if name == "eager" else ())]
            file = f"speed {name} {net}".replace(" ", "_")
            words = ["-m", "benchmarks.speed", *common, "--nets", net, "--sides", *own, *options]
            words += ["--rounds", str(scale.rounds), "--out", str(out / f"{file}.json")]
            words += ["--write", str(out / f"{file}.md")]
            found.append(
                Part(name=f"speed {name} {net}", words=words, limit_s=90, files=[f"{file}.md"])
            )
    return found
