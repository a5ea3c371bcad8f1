"""What is to be submitted: jobs, their command lines, and which job waits for which."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from slurm.profile import Profile

# Where the launcher's commands write their results in the experiment's folder.
STAGE_FOLDERS = {
    "train": "float", "calibrate": "calibrated", "qat": "qat", "eval": "eval", "analyze": "analyze",
    "quantize": "quantize",
}  # fmt: skip
# Commands with computation: they take --threads.
COMPUTING = ("train", "calibrate", "quantize", "qat", "eval", "analyze", "export", "run")
# Commands in which several ranks share the work; in the others only one rank works.
PARALLEL = ("train", "quantize", "qat", "eval", "run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Element:
    """One command line of the launcher.

    Attributes:
        words: The arguments after ``python -m launcher``.
        experiment: Folder that it works in.
        label: Its name in an array.
    """

    words: tuple[str, ...]
    experiment: Path
    label: str = ""

    @property
    def stage(self) -> str:
        """Return the folder of its results in the experiment; empty if there are several."""
        return STAGE_FOLDERS.get(self.words[0], "")

    @property
    def computes(self) -> bool:
        """Return whether its CPUs are used as a rank's threads."""
        return self.words[0] in COMPUTING


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one call of sbatch submits: a command line, or an array of them.

    Attributes:
        name: Unique among the jobs submitted together.
        elements: One, or those of the array.
        profile: The resources it requests.
        after: Name of the job that must have ended successfully before.
    """

    name: str
    elements: tuple[Element, ...]
    profile: Profile
    after: str | None = None

    @property
    def is_array(self) -> bool:
        """Return whether it is an array."""
        return len(self.elements) > 1


def profile_for(command: str, stage: str, profile: Profile) -> Profile:
    """Return the resources for a command: one rank if only one would work."""
    if command not in PARALLEL:
        profile = profile.alone()
        if command in ("init", "data", "coverage"):
            profile = _without_gpus(profile)
    return profile.of_stage(stage)


def _without_gpus(profile: Profile) -> Profile:
    return replace(profile, gpus_per_node=0, gpu_type=None)


def single(words: Sequence[str], experiment: Path, profile: Profile) -> list[Job]:
    """Return the job of a single command."""
    command = words[0]
    element = Element(words=tuple(words), experiment=experiment)
    return [Job(name=command, elements=(element,), profile=profile_for(command, command, profile))]


def chain(
    *,
    config: str,
    experiment: Path,
    profile: Profile,
    options: Mapping[str, Sequence[str]],
    checkpoint: str | None = None,
    fresh: bool = False,
) -> list[Job]:
    """Return float, calibrate, qat and eval as jobs, each starting from the previous checkpoint.

    Args:
        config: Path of the config.
        experiment: The experiment's folder.
        profile: Profile of all jobs; calibration uses one rank of it.
        options: Options of each command: ``train``, ``calibrate``, ``qat``, ``eval``.
        checkpoint: A float detector; then there is no float training.
        fresh: Do everything again, and resume nothing.
    """
    again = () if fresh else ("--reuse",)
    place = ("--work-dir", str(experiment))

    def training(command: str) -> list[str]:
        given = options[command]
        resume = () if fresh or "--resume" in given else ("--resume",)
        return [*place, *given, *again, *resume]

    start = checkpoint or str(experiment / "float/float.pth")
    steps: list[tuple[str, str, list[str]]] = []
    if checkpoint is None:
        steps.append(("float", "train", training("train")))
    calibrated = str(experiment / "calibrated/calibrated.pth")
    done = ["--checkpoint", str(experiment / "qat/qat.pth"), "--table"]
    steps += [
        ("calibrate", "calibrate", ["--checkpoint", start, *place, *options["calibrate"], *again]),
        ("qat", "qat", ["--checkpoint", calibrated, *training("qat")]),
        ("eval", "eval", [*done, *place, *options["eval"]]),
    ]
    jobs: list[Job] = []
    for name, command, words in steps:
        element = Element(words=(command, config, *words), experiment=experiment)
        wanted = profile_for(command, name, profile)
        after = jobs[-1].name if jobs else None
        jobs.append(Job(name=name, elements=(element,), profile=wanted, after=after))
    return jobs


def sweep(
    *,
    configs: Sequence[tuple[str, str]],
    presets: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    profile: Profile,
    options: Mapping[str, Sequence[str]],
    cfg_options: Sequence[str] = (),
    checkpoint: str | None = None,
) -> list[Job]:
    """Return a grid of whole chains as an array.

    If several presets share a float training, the float trainings are an array of their own. The
    other array waits for it, and each element finds its float training through a link.

    Args:
        configs: Name and path of each config.
        presets: Values of ``quant.preset``; if empty, each config's own.
        seeds: At least one.
        folder: Folder of all experiments.
        profile: Profile of each element.
        options: Options of each command, ``train`` and ``run``, besides those named here.
        cfg_options: ``--cfg-options`` for all of them.
        checkpoint: A float detector for all.
    """
    floats, elements = [], []
    shares = len(presets) > 1 and checkpoint is None
    chosen = ("--checkpoint", checkpoint) if checkpoint else ()
    for (name, path), seed in itertools.product(configs, seeds):
        base = f"{name}-seed{seed}"
        if shares:
            words = ["train", path, "--work-dir", str(folder / base), "--seed", str(seed)]
            words += ["--reuse", "--resume", *options["train"], *_options(cfg_options)]
            floats.append(Element(words=tuple(words), experiment=folder / base, label=base))
        for preset in presets or [""]:
            label = f"{base}-{preset}" if preset else base
            words = ["run", path, "--work-dir", str(folder / label), "--seed", str(seed), *chosen]
            words += [*options["run"], "--resume", *_options([*cfg_options, *_preset(preset)])]
            elements.append(Element(words=tuple(words), experiment=folder / label, label=label))
    jobs = []
    if shares:
        wanted = profile.of_stage("float")
        jobs.append(Job(name="float", elements=tuple(floats), profile=wanted))
    after = "float" if shares else None
    jobs.append(
        Job(name="sweep", elements=tuple(elements), profile=profile.of_stage("sweep"), after=after)
    )
    return jobs


def float_links(jobs: Sequence[Job]) -> dict[Path, Path]:
    """Return link -> target for a sweep with shared float trainings."""
    if len(jobs) != 2 or jobs[1].name != "sweep":
        return {}
    links = {}
    for element in jobs[1].elements:
        bases = [base for base in jobs[0].elements if element.label.startswith(f"{base.label}-")]
        if bases:
            # A label may begin with that of another float training, too.
            base = max(bases, key=lambda one: len(one.label))
            links[element.experiment / "float"] = base.experiment / "float"
    return links


def _preset(name: str) -> list[str]:
    return [f"quant.preset={name}"] if name else []


def _options(options: Sequence[str]) -> list[str]:
    return ["--cfg-options", *options] if options else []
