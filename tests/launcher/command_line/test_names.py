"""Words on the command line: version, names of shipped configs, and what is misspelt."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.version import version
from launcher.cli import parse
from tests.launcher.conftest import ROOT, Launch

OWN = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")


def test_the_version_is_printed(launch: Launch) -> None:
    assert launch("--version") == (0, f"launcher {version()}\n", "")


MISSPELT = {
    "trian": ("error: trian is not a command; did you mean train?\n"),
    "trian own.py": ("error: trian is not a command; did you mean train?\n"),
    "digits/ssd_resnet_fpn_16": (
        "error: digits/ssd_resnet_fpn_16 is neither a command, a file nor a shipped config; did you"
        " mean digits/ssd_resnet_fpn_160? `launcher --help` and `launcher configs` list them\n"
    ),
    "eval m.onnx": "error: m.onnx: add --backend onnxruntime, or openvino\n",
    "train digits/ssd_resnet_fpn_16": (
        "error: config digits/ssd_resnet_fpn_16 is neither a file nor a shipped config; did you"
        " mean digits/ssd_resnet_fpn_160? `launcher configs` lists them\n"
    ),
    "train own.py --wokr-dir x": (
        "error: unrecognized arguments: --wokr-dir x; did you mean --work-dir?\n"
    ),
    "data convert a b --formt x": (
        "error: unrecognized arguments: --formt x; did you mean --format?\n"
    ),
    "data digitz": "error: argument DATASET: invalid choice: 'digitz'; did you mean digits?\n",
    "bench m.onnx --backend openvin": (
        "error: argument --backend: invalid choice: 'openvin'; did you mean openvino?\n"
    ),
    "submit trian own.py": "error: submit trian is not possible; did you mean train?\n",
}


@pytest.mark.parametrize("words", MISSPELT)
def test_the_nearest_name_is_said(launch: Launch, words: str) -> None:
    assert launch(*words.split()) == (2, "", MISSPELT[words])


@pytest.mark.parametrize(
    "words",
    [
        "train digits/ssd_resnet_fpn_160 --seed 3",
        "--seed 3 train configs/digits/ssd_resnet_fpn_160.py",
        "digits/ssd_resnet_fpn_160 --seed 3",
        "--seed 3 digits/ssd_resnet_fpn_160",
    ],
)
def test_a_shipped_config_is_given_by_name(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parse(words.split())
    assert (found.command, found.config, found.seed) == ("train", OWN, 3)
    assert found.command_line[:2] == ("train", OWN)


def test_a_shipped_config_is_submitted_by_name(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.commands.cluster.submit._read", lambda *_: None)
    words = ("submit", "--dry-run", "--cluster", "a100")
    for given in (("train", "digits/ssd_resnet_fpn_160"), ("sweep", "digits/ssd_resnet_fpn_160")):
        code, out, err = launch(*words, *given)
        assert code == 0, err
        assert "ssd_resnet_fpn_160.py" in out


def test_configs_are_listed(launch: Launch) -> None:
    code, out, _ = launch("configs")
    assert code == 0
    assert "digits/ssd_resnet_fpn_160       Handwritten digits" in out
    assert out.splitlines()[-1].startswith(f"in {ROOT / 'configs'}; ")
