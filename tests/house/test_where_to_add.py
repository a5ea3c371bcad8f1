"""What ``docs/architecture.md`` says under "Where do I add": one file and one line are enough.

Each test adds a dummy to a registry, as a line in it would, and uses it as a user does.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest
import torch
from mmcv.runner import Hook
from PIL import Image
from torch import Tensor, nn

import dq.quant as dq
from dq import engines, formats, shipped
from dq.data.formats import registry as labels
from dq.data.formats.folder import Folder
from dq.data.formats.labelled import Box, Findings, Labelled, Photo
from dq.detector.step import guards as guards_module
from dq.detector.step.guards import Guards
from dq.detector.training import registered_hooks
from dq.engines import engine_named
from dq.quant.export.assemble import assembled
from dq.quant.export.flavour import Flavour
from dq.quant.export.qdq import to_qdq_
from dq.quant.graph.quantized_graph import QuantizedGraph
from dq.quant.integer.bias_overflow import network_for_engines
from dq.quant.latency import onnx_runtime
from dq.quant.latency.engines import timed_engine
from dq.quant.numerics.spec import QuantSpec
from dq.quant.observers.min_max import MinMaxObserver
from dq.quant.ptq import settings as repair_settings
from dq.quant.ptq.settings import Repair, RepairStep, Samples
from dq.quant.quantizers import factory
from dq.quant.quantizers.factory import Learned, learned_parameters
from dq.quant.quantizers.learned_step import LsqActivationQuantizer
from dq.quant.recipes import presets, recipe
from dq.quant.targets import registry
from dq.quant.targets.target import Target
from dq.quant.verify import onnxruntime_session
from launcher import cli
from launcher.config import quant_settings
from slurm.profile import Profile, flags, sbatch_options

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def prepared(settings: Mapping[str, Any]) -> tuple[dq.QuantizedModel, Repair]:
    """Return a small model as the ``quant`` section of a config asks, not calibrated yet."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    found = quant_settings(settings)
    return dq.prepare(net.eval(), found.recipe, X), found.repair


def module(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    """Let a module of this name be there, with this content."""
    made = ModuleType(name)
    vars(made).update(content)
    monkeypatch.setitem(sys.modules, name, made)


def test_an_observer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Widest(MinMaxObserver):
        def updated(self, old: Any, batch: Any, number: Tensor) -> Any:
            return 2 * batch[0], 2 * batch[1]

    monkeypatch.setitem(recipe.OBSERVERS, "widest", Widest)
    model, _ = prepared({"observer": "widest"})
    dq.calibrate(model, [X])
    assert float(model.graph.activations()["input_1/out"].observer.range_max) == 2 * X.max()


def test_a_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(presets.PRESETS, "w2a8", presets._bits(2, 8))
    assert quant_settings({"preset": "w2a8"}).recipe.weight.bits == 2


def test_a_target_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(name="mine", engine="Mine", source="these tests")
    module(monkeypatch, "dq.quant.targets.mine", TARGET=target)
    monkeypatch.setitem(registry.TARGETS, "mine", registry._read("mine"))
    monkeypatch.setitem(presets.PRESETS, "mine", presets.preset_for(target))
    assert quant_settings({"preset": "mine"}).recipe.engine is target
    assert quant_settings({"target": "mine"}).recipe.engine is target


def test_a_repair(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def apply(graph: QuantizedGraph, samples: Samples, settings: Repair) -> None:
        given.append(sum(map(len, samples.rounded)))

    module(monkeypatch, "dq.quant.ptq.mine", REPAIR=RepairStep(apply=apply))
    monkeypatch.setitem(repair_settings.STEPS, "mine", "mine")
    model, repair = prepared({"repairs": ["mine"]})
    dq.calibrate(model, [X], repair=repair)
    assert given == [len(X)]


def test_a_learned_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(LsqActivationQuantizer):
        pass

    monkeypatch.setitem(factory.LEARNED, "mine", Learned(activation=Mine))  # type: ignore[arg-type]
    model, _ = prepared({"learned": "mine"})
    dq.calibrate(model, [X])
    dq.set_phase(model, dq.Phase.TRAIN)
    model.train()(X).sum().backward()
    parameters = learned_parameters(model)
    assert len(parameters) > 1
    assert all(parameter.grad is not None for parameter in parameters.values())


@pytest.mark.slow
def test_an_onnx_flavour(monkeypatch: pytest.MonkeyPatch) -> None:
    def write_(model: ir.Model, specs: Mapping[str, QuantSpec]) -> None:
        to_qdq_(model, specs)
        model.graph.name = "mine"

    module(monkeypatch, "dq.quant.export.mine", FLAVOUR=Flavour(write_=write_))
    mine = formats.Format(ending=".mine.onnx", module="dq.quant.export.mine")
    monkeypatch.setitem(formats.FORMATS, "onnx-mine", mine)
    model, _ = prepared({})
    dq.calibrate(model, [X])
    network = network_for_engines(model.graph)
    assert assembled(network, [X], kind="onnx-mine").graph.name == "mine"
    assert "onnx-mine" in cli.build_parsers()[1]["export"].format_help()


def test_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"ENGINE": onnxruntime_session.ENGINE, "TIMED": onnx_runtime.TIMED}
    module(monkeypatch, "dq.quant.latency.mine", **content)
    places = ("dq.quant.latency.mine", "pip install mine", "dq.quant.latency.mine")
    monkeypatch.setitem(engines.ENGINES, "mine", places)
    assert engine_named("mine") is content["ENGINE"]
    assert timed_engine("mine") is content["TIMED"]


@pytest.mark.parametrize("value", ["warn", "off"])
def test_a_guard(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    class Slow(Hook):  # type: ignore[misc]
        PRIORITY, FLOAT_TOO = 47, True

        def __init__(self, guards: Guards) -> None:
            self.guards = guards

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Mine(Guards):
        slow: str = guards_module._one_of("warn", "off", hook="mine:Slow")

    module(monkeypatch, "dq.detector.hooks.mine", Slow=Slow)
    found: list[tuple[type[Hook], int]] = []
    runner = SimpleNamespace(
        supervision=SimpleNamespace(guards=Mine(slow=value)),
        register_hook=lambda hook, priority: found.append((type(hook), priority)),
    )
    registered_hooks._register_guards(runner, is_float=True)
    assert found == ([(Slow, 47)] if value == "warn" else [])
    with pytest.raises(ValueError, match=r"guards.slow is 'x'; use 'warn' or 'off'"):
        Mine(slow="x")


def test_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(arguments: Any) -> int:
        print("hello", arguments.name)
        return 0

    def add_arguments(parser: Any) -> None:
        parser.add_argument("--name")

    content = {"HELP": "say hello", "add_arguments": add_arguments, "run": run}
    module(monkeypatch, "launcher.commands.hello", **content)
    monkeypatch.setattr(cli, "COMMANDS", (*cli.COMMANDS, "hello"))
    assert cli.main(["hello", "--name", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"


def test_a_slurm_option_is_a_flag_and_a_line_of_the_job() -> None:
    assert flags()["partition"] == (str, "sbatch's option of this name")
    assert flags()["mem_gb"][0] is int
    profile = Profile(partition="night", nodes=3)
    assert sbatch_options(profile) == {"partition": "night", "nodes": 3}


def test_a_format_of_labels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def read(folder: Folder) -> Labelled:
        box = Box(name="thing", corners=(0.0, 0.0, 2.0, 2.0))
        photos = tuple(Photo(file=path, boxes=(box,)) for path in folder.images)
        return Labelled(
            format="mine",
            folder=folder.root,
            photos=photos,
            classes=("thing",),
            findings=Findings(),
        )

    monkeypatch.setitem(labels.FORMATS, "mine", read)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    assert labels.read_folder(tmp_path).format == "mine"


def test_a_detector_of_init(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "detectors").mkdir()
    (tmp_path / "detectors/mine.py").write_text("model = dict()")
    monkeypatch.setattr(shipped, "configs_folder", lambda: tmp_path)
    assert shipped.checked_detector("mine") == tmp_path / "detectors/mine.py"
