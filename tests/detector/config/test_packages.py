"""A missing package that a config needs is reported before anything starts."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import pytest
from mmcv import Config

from dq.detector.config.packages import BACKENDS, METRICS, NEEDS, SCOPES, Package, check_packages

# Guarded imports of mmcv and mmdet that no config can reach, with the reason.
NOT_ASKED_FOR = {
    "torch": "always there",
    "torchvision": "always there",
    "yaml": "always there",
    "PIL": "always there",
    "mmcv": "always there",
    "tensorboardX": "for torch below 1.1",
    "turbojpeg": "mmcv.use_backend alone asks for it",
    "tifffile": "mmcv.use_backend alone asks for it",
    "tensorrt": "mmcv's own export, which is not used",
    "poptorch": "a device that is not supported",
}


def guarded(package: Any) -> Iterator[str]:
    """Yield the top-level modules that a package's sources import under ``except ImportError``."""
    root = Path(package.__file__).parent
    for path in root.rglob("*.py"):
        if ".mim" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Try):
                continue
            kinds = " ".join(ast.unparse(h.type) for h in node.handlers if h.type is not None)
            if "ImportError" not in kinds and "ModuleNotFound" not in kinds:
                continue
            for inner in (i for statement in node.body for i in ast.walk(statement)):
                if isinstance(inner, ast.Import):
                    yield from (name.name.partition(".")[0] for name in inner.names)
                if isinstance(inner, ast.ImportFrom) and inner.level == 0 and inner.module:
                    yield inner.module.partition(".")[0]


def test_every_optional_package_of_mmcv_and_mmdet_is_known() -> None:
    known = [package for packages in NEEDS.values() for package in packages]
    known += [*BACKENDS.values(), *SCOPES.values(), *METRICS.values()]
    names = {package.module.partition(".")[0] for package in known} | NOT_ASKED_FOR.keys()
    # torch needs it, not mmcv.
    assert {*guarded(mmcv), *guarded(mmdet)} - names == set()
    assert "tensorboard" in names


def test_names_are_those_of_registries() -> None:
    from mmcv.runner import HOOKS
    from mmdet.datasets import DATASETS, PIPELINES
    from mmdet.models import HEADS

    there = {n for r in (HOOKS, DATASETS, PIPELINES, HEADS) for n in r.module_dict}
    assert set(NEEDS) - there == {"tb_trace"}


def config(**sections: Any) -> Config:
    return Config({"model": {}, "data": {"train": {}, "test": {}}, **sections})


@pytest.mark.parametrize(
    ("sections", "module", "line"),
    [
        (
            {"log_config": {"hooks": [{"type": "X"}, {"type": "TensorboardLoggerHook"}]}},
            "tensorboard", r"log_config.hooks\[1\]: TensorboardLoggerHook needs the package"
            " tensorboard, which is not installed; pip install tensorboard, or leave",
        ),
        ({"custom_hooks": [{"type": "MemoryProfilerHook"}]}, "psutil",
         r"custom_hooks\[0\]: .*pip install psutil"),
        ({"custom_hooks": [{"type": "ProfilerHook", "on_trace_ready": {"type": "tb_trace"}}]},
         "torch_tb_profiler", "pip install torch-tb-profiler"),
        ({"data": {"train": {"dataset": {"pipeline": [{"type": "Albu"}]}}}}, "albumentations",
         r"data.train.dataset.pipeline\[0\]: Albu needs .*pip install albumentations"),
        ({"data": {"val": {"pipeline": [{"file_client_args": {"backend": "petrel"}}]}}},
         "petrel_client", "petrel needs the package petrel_client.* on no public registry"),
        ({"data": {"test": [{"type": "LVISV1Dataset"}]}}, "lvis", r"data.test\[0\]: LVISV1Dataset"),
        ({"model": {"backbone": {"type": "mmcls.ConvNeXt"}}}, "mmcls",
         "model.backbone: mmcls.ConvNeXt needs"),
        ({"evaluation": {"metric": ["bbox", "cityscapes"]}}, "cityscapesscripts",
         "evaluation.metric: cityscapes needs"),
    ],
)  # fmt: skip
def test_one_line_names_place_package_and_fix(
    sections: dict[str, Any], module: str, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=line):
        check_packages(config(**sections), trains=True)
    monkeypatch.setitem(sys.modules, module, sys)
    if module != "psutil":
        check_packages(config(**sections), trains=True)


def test_commands_that_do_not_train_need_no_hooks_and_no_augmentation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "albumentations", None)
    sections = {
        "custom_hooks": [{"type": "PaviLoggerHook"}],
        "data": {"train": {"pipeline": [{"type": "Albu"}]}, "test": {}},
    }
    check_packages(config(**sections), trains=False)
    assert Package("pavi").is_missing


@pytest.mark.parametrize("metric", [None, 50, [["cityscapes"]]])
def test_a_metric_that_is_no_name_needs_no_package(metric: Any) -> None:
    check_packages(config(evaluation={"metric": metric}), trains=True)
