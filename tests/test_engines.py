"""Every engine has its protocol; one whose package is missing says how to install it."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import onnx
import pytest

from dq.engines import ENGINES, engine_named
from dq.quant.verify.engine import Engine
from tests.launcher.conftest import ROOT
from tests.launcher.conftest import Launch as Launch
from tests.launcher.conftest import launch as launch
from tests.launcher.failures.test_errors import only_error

pytestmark = pytest.mark.cpu
PACKAGES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}


@pytest.mark.parametrize("name", ENGINES)
def test_engine_has_a_title_and_its_packages_version(name: str) -> None:
    from importlib.metadata import version

    engine = engine_named(name)
    assert isinstance(engine, Engine)
    assert engine.title
    assert version(PACKAGES[name]).startswith(engine.version)


@pytest.mark.parametrize("name", ENGINES)
def test_what_cannot_be_read_is_one_line_that_names_the_engine(name: str) -> None:
    engine = engine_named(name)
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            [onnx.helper.make_node("Unheard", ["x"], ["y"], domain="nowhere")],
            "graph",
            [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3])],
            [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 3])],
        ),
        opset_imports=[onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("nowhere", 1)],
        ir_version=9,
    )
    with pytest.raises(ValueError, match=rf"{engine.title} [\d.]+ cannot run .*Unheard") as caught:
        engine.open(model)
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def hide(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine's package be missing."""
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    monkeypatch.delitem(sys.modules, ENGINES[name][0], raising=False)


@pytest.mark.parametrize("name", ENGINES)
def test_missing_package_is_one_line_with_pips_command(
    name: str, launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide(name, monkeypatch)
    # Before anything is read: there is no such model.
    line = only_error(launch("eval", tmp_path / "no.onnx", "--backend", name))
    assert f"--backend {name} needs the package {PACKAGES[name]}" in line
    assert line.endswith(ENGINES[name][1])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = re.search(r"\[(\w+)\]", line)
    wanted = project["optional-dependencies"][extra[1]] if extra else project["dependencies"]
    assert any(re.match(PACKAGES[name] + r"\b", requirement) for requirement in wanted)


def test_package_that_cannot_be_loaded_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("libopenvino.so: cannot open shared object file")

    monkeypatch.setattr("importlib.import_module", broken)
    with pytest.raises(ValueError, match=r"needs a package: libopenvino.so.*; pip install"):
        engine_named("openvino")
