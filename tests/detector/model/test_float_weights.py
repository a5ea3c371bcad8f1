"""Initial weights that are missing, or of another network, are refused in one line."""

from __future__ import annotations

import ast
import urllib.request
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import pytest
import torch
from mmcv import ConfigDict
from mmcv.runner import BaseModule
from mmdet.models import build_backbone
from torch import nn

from dq.detector.config.addresses import local_file
from dq.detector.model.float_weights import initialise


def resnet(init_cfg: Any, depth: int = 18, channels: int = 4) -> BaseModule:
    return build_backbone(  # type: ignore[no-any-return]
        ConfigDict(
            type="ResNet",
            depth=depth,
            base_channels=channels,
            stem_channels=channels,
            init_cfg=init_cfg,
        )
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights of a backbone, of a detector with it, and of another backbone."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    state = resnet(None).state_dict()
    torch.save({"state_dict": state}, folder / "backbone.pth")
    torch.save(state, folder / "bare.pth")
    inside = {f"backbone.{k}": v for k, v in state.items()}
    torch.save({"state_dict": {**inside, "neck.x": torch.ones(1)}}, folder / "detector.pth")
    torch.save({"state_dict": resnet(None, channels=8).state_dict()}, folder / "wide.pth")
    torch.save({"state_dict": nn.Linear(2, 2).state_dict()}, folder / "other.pth")
    torch.save({"meta": {}}, folder / "empty.pth")
    (folder / "damaged.pth").write_bytes(b"no weights")
    return folder


def pretrained(path: Path | str, **more: Any) -> dict[str, Any]:
    return {"type": "Pretrained", "checkpoint": str(path), **more}


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("backbone.pth", None), ("bare.pth", None), ("detector.pth", "backbone."),
     ("detector.pth", "backbone")],
)  # fmt: skip
def test_own_weights_are_loaded(weights: Path, name: str, prefix: str | None) -> None:
    model = nn.ModuleDict({"backbone": resnet(pretrained(weights / name, prefix=prefix))})
    model.init_weights = model["backbone"].init_weights  # type: ignore[assignment]
    initialise(model)
    expected = torch.load(weights / "bare.pth")
    for key, value in model["backbone"].state_dict().items():
        assert torch.equal(value, expected[key]), key


@pytest.mark.parametrize(
    ("name", "prefix", "message"),
    [
        ("none.pth", None, "none.pth does not exist"),
        ("damaged.pth", None, "damaged.pth cannot be read"),
        ("empty.pth", None, "empty.pth holds no weights"),
        ("detector.pth", "backbones.", "nothing below prefix 'backbones.', only backbone, neck"),
        ("detector.pth", None, "set init_cfg.prefix='backbone.'"),
        ("wide.pth", None, "another network: 0 of"),
        ("other.pth", None, "conv1.weight is not in it"),
    ],
)
def test_other_weights_are_refused(
    weights: Path, name: str, prefix: str | None, message: str
) -> None:
    model = resnet(pretrained(weights / name, prefix=prefix))
    with pytest.raises(ValueError, match="initial weights of the detector: ") as caught:
        initialise(model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://example.invalid/a.pth", "torchvision://resnet18"])
def test_address_without_a_network(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)
    with pytest.raises(ValueError, match=r"cannot be fetched .*no network.*give a file"):
        initialise(resnet(pretrained(address)))
    assert not list(tmp_path.rglob("*.pth"))


def test_address_in_the_cache_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/a.pth").write_bytes(b"")
    assert local_file("https://example.invalid/x/a.pth") == tmp_path / "checkpoints/a.pth"


@pytest.mark.parametrize(
    "name", ["s3://bucket/a.pth", "torchvision://resnet1", "open-mmlab://nothing"]
)
def test_address_of_another_kind(name: str) -> None:
    with pytest.raises(ValueError, match="give a file"):
        local_file(name)


@pytest.mark.parametrize("inside", ["", "module.", "backbone.", "module.backbone.", "a.b."])
@pytest.mark.parametrize("given", [None, "backbone", "module", "module.backbone.", "b"])
def test_the_prefix_that_is_named_is_the_right_one(
    inside: str, given: str | None, weights: Path, tmp_path: Path
) -> None:
    """As mmcv reads it: without a prefix names lose ``module.``, with one they do not."""
    expected = torch.load(weights / "bare.pth")
    path = tmp_path / "file.pth"
    torch.save({"state_dict": {f"{inside}{k}": v for k, v in expected.items()}}, path)
    right = [*([None] if inside in ("", "module.") else []), *([inside] if inside else [])]
    model = resnet(pretrained(path, prefix=given))
    if given not in (*right, inside.removesuffix(".") or None):
        with pytest.raises(ValueError, match=r"set init_cfg.prefix=") as caught:
            initialise(model)
        named = ast.literal_eval(str(caught.value).rpartition("set init_cfg.prefix=")[2])
        assert named in right
        model = resnet(pretrained(path, prefix=named))
    initialise(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, expected[key]), key
