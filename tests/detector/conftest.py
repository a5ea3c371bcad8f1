"""A tiny SSD on the tiny digits, built and trained in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.launcher.conftest import CONFIG, ROOT


@pytest.fixture(scope="session")
def tiny(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Return a function from dotted overrides to the finished config."""
    from dq.detector.config.options import apply_options
    from dq.detector.config.read import finish, read_config

    path = tmp_path_factory.mktemp("config") / "tiny.py"
    base = str(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
    path.write_text(CONFIG.format(base=base, data_root=str(digits)))

    def config(**options: Any) -> Any:
        found = finish(read_config(path))
        apply_options(found, {key.replace("__", "."): value for key, value in options.items()})
        return found

    return config


@pytest.fixture
def detector(tiny: Callable[..., Any]) -> Any:
    """An untrained float detector."""
    import torch

    from dq.detector.data.datasets import test_classes
    from dq.detector.model.build import build_model

    torch.manual_seed(0)
    config = tiny()
    config.model.backbone.init_cfg = None
    return build_model(config, test_classes(config), initialise=True)
