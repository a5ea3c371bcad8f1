"""The table of mmdet's keys and flags is complete, compared with mmdet's and mmcv's code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import mmdet
import pytest
from mmcv import Config
from mmcv.runner import BaseRunner, CheckpointHook

from dq.detector.config.mmdet_flags import ACCEPTED_FLAGS, REFUSED_FLAGS
from dq.detector.config.mmdet_keys import (
    CHECKPOINT_KEYS,
    ENVIRONMENT,
    KEYS,
    OWN_KEYS,
    REFUSED,
    Key,
)
from dq.detector.config.read import check_top_level
from launcher.cli import build_parsers
from tests.detector.keys_page import PAGE, page

MMDET = Path(mmdet.__file__).parent
TOOLS = [MMDET / ".mim/tools" / name for name in ("train.py", "test.py")]
SOURCES = [
    *TOOLS,
    *(MMDET / "apis" / name for name in ("train.py", "test.py")),
    *(MMDET / "utils" / f"{name}.py" for name in (
        "compat_config", "replace_cfg_vals", "misc", "setup_env", "rfnext", "util_distribution")),
]  # fmt: skip
# These only look like keys of a config: methods of Config, and loops over any key.
METHODS = {"get", "pop", "items", "merge_from_dict", "dump", "pretty_text", "fromfile", "filename",
           "_cfg_dict", "replace", "copy", "keys", "values", "k"}  # fmt: skip


def path_of(node: ast.AST) -> list[str] | None:
    """Return the names in ``cfg.a.b``, ``cfg['a'].b``, ``cfg.get('a')``; None for anything else."""
    if isinstance(node, ast.Name):
        return [] if node.id in ("cfg", "updated_cfg") else None
    if isinstance(node, ast.Attribute):
        before = path_of(node.value)
        return None if before is None else [*before, node.attr]
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        before = path_of(node.value)
        return None if before is None else [*before, str(node.slice.value)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        before = path_of(node.func.value)
        word = node.args[0] if node.args else None
        if (
            before is not None
            and node.func.attr in ("get", "pop")
            and isinstance(word, ast.Constant)
        ):
            return [*before, str(word.value)]
    return None


def keys_in(source: Path) -> Iterator[str]:
    """Yield every key of a config that a file reads, dotted to two parts."""
    for node in ast.walk(ast.parse(source.read_text())):
        found = path_of(node)
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            before = path_of(node.comparators[0])
            found = None if before is None else [*before, str(node.left.value)]
        parts = [part for part in found or [] if part not in METHODS]
        if parts:
            yield ".".join(parts[:2])


def test_every_key_that_mmdets_code_reads_is_in_the_table() -> None:
    names = {key.name for key in KEYS}
    found = {key for source in SOURCES for key in keys_in(source)}
    # Check the parser with a few known keys, each read in another way.
    assert {"auto_scale_lr.base_batch_size", "resume_from", "cudnn_benchmark", "dist_params",
            "mp_start_method", "data.imgs_per_gpu", "total_epochs", "fp16"} <= found  # fmt: skip
    tops = {key.partition(".")[0] for key in found}
    assert sorted(tops - names) == []


def test_every_key_of_data_that_mmdet_renames_is_in_the_table() -> None:
    names = {key.name for key in KEYS}
    moved = {key for key in keys_in(MMDET / "utils/compat_config.py") if key.startswith("data.")}
    assert len(moved) >= 8
    assert sorted(moved - names) == []


def test_what_runners_register_is_in_the_table() -> None:
    parameters = list(inspect.signature(BaseRunner.register_training_hooks).parameters)[1:]
    of_config = {"custom_hooks_config": "custom_hooks"}
    names = {key.name for key in KEYS}
    assert sorted({of_config.get(name, name) for name in parameters} - names) == []


def test_every_argument_of_the_checkpoint_hook_is_in_its_table() -> None:
    parameters = set(inspect.signature(CheckpointHook).parameters) - {"kwargs"}
    # Arguments that the hook passes to the runner.
    from mmcv.runner import EpochBasedRunner

    parameters |= set(inspect.signature(EpochBasedRunner.save_checkpoint).parameters) - {"self"}
    assert sorted(parameters - {key.name for key in CHECKPOINT_KEYS}) == []


def test_every_variable_of_the_environment_is_in_its_table() -> None:
    text = "".join(source.read_text() for source in SOURCES)
    found = set(
        re.findall(r"'([A-Z][A-Z_]+)' (?:not )?in os\.environ|os\.environ\['(\w+)'\]", text)
    )
    names = {name for pair in found for name in pair if name}
    assert "MMDET_DATASETS" in names
    assert sorted(names - {key.name for key in ENVIRONMENT}) == []


def flags_of(tool: Path) -> set[str]:
    return set(re.findall(r"add_argument\(\s*'(--[\w-]+)'", tool.read_text()))


def test_every_flag_of_mmdets_tools_is_accepted_or_refused_by_name() -> None:
    flags = {flag for tool in TOOLS for flag in flags_of(tool)}
    assert len(flags) > 20
    _, children = build_parsers()
    ours = {name for child in children.values() for name in child._option_string_actions}
    assert sorted(flags - ours - set(REFUSED_FLAGS)) == []
    assert sorted(set(ACCEPTED_FLAGS) - ours) == []


@pytest.mark.parametrize("name", REFUSED)
def test_key_that_nothing_reads_is_refused_by_name(name: str) -> None:
    config = Config({"model": {}, "data": {}, name: {}})
    with pytest.raises(ValueError, match=f"nothing reads {name}; .*custom_hooks"):
        check_top_level(config, Path("x.py"))


@pytest.mark.parametrize(
    ("section", "given", "meant"),
    [
        ("data", "trian", "train"),
        ("data", "samples_per_gp", "samples_per_gpu"),
        ("data", "tets_dataloader", "test_dataloader"),
        ("auto_scale_lr", "enabl", "enable"),
        ("auto_scale_lr", "base_batchsize", "base_batch_size"),
        ("fp16", "loss_scal", "loss_scale"),
        ("log_config", "intervall", "interval"),
    ],
)
def test_a_misspelt_key_of_a_section_is_refused(section: str, given: str, meant: str) -> None:
    config = Config({"model": {}, "data": {}} | {section: {given: 1}})
    line = rf"x.py: {section}\.{given} is not a setting; did you mean {meant}\?"
    with pytest.raises(ValueError, match=line):
        check_top_level(config, Path("x.py"))


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_of_the_table_may_be_in_a_config(key: Key) -> None:
    section, _, name = key.name.partition(".")
    if key.name not in REFUSED:
        given = {section: {name: {}} if name else {}}
        check_top_level(Config({"model": {}, "data": {}} | given), Path("x.py"))


def test_page_is_the_table() -> None:
    assert PAGE.read_text() == page(), "write it: python -m tests.detector.keys_page"


def test_our_own_keys_are_not_mmdets() -> None:
    assert not {key.name for key in KEYS} & set(OWN_KEYS)
