"""Find or download the file of a checkpoint that a config names by an address."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlparse

import torch
from mmcv.runner.checkpoint import (
    get_deprecated_model_names,
    get_external_models,
    get_mmcls_models,
    get_torchvision_models,
)

from dq.data.disk import explained
from dq.data.download import fetch_file
from dq.error_text import error_text


def _open_mmlab(name: str) -> str:
    return str(get_deprecated_model_names().get(name, name))


# mmcv's lists of models, and how to convert the name in an address to a name in the list.
_ZOOS: Mapping[str, tuple[Callable[[], Mapping[str, str]], Callable[[str], str]]] = {
    "torchvision": (get_torchvision_models, lambda name: name.lower().replace("_weights", "")),
    "modelzoo": (get_torchvision_models, lambda name: name.lower().replace("_weights", "")),
    "open-mmlab": (get_external_models, _open_mmlab),
    "openmmlab": (get_external_models, _open_mmlab),
    "mmcls": (get_mmcls_models, str),
}


def local_file(name: str) -> Path:
    """Return the path of a checkpoint file; an address is downloaded into torch's cache first.

    Call it on the main rank only, which reads for all. mmcv's own functions contain a barrier, in
    which a single rank would wait forever.

    Args:
        name: A path, a web address, or an address of mmcv, such as ``torchvision://resnet50``.

    Raises:
        ValueError: The address cannot be reached, its scheme is unknown, or mmcv does not list the
            model.
        RuntimeError: The disk of the cache is full or broken.
    """
    kind, _, rest = name.partition("://")
    if not rest:
        return Path(os.path.expanduser(name))
    if kind == "file":
        return Path(rest)
    address = name
    if kind in _ZOOS:
        urls, renamed = _ZOOS[kind]
        known = urls()
        if renamed(rest) not in known:
            raise ValueError(f"{name}: there is no such model in mmcv's list; give a file")
        address = known[renamed(rest)]
    if urlparse(address).scheme not in ("http", "https"):
        raise ValueError(f"{name} cannot be fetched: only web addresses can be; give a file")
    return _fetched(name, address)


def _fetched(name: str, address: str) -> Path:
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(address).path).name
    if file.is_file():
        return file
    try:
        with explained(file.parent):
            file.parent.mkdir(parents=True, exist_ok=True)
        fetch_file(address, file)
    except ValueError as error:
        raise ValueError(f"{name} cannot be fetched ({error_text(error)})") from error
    except RuntimeError as error:
        raise RuntimeError(f"{name} cannot be fetched: {error} with TORCH_HOME") from error
    return file
