"""Initial float weights of a detector, with a check that the file fits the network."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mmcv.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.config.addresses import local_file
from dq.dist.work.on_main_rank import on_main_rank
from dq.error_text import typed_error_text

log = logging.getLogger(__name__)
# Even the weights of another network share a few names with this one.
LEAST_SHARE = 0.5
_FIX = (
    "without internet give a file: --cfg-options model.backbone.init_cfg.checkpoint=FILE.pth, or"
    " none: model.backbone.init_cfg=None"
)


def initialise(detector: nn.Module) -> None:
    """Draw or load the detector's initial weights by its ``init_cfg``; every rank must call it.

    The main rank first checks the file of each ``init_cfg`` of type ``Pretrained``. mmcv itself
    loads any keys that fit, and only logs a line if none does.

    Args:
        detector: Result of `mmdet.models.build_detector`.

    Raises:
        ValueError: A file is missing, cannot be read or downloaded, or belongs to another network.
    """
    on_main_rank(lambda: check_pretrained(detector))
    try:
        with _no_prints():
            detector.init_weights()  # type: ignore[operator]
    except Exception as error:  # a custom network may raise anything
        reason = typed_error_text(error)[:300]
        raise ValueError(f"initial weights cannot be loaded: {reason}; {_FIX}") from error


def check_pretrained(detector: nn.Module) -> None:
    """Raise ValueError if the file of a ``Pretrained`` init_cfg does not fit its module."""
    for name, module, section in _pretrained(detector):
        source, prefix = str(section.get("checkpoint")), section.get("prefix")
        where = f"initial weights of {name or 'the detector'}"
        whole = state = _state_in(_content(source, where), source, where)
        if source.startswith("mmcls://"):
            prefix = "backbone"  # mmcv uses no other part.
        if prefix:
            state = _below(state, str(prefix), module, f"{where}: {source}")
        else:  # As mmcv does, but only without a prefix.
            state = {key.removeprefix("module."): value for key, value in state.items()}
        # Networks that rename keys report themselves what does not fit.
        if not _renames_keys(module):
            _refuse_others(module, state, whole, f"{where}: {source}")


def _pretrained(detector: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, Any]]]:
    """Yield every module that loads weights, with its name and its ``init_cfg``."""
    for name, module in detector.named_modules():
        found = getattr(module, "init_cfg", None)
        for section in found if isinstance(found, list | tuple) else [found]:
            if isinstance(section, Mapping) and section.get("type") == "Pretrained":
                yield name, module, section


def _content(source: str, where: str) -> Any:
    try:
        path = local_file(source)
    except ValueError as error:
        raise ValueError(f"{where}: {error}; {_FIX}") from error
    if not path.is_file():
        raise ValueError(f"{where}: {source} does not exist; {_FIX}")
    try:
        with _no_prints():
            return CheckpointLoader.load_checkpoint(str(path), map_location="cpu")
    except Exception as error:  # a damaged file may raise anything
        reason = typed_error_text(error)[:300]
        raise ValueError(f"{where}: {source} cannot be read: {reason}; {_FIX}") from error


def _state_in(content: Any, source: str, where: str) -> dict[str, Tensor]:
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    found = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not found:
        raise ValueError(f"{where}: {source} holds no weights: neither 'state_dict' nor tensors")
    return found


def _below(
    state: Mapping[str, Tensor], prefix: str, module: nn.Module, where: str
) -> dict[str, Tensor]:
    prefix = prefix if prefix.endswith(".") else f"{prefix}."
    found = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
    if not found:
        tops = sorted({key.partition(".")[0] for key in state})
        right = _fitting_prefix(state, module)
        fix = "set init_cfg.prefix to one of these, or to None for all"
        raise ValueError(
            f"{where} has nothing below prefix {prefix!r}, only"
            f" {', '.join(tops[:6])}{', ...' if len(tops) > 6 else ''};"
            f" {fix if right is None else _with_prefix(right)}"
        )
    return found


def _fitting_prefix(state: Mapping[str, Tensor], module: nn.Module) -> str | None:
    """Return the prefix below which most weights of the module are; None if none is there."""
    own = [key for key in module.state_dict() if "num_batches_tracked" not in key]
    fits: Counter[str] = Counter()
    for key in own:
        for there in state:
            if there == key or there.endswith(f".{key}"):
                fits[there[: -len(key)]] += 1
    best = max(fits, key=lambda prefix: fits[prefix], default=None)
    return best if best is not None and fits[best] >= LEAST_SHARE * len(own) else None


def _with_prefix(prefix: str) -> str:
    # Without a prefix, mmcv itself removes ``module.`` from the names.
    return f"set init_cfg.prefix={None if prefix in ('', 'module.') else prefix!r}"


def _refuse_others(
    module: nn.Module, state: Mapping[str, Tensor], whole: Mapping[str, Tensor], where: str
) -> None:
    own = {k: v for k, v in module.state_dict().items() if "num_batches_tracked" not in k}
    fitting = [k for k, v in own.items() if k in state and state[k].shape == v.shape]
    if len(fitting) >= LEAST_SHARE * len(own):
        if len(fitting) < len(own):
            log.info("%s fills %d of %s", where, len(fitting), counted(len(own), "weight[s]"))
        return
    wrong = [k for k in own if k not in fitting]
    first = wrong[0]
    how = (
        f"{first} is {tuple(state[first].shape)} there and {tuple(own[first].shape)} here"
        if first in state
        else f"{first} is not in it"
    )
    right = _fitting_prefix(whole, module)
    fix = (
        "give this network's file, or load the weights that fit with load_from"
        if right in (None, "")
        else _with_prefix(str(right))
    )
    raise ValueError(
        f"{where} holds the weights of another network: {len(fitting)} of {len(own)} fit, {how};"
        f" {fix}"
    )


def _renames_keys(module: nn.Module) -> bool:
    """Return whether the module reads its file with its own code, as Swin and PVT do."""
    code = getattr(getattr(type(module), "init_weights", None), "__code__", None)
    names = code.co_names if code is not None else ()
    return "load_state_dict" in names or "CheckpointLoader" in names


@contextlib.contextmanager
def _no_prints() -> Iterator[None]:
    """Silence mmcv's print of the file's source and torch's progress of a download."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
