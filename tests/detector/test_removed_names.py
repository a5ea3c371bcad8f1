"""All names that mmdet and mmcv use from numpy and torch exist, also removed ones."""

from __future__ import annotations

import ast
import importlib
import logging
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import numpy as np
import pytest
import torch
from mmcv.runner import load_checkpoint
from mmdet.core import build_sampler
from mmdet.core.bbox.assigners import AssignResult
from mmdet.datasets import ClassBalancedDataset, OpenImagesDataset

from dq.detector import removed_names
from tests.detector.small_set import built, section

ASKED = ("numpy", "torch", "torchvision", "cv2", "PIL", "inspect", "collections")
# Names for devices and engines that need a special torch; mmcv checks first if they exist.
OTHER_DEVICES = {"mlu", "is_mlu_available", "npu", "npu_deformable_conv2d",
                 "npu_deformable_conv2dbk", "SyncBatchNorm2d", "PoolDataLoader"}  # fmt: skip


def sources() -> Iterator[Path]:
    for package in (mmdet, mmcv):
        for path in sorted(Path(package.__file__).parent.rglob("*.py")):
            if ".mim" not in path.parts:
                yield path


def is_module(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def missing_in(path: Path) -> Iterator[str]:
    """Yield the names that a file uses from the modules of `ASKED`, but that do not exist."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.partition(".")[0] in ASKED and is_module(alias.name):
                    whole = alias.name if alias.asname else alias.name.partition(".")[0]
                    names[alias.asname or whole] = importlib.import_module(whole)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            module = str(node.module)
            if module.partition(".")[0] not in ASKED or not is_module(module):
                continue
            for alias in node.names:
                owner = importlib.import_module(module)
                if hasattr(owner, alias.name):
                    names[alias.asname or alias.name] = getattr(owner, alias.name)
                elif not is_module(f"{module}.{alias.name}"):
                    yield f"{module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain, inner = [node.attr], node.value
            while isinstance(inner, ast.Attribute):
                chain.insert(0, inner.attr)
                inner = inner.value
            found = names.get(inner.id) if isinstance(inner, ast.Name) else None
            for attribute in chain:
                if not isinstance(found, types.ModuleType):
                    break
                if not hasattr(found, attribute) and not is_module(f"{found.__name__}.{attribute}"):
                    yield f"{found.__name__}.{attribute}"
                    break
                found = getattr(found, attribute)


def test_every_name_that_mmdet_and_mmcv_use_exists() -> None:
    seen, missing = 0, {}
    for path in sources():
        seen += 1
        for name in missing_in(path):
            if name.rpartition(".")[2] not in OTHER_DEVICES:
                missing[name] = str(path)
    assert seen > 500
    assert missing == {}


def test_restored_names_have_their_old_meaning() -> None:
    assert np.array([1.5]).astype(np.int).dtype == np.int64  # type: ignore[attr-defined]
    assert np.zeros(1, dtype=np.float).dtype == np.float64  # type: ignore[attr-defined]
    assert np.array([True]).astype(np.bool).dtype == bool
    found = np.in1d([[1, 2], [3, 4]], [2, 3])  # type: ignore[attr-defined]
    assert found.tolist() == [False, True, True, False]
    assert np.product([2, 3]) == 6  # type: ignore[attr-defined]
    assert {"int", "float", "object", "float_", "Inf", "product"} <= set(removed_names.NUMPY)
    assert removed_names.restore() == ()  # A second call restores nothing.


def test_existing_names_are_not_changed() -> None:
    module = types.ModuleType("numpy_of_another_year")
    module.int = "its own"  # type: ignore[attr-defined]
    assert "int" not in removed_names.restore_names(module, removed_names.NUMPY)
    assert module.int == "its own"
    assert module.float is float


def test_restored_names_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        removed_names.say()
    assert f"numpy {np.__version__} has no np.int, np.float" in caplog.text


def test_class_balanced_data_set(digits: Path) -> None:
    dataset = built(section(digits))
    balanced = ClassBalancedDataset(dataset, oversample_thr=0.5)
    assert len(balanced) >= len(dataset)
    stub = types.SimpleNamespace(get_ann_info=lambda index: {"labels": np.array([3.0, 1.0])})
    assert OpenImagesDataset.get_cat_ids(stub, 0) == [3, 1]
    stub = types.SimpleNamespace(data_infos=[{"ann": {"labels": np.array([2])}}])
    assert mmdet.datasets.CustomDataset.get_cat_ids(stub, 0) == [2]


def test_sampler_of_libra_rcnn() -> None:
    sampler = build_sampler({"type": "IoUBalancedNegSampler", "num": 8, "pos_fraction": 0.25,
                             "floor_thr": 0.0, "num_bins": 2})  # fmt: skip
    overlaps = torch.linspace(0, 0.4, 40)
    assigned = AssignResult(1, torch.zeros(40, dtype=torch.long), overlaps, labels=None)
    assert len(sampler._sample_neg(assigned, 8)) == 8


def test_mmcv_reads_weights_with_numpy_scalars(tmp_path: Path) -> None:
    path = tmp_path / "published.pth"
    layer = torch.nn.Linear(2, 2)
    meta = {"hook_msgs": {"best_score": np.float64(0.5)}, "random": np.zeros(3, np.uint32)}
    torch.save({"state_dict": layer.state_dict(), "meta": meta}, path)
    other = torch.nn.Linear(2, 2)
    load_checkpoint(other, str(path), strict=True)
    assert torch.equal(other.weight, layer.weight)
