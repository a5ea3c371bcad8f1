"""Check that every ``type`` in a config exists, before anything is built.

mmcv says ``'NoneType' object has no attribute 'parent'`` for an unknown scope. And some parts are
built late: the optimizer and hooks of a quantized training only after the float training.
Settings of data sets that mmdet would not refuse in a message of its own are checked too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv.ops
import mmdet.models  # noqa: F401  registers its types
from mmcv import Config
from mmcv.runner import HOOKS, OPTIMIZER_BUILDERS, OPTIMIZERS, RUNNERS, Hook
from mmcv.utils import Registry
from mmdet.core.utils import dist_utils  # noqa: F401  registers mmdet's hooks
from mmdet.datasets import DATASETS, PIPELINES, CustomDataset

from dq.field_types import fits
from dq.names import hint

# Keys of a model's config whose ``type`` is a name in mmcv.ops, and keys whose ``type`` is in no
# registry: the code that reads it looks it up in another way.
_OPERATORS = ("nms", "roi_layer")
_OWN_NAMES = re.compile(r"adapt_cfg|\w+_trans|nms|roi_layer")
# Patterns of a key, and a part of the name of the modules that define such classes. A message
# suggests only names from there.
_ROLES = (
    (re.compile(r"(.*_)?backbone"), ".backbones"),
    (re.compile(r"(.*_)?neck"), ".necks"),
    (re.compile(r"(loss_|.*_loss).*"), ".losses"),
    (re.compile(r".*_head"), "_heads"),
    (re.compile(r"model"), ".detectors"),
)
# Sections of a training; `model` and `data` are checked in their own way.
_POLICIES = {"lr_config": "LrUpdaterHook", "momentum_config": "MomentumUpdaterHook"}


def check_training_types(config: Config) -> None:
    """Raise ValueError if a type that a training builds does not exist.

    Args:
        config: Result of `dq.detector.config.read.finish`.
    """
    _check(config.get("runner"), "runner", RUNNERS)
    check_model_types(config.get("model"))
    for split in ("train", "val", "test"):
        check_data_types(config.data.get(split), f"data.{split}")
        _check_settings(config.data.get(split), f"data.{split}")
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, Mapping):
        raise ValueError(f"optimizer is {optimizer!r}; use dict(type='SGD', lr=0.01), for example")
    _check(optimizer, "optimizer", OPTIMIZERS)
    if isinstance(optimizer.get("constructor"), str):
        name = str(optimizer["constructor"])
        _check_name(name, "optimizer.constructor", _names(OPTIMIZER_BUILDERS))
    _check(config.get("optimizer_config"), "optimizer_config", HOOKS)
    hooks = {
        "custom_hooks": config.get("custom_hooks"),
        "log_config.hooks": (config.get("log_config") or {}).get("hooks"),
    }
    for key, given in hooks.items():
        for number, hook in enumerate(given or ()):
            _check_hook(hook, f"{key}[{number}]")
    for section, ending in _POLICIES.items():
        _check_policy(config.get(section), section, ending)


def _check_hook(hook: Any, where: str) -> None:
    """Refuse what is neither a section of a hook that exists nor a hook that is built already."""
    _refuse_text(hook, where)
    if not isinstance(hook, Mapping | Hook):
        raise ValueError(f"{where} is {hook!r}; use dict(type=...)")
    _check(hook, where, HOOKS)


def _refuse_text(value: Any, where: str) -> None:
    """Refuse a text where a dict belongs, such as ``--cfg-options`` makes of ``[dict(...)]``."""
    if isinstance(value, str):
        raise ValueError(
            f"{where} is the text {value!r} and not dict(type=...), which --cfg-options cannot"
            " give; write it into the config"
        )


def _check_policy(section: Any, where: str, ending: str) -> None:
    """Check a schedule's policy, which is the name of mmcv's hook without its ending."""
    if not isinstance(section, Mapping) or not section:
        return
    known = [n.removesuffix(ending) for n in _names(HOOKS) if n.endswith(ending) and n != ending]
    policy = section.get("policy")
    if not isinstance(policy, str):
        raise ValueError(f"{where} has no policy; use one of {', '.join(sorted(known))}")
    # As mmcv does: a name in lower case is capitalized.
    name = policy.title() if policy == policy.lower() else policy
    if name not in known:
        near = {one.lower(): one for one in known}.get(policy.lower())
        advice = f"did you mean {near}?" if near else hint(policy, known)
        raise ValueError(f"{where}.policy is {policy!r}, which does not exist; {advice}")


def check_dataset_types(config: Config) -> None:
    """Raise ValueError if a data set of any split does not exist, or has settings that are wrong.

    The steps of pipelines are not looked at.

    Args:
        config: Result of `dq.detector.config.read.finish`.
    """
    for split in ("train", "val", "test"):
        check_data_types(config.data.get(split), f"data.{split}", pipelines=False)
        _check_settings(config.data.get(split), f"data.{split}")


def check_data_types(section: Any, where: str, *, pipelines: bool = True) -> None:
    """Raise ValueError if a data set, a wrapper or a step of a pipeline does not exist.

    Args:
        section: ``data.train``, a list of such sections, or anything else, which is left alone.
        where: Its key.
        pipelines: Whether to look at the steps of pipelines too.
    """
    for place, part in _sets(section, where):
        _check(part, place, DATASETS)
        if pipelines:
            _check_steps(part.get("pipeline"), f"{place}.pipeline")


def _sets(section: Any, where: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the section of each data set and wrapper, with its key, the outer ones first."""
    if isinstance(section, list | tuple):
        for number, part in enumerate(section):
            yield from _sets(part, f"{where}[{number}]")
    if isinstance(section, Mapping):
        yield where, section
        for key in ("dataset", "datasets"):
            yield from _sets(section.get(key), f"{where}.{key}")


def _check_settings(section: Any, where: str) -> None:
    """Check settings of mmdet's own data sets; a class of the user may read them in its own way."""
    for place, part in _sets(section, where):
        kind = _class_of(part.get("type"), [DATASETS])
        if kind is None or kind.__module__.split(".")[0] not in ("mmdet", "dq"):
            continue
        classes = part.get("classes")
        if not fits(classes, str | tuple[str, ...] | None):
            raise ValueError(
                f"{place}.classes is {classes!r}; list the names of the classes as texts, or give"
                " the path of a file with a name in each line"
            )
        if "pipeline" not in part:
            continue
        steps = part["pipeline"]
        # Without a step that loads the image, mmdet's loaders fail with a RecursionError. The
        # pipeline of a wrapper may be empty.
        may_be_empty = not issubclass(kind, CustomDataset)
        if not isinstance(steps, list | tuple) or not (steps or may_be_empty):
            raise ValueError(f"{place}.pipeline is {steps!r}; list its steps, dict(type=...) each")


def _check_steps(steps: Any, where: str) -> None:
    """Check a pipeline, with the pipelines inside its steps; Albu's steps are not mmdet's."""
    if isinstance(steps, list | tuple):
        for number, step in enumerate(steps):
            _refuse_text(step, f"{where}[{number}]")
            _check_steps(step, f"{where}[{number}]")
    if not isinstance(steps, Mapping):
        return
    _check(steps, where, PIPELINES)
    if _class_of(steps.get("type"), [PIPELINES]) is not PIPELINES.module_dict.get("Albu"):
        for key in ("transforms", "policies"):
            _check_steps(steps.get(key), f"{where}.{key}")


def check_model_types(model: Any) -> None:
    """Raise ValueError if a type in a model's config does not exist.

    Args:
        model: ``config.model``.
    """
    registries = _all_registries()
    for where, section, owner in _sections(model, "model", None, registries):
        kind = section.get("type")
        key = re.sub(r"(\[\d+\])+$", "", where).rpartition(".")[2]
        # A class of the user may have names of its own in its settings.
        is_known_owner = owner is None or owner.__module__.split(".")[0] in ("mmdet", "mmcv")
        if not isinstance(kind, str) or not is_known_owner:
            continue
        if key in _OPERATORS:
            if not hasattr(mmcv.ops, kind):
                raise ValueError(_message(kind, f"{where}.type", dir(mmcv.ops)))
        elif not _OWN_NAMES.fullmatch(key) and _class_of(kind, registries) is None:
            raise ValueError(_message(kind, f"{where}.type", _candidates(key, registries)))


def _sections(
    value: Any, where: str, owner: Any, registries: list[Registry]
) -> Iterator[tuple[str, Mapping[str, Any], Any]]:
    """Yield each dict in a model's config: its key, itself, and the class whose setting it is."""
    if isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _sections(item, f"{where}[{number}]", owner, registries)
    if not isinstance(value, Mapping):
        return
    yield where, value, owner
    kind = value.get("type")
    within = kind if isinstance(kind, type) else _class_of(kind, registries) or owner
    for key, item in value.items():
        yield from _sections(item, f"{where}.{key}", within, registries)


def _all_registries() -> list[Registry]:
    """Return the registries of all imported modules, the user's too."""
    found: dict[int, Registry] = {}
    for module in list(sys.modules.values()):
        values = list(getattr(module, "__dict__", {}).values())
        found |= {id(value): value for value in values if isinstance(value, Registry)}
    return list(found.values())


def _candidates(key: str, registries: list[Registry]) -> list[str]:
    """Return the names of the classes that fit a key; all if nothing is known of it."""
    everything = {n: c for r in registries for n, c in r.module_dict.items()}
    for pattern, module in _ROLES:
        if pattern.fullmatch(key):
            return [n for n, c in everything.items() if module in c.__module__]
    subject = key.removesuffix("_cfg").rstrip("s")
    named = [r for r in registries if subject in r.name.lower().replace(" ", "_")]
    return [n for r in named for n in r.module_dict] or list(everything)


def _check(section: Any, where: str, registry: Registry) -> None:
    if isinstance(section, Mapping) and isinstance(section.get("type"), str):
        kind = section["type"]
        if _class_of(kind, [registry]) is None:
            raise ValueError(_message(kind, f"{where}.type", _names(registry)))


def _check_name(name: str, where: str, known: set[str]) -> None:
    if name not in known:
        raise ValueError(_message(name, where, known))


def _class_of(kind: Any, registries: list[Registry]) -> Any:
    """Return what a registry has by this name, None if none has it or its scope is unknown."""
    if not isinstance(kind, str):
        return None
    for registry in registries:
        try:
            found = registry.get(kind)
        except AttributeError:  # mmcv's answer to an unknown scope
            found = None
        if found is not None:
            return found
    return None


def _names(registry: Registry) -> set[str]:
    return {*registry.module_dict, *(registry.parent.module_dict if registry.parent else ())}


def _message(kind: str, where: str, known: Any) -> str:
    scope, _, name = kind.rpartition(".")
    if scope:
        names = set(known)
        right = f"did you mean {name}?" if name in names else hint(name, names)
        return (
            f"{where} is {kind!r}, and nothing is registered as {name} in the scope {scope};"
            f" {right} (a package with its own types is imported by"
            f" custom_imports=dict(imports=['{scope}']))"
        )
    return f"{where} is {kind!r}, which does not exist; {hint(kind, known)}"
