"""Packages that mmcv and mmdet import only if a config needs them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmcv import Config


@dataclass(frozen=True, slots=True)
class Package:
    """A package that may be missing.

    Attributes:
        module: Its import name.
        install: Argument of ``pip install``; empty if no registry has it.
    """

    module: str
    install: str = ""

    @property
    def is_missing(self) -> bool:
        """Whether it cannot be imported."""
        if self.module in sys.modules:
            return sys.modules[self.module] is None
        try:
            return importlib.util.find_spec(self.module) is None
        except (ImportError, ValueError):
            return True


_LVIS = Package("lvis", "lvis")
_PANOPTIC = Package("panopticapi", "git+https://github.com/cocodataset/panopticapi.git")
# By the type's name.
NEEDS: dict[str, tuple[Package, ...]] = {
    "TensorboardLoggerHook": (Package("tensorboard", "tensorboard"),),
    "WandbLoggerHook": (Package("wandb", "wandb"),),
    "MMDetWandbHook": (Package("wandb", "wandb"),),
    "MlflowLoggerHook": (Package("mlflow", "mlflow"),),
    "NeptuneLoggerHook": (Package("neptune.new", "'neptune-client<1'"),),
    "PaviLoggerHook": (Package("pavi"),),
    "DvcliveLoggerHook": (Package("dvclive", "dvclive"),),
    "ClearMLLoggerHook": (Package("clearml", "clearml"),),
    "SegmindLoggerHook": (Package("segmind", "segmind"),),
    "MemoryProfilerHook": (
        Package("psutil", "psutil"),
        Package("memory_profiler", "memory_profiler"),
    ),
    "tb_trace": (Package("torch_tb_profiler", "torch-tb-profiler"),),
    "Albu": (Package("albumentations", "albumentations"),),
    "Corrupt": (Package("imagecorruptions", "imagecorruptions"),),
    "InstaBoost": (Package("instaboostfast", "instaboostfast"),),
    "LoadPanopticAnnotations": (_PANOPTIC,),
    "CocoPanopticDataset": (_PANOPTIC,),
    "LVISDataset": (_LVIS,),
    "LVISV05Dataset": (_LVIS,),
    "LVISV1Dataset": (_LVIS,),
    "PAAHead": (Package("sklearn", "scikit-learn"),),
}
# By the name of a file storage backend.
BACKENDS = {
    "ceph": Package("ceph"),
    "petrel": Package("petrel_client"),
    "memcached": Package("mc"),
    "lmdb": Package("lmdb", "lmdb"),
}
# By the registry scope that prefixes a type's name.
SCOPES = {
    "mmcls": Package("mmcls", "'mmcls>=0.20,<1'"),
    "mmseg": Package("mmseg", "'mmsegmentation<1'"),
}
METRICS = {"cityscapes": Package("cityscapesscripts", "cityscapesscripts")}
TRAINING = ("model", "data", "log_config", "custom_hooks", "optimizer_config")


def check_packages(config: Config, *, trains: bool) -> None:
    """Raise ValueError, naming package and fix, if the config needs a package that is missing.

    Args:
        config: Result of `dq.detector.config.read.finish`.
        trains: Check hooks and training data too, instead of only the model and ``data.test``.
    """
    if trains:
        parts = [(name, config.get(name)) for name in TRAINING]
    else:
        parts = [("model", config.get("model")), ("data.test", config.data.get("test"))]
    for name, section in parts:
        for where, what, package in _needs(section, name):
            if package.is_missing:
                raise ValueError(_message(where, what, package))
    asked = config.get("evaluation", {}).get("metric")
    for metric in asked if isinstance(asked, list | tuple) else [asked]:
        if isinstance(metric, str) and metric in METRICS and METRICS[metric].is_missing:
            raise ValueError(_message("evaluation.metric", metric, METRICS[metric]))


def _message(where: str, what: str, package: Package) -> str:
    fix = f"pip install {package.install}" if package.install else "it is on no public registry"
    return (
        f"{where}: {what} needs the package {package.module.partition('.')[0]}, which is not"
        f" installed; {fix}, or leave {what} out"
    )


def _needs(section: Any, where: str) -> Iterator[tuple[str, str, Package]]:
    """Yield for each type in a section that needs a package: its key, its name, the package."""
    if isinstance(section, list | tuple):
        for number, item in enumerate(section):
            yield from _needs(item, f"{where}[{number}]")
    if not isinstance(section, Mapping):
        return
    kind = section.get("type")
    if isinstance(kind, str):
        scope, _, name = kind.rpartition(".")
        if scope.partition(".")[0] in SCOPES:
            yield where, kind, SCOPES[scope.partition(".")[0]]
        for package in NEEDS.get(name, ()):
            yield where, name, package
    backend = section.get("backend")
    if isinstance(backend, str) and backend in BACKENDS:
        yield where, backend, BACKENDS[backend]
    for key, value in section.items():
        yield from _needs(value, f"{where}.{key}")
