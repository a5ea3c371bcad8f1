"""The state of a training in a checkpoint: everything for an exact resume, of every rank.

In addition to the content of `dq.detector.model.checkpoint_content`, such a checkpoint has
``training`` (progress and micro-batches per step), ``companions`` (weight average, oscillation) and
``ranks``: for each rank the random generators, the losses not logged yet, and the tensors that
differ from rank 0.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from dq.counted import counted
from dq.detector.model.build import load_float_state
from dq.detector.model.checkpoint_content import QUANTIZATION, compose, load_quantization
from dq.detector.step.rank_state import (
    Plain,
    changed_attributes,
    generators,
    pending_logs,
    set_attributes,
    set_generators,
)
from dq.detector.training.optimizer_state import load_optimizer_
from dq.dist.equality.digest import differing_names
from dq.dist.equality.own_tensors import own_tensors
from dq.dist.exchange import collectives
from dq.dist.exchange.data_parallel import mean_buffers, unwrap
from dq.sync import check_equal_on_ranks

log = logging.getLogger(__name__)
COMPANIONS, TRAINING, RANKS = "companions", "training", "ranks"
SEPARATOR = "\t"


def training_state(runner: Any, meta: Mapping[str, Any], training: Mapping[str, Any]) -> Any:
    """Return the content of a resumable checkpoint; every rank must call it.

    Call it while the weight average, if there is one, is in the model. The running statistics in
    the checkpoint are the mean over ranks, as evaluation needs. Each rank continues with its own,
    so that a training does not depend on when its checkpoints are written.

    Args:
        runner: Runner of this training.
        meta: mmdet's ``meta``.
        training: The progress of the training, as plain values.

    Returns:
        The content on the main rank, None on the others.

    Raises:
        RuntimeError: On all ranks, if weights or quantizers differ between ranks.
    """
    content = compose(
        unwrap(runner.model),
        graph=runner.graph,
        recipe=runner.recipe,
        meta=meta,
        optimizer=runner.optimizer,
    )
    content[COMPANIONS] = {k: c.state_dict() for k, c in runner.companions.items()}
    content[TRAINING] = dict(training)
    mine = _take_means(content["state_dict"], mean_buffers(unwrap(runner.model)))
    own = mine | own_tensors(dict(_tensors(content)))
    _refuse_divergence(unwrap(runner.model), list(own))
    parts = collectives.gather_objects(
        {
            "tensors": own,
            "generators": generators(),
            "losses": pending_logs(runner.log_buffer),
            "attributes": changed_attributes(runner.attributes, unwrap(runner.model)),
        }
    )
    if parts is None:
        return None
    content[RANKS] = parts
    return content


def _take_means(state: dict[str, Tensor], means: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put the means into a state dict; return the former values that differ, by path."""
    own = {}
    for name, mean in means.items():
        if name in state and not torch.equal(state[name], mean.cpu()):
            own[f"state_dict{SEPARATOR}{name}"] = state[name]
            state[name] = mean.cpu()
    return own


def load_training_state(
    runner: Any, content: Mapping[str, Any], source: str, *, new_optimizer_settings: bool = False
) -> dict[str, Any]:
    """Restore a training from the result of `training_state`; every rank must call it.

    Losses not logged yet are in ``runner.pending`` until the log of the epoch begins.

    Args:
        runner: Runner of the same training, with all hooks registered.
        content: Content of the checkpoint; tensors of ranks are inserted.
        source: Its name, for messages.
        new_optimizer_settings: Keep the optimizer's settings, such as its learning rate.

    Returns:
        The stored ``training``; empty for a checkpoint of plain mmdet, which does not have it.

    Raises:
        ValueError: It belongs to another model, recipe or optimizer.
    """
    ranks = content.get(RANKS, [])
    same = len(ranks) == collectives.world_size()
    mine: Mapping[str, Any] = ranks[collectives.rank()] if same else {}
    for path, tensor in mine.get("tensors", {}).items():
        _put(content, path, tensor)
    detector = unwrap(runner.model)
    load_float_state(detector, content["state_dict"], source)
    if runner.graph is not None:
        load_quantization(runner.graph, content, source)
    if "optimizer" in content:
        load_optimizer_(
            runner.optimizer, content["optimizer"], source, new_settings=new_optimizer_settings
        )
    _load_companions(runner, content, source)
    attributes: Plain = mine.get("attributes") or (ranks[0]["attributes"] if ranks else {})
    set_attributes(detector, attributes)
    if same:
        set_generators(mine["generators"])
        runner.pending = mine["losses"]
    elif ranks:
        log.info(
            "%s was written by %s: weights, schedule and samples continue unchanged; random"
            " generators and running statistics of single ranks do not",
            source,
            counted(len(ranks), "rank[s]"),
        )
    if runner.graph is not None:
        proof = check_equal_on_ranks(runner.graph, f"after resuming from {source}")
        log.info("ranges are equal on all ranks after resuming, digest %s", proof[:16])
    return dict(content.get(TRAINING, {}))


def _load_companions(runner: Any, content: Mapping[str, Any], source: str) -> None:
    for name, companion in runner.companions.items():
        state = content.get(COMPANIONS, {}).get(name)
        if state is not None:
            companion.load_state_dict(state)
            continue
        log.warning("%s has no state of %s, which starts again", source, name)
        if companion is runner.average:
            runner.average.begin_()


def _tensors(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of the model, its quantizers and companions, with its path."""
    yield from _below(content["state_dict"], "state_dict")
    yield from _below(
        content.get(QUANTIZATION, {}).get("state", {}), f"{QUANTIZATION}{SEPARATOR}state"
    )
    yield from _below(content[COMPANIONS], COMPANIONS)


def _below(value: Any, path: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _below(item, f"{path}{SEPARATOR}{key}")


def _put(content: Any, path: str, tensor: Tensor) -> None:
    *parents, name = path.split(SEPARATOR)
    here: MutableMapping[str, Any] = content
    for parent in parents:
        here = here[parent]
    here[name] = tensor


def _refuse_divergence(detector: nn.Module, paths: list[str]) -> None:
    """Raise if more than running statistics differ, because such a training is invalid."""
    parameters = {f"state_dict{SEPARATOR}{name}" for name, _ in detector.named_parameters()}
    wrong = [p for p in paths if p in parameters or p.startswith(f"{QUANTIZATION}{SEPARATOR}")]
    everywhere = collectives.all_gather_objects(wrong)
    names = sorted({path.split(SEPARATOR)[-1] for found in everywhere for path in found})
    if names:
        ranks = [rank for rank, found in enumerate(everywhere) if found]
        raise RuntimeError(differ(names, ranks))


def differ(names: list[str], ranks: list[int] | None = None) -> str:
    """Return the message for weights that differ between ranks."""
    where = f"rank {', '.join(map(str, ranks))} and rank 0" if ranks else "ranks"
    return (
        f"{counted(len(names), 'weight[s] or range[s] [differs|differ]')} between {where}, first"
        f" {', '.join(names[:3])}; this is a fault of the cluster or of this program: the"
        " checkpoints written before are sound, resume from the last with --resume"
    )


def compare_weights(detector: nn.Module) -> None:
    """Raise RuntimeError, on all ranks, if weights differ; every rank must call it."""
    names = differing_names([(n, p.detach()) for n, p in detector.named_parameters()])
    if names:
        raise RuntimeError(differ(names))
