"""Every Python snippet on a page runs: settings are read as a config's, code is executed."""

from __future__ import annotations

import ast
import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from dq.detector.config.custom_imports import import_modules
from dq.detector.config.mmdet_keys import CHECKPOINT_KEYS, KEYS, OWN_KEYS, TOP_LEVEL_KEYS
from dq.detector.model.compilation import Compilation
from dq.detector.step.guards import Guards
from dq.names import check_keys
from dq.tracking.record.settings import Tracking
from launcher.config import command_for, guards, quant_settings, tracking
from launcher.sections import SECTIONS, SHARES
from tests.docs.check_key import check_key
from tests.docs.pages import PAGES, ROOT, Block, blocks, inline_code
from tests.quant.registered import names_stay

# Names in the text that are given a value and are no setting of a config.
OTHERS = {
    "is_host": "an argument of torch's store",
    "merge": "an attribute of an observer",
    "separate_eval": "an argument of mmdet's ConcatDataset",
    "session.x64quantprecision": "an option of ONNX Runtime",
    "strict": "an argument of zip",
}
Section = Callable[[Any], object]
READ: dict[str, Section] = {
    "quantize": command_for,
    "quant": quant_settings,
    "guards": guards,
    "tracking": tracking,
    "custom_imports": import_modules,
    "compile": lambda given: isinstance(given, bool) or Compilation(**given),
    "channels_last": lambda given: isinstance(given, bool),
    "allow_tf32": lambda given: given is None or isinstance(given, bool),
    "checkpoint_config": lambda given: check_keys(
        given, [key.name for key in CHECKPOINT_KEYS], "checkpoint_config"
    ),
}


def is_settings(code: str) -> bool:
    """Whether a text is nothing but assignments to keys of a config."""
    try:
        body = ast.parse(code).body
    except SyntaxError:
        return False
    names = [name for statement in body for name in assigned(statement)]
    known = {*TOP_LEVEL_KEYS, "_base_"}
    return bool(names) and len(names) == len(body) and bool(known & set(names))


def assigned(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.Assign):
        yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def read_settings(code: str) -> None:
    """Read each statement as a config that has only this.

    Raises:
        ValueError: A key or a value is wrong.
    """
    for statement in ast.parse(code).body:
        (name,) = assigned(statement)
        found: dict[str, Any] = {}
        exec(compile(ast.Module([statement], []), "page", "exec"), found)
        check_keys([name], [*TOP_LEVEL_KEYS, "_base_"], "config")
        if name in READ:
            READ[name](found[name])


PYTHON = [block for p in PAGES for block in blocks(p) if block.language in ("python", "py")]
UNMARKED = [b for p in PAGES for b in blocks(p) if b.language == "" and is_settings(b.text)]
SETTINGS = [b for b in PYTHON if is_settings(b.text)] + UNMARKED
CODE = [b for b in PYTHON if not is_settings(b.text)]


def place(block: Block) -> str:
    return block.place


@pytest.mark.parametrize("block", SETTINGS, ids=place)
def test_settings_are_read(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "examples")  # Where the modules are that pages import.
    with names_stay():
        read_settings(block.text)
    for path in (ROOT / "examples").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    "code",
    [
        "quant = dict(observr='mse')",
        "quant = dict(schedule=dict(round_aftr=1))",
        "quant = dict(preset='int7')",
        "guards = dict(nonfinite='skp')",
        "checkpoint_config = dict(intervall=1)",
        "quantize = 'trainig'",
        "quant = dict()\nquand = dict()",
    ],
)
def test_wrong_settings_are_found(code: str) -> None:
    assert is_settings(code)
    with pytest.raises(ValueError, match=r"is not a setting|does not exist|use |did you mean"):
        read_settings(code)


def test_pages_list_all_guards_and_tracking_with_their_defaults() -> None:
    texts = {b.page.name: b.text for b in SETTINGS if b.text.startswith(("guards", "tracking"))}
    for page, name, default in (
        ("faults.md", "guards", Guards()),
        ("tracking.md", "tracking", Tracking()),
    ):
        found: dict[str, Any] = {}
        exec(texts[page], found)
        assert set(found[name]) == set(SECTIONS[name])
        assert READ[name](found[name]) == default


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def for_qat() -> dict[str, Any]:
    """Return what the example of docs/qat.md begins with."""
    model = small_net()
    return {
        "model": model,
        "batches": [torch.randn(2, 3, 8, 8) for _ in range(2)],
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.01),
    }


def for_origin() -> dict[str, Any]:
    """Return what the example of docs/origin.md begins with, and a float checkpoint on disk."""
    from mmdet.models import build_detector

    from dq.detector.config.config_file import load_config_file

    config = load_config_file(ROOT / "configs/digits/ssd_resnet_fpn_160.py")
    config.model.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    config.model.neck.update(in_channels=[16, 32, 64], out_channels=16)
    config.model.bbox_head.in_channels = (16, 16, 16)
    detectors = [build_detector(config.model) for _ in range(3)]
    torch.save(detectors[0].state_dict(), "float.pth")
    images = torch.randn(2, 3, 96, 96)
    meta = {"img_shape": (96, 96, 3), "pad_shape": (96, 96, 3), "scale_factor": np.ones(4)}
    boxes = torch.tensor([[10.0, 10.0, 40.0, 40.0]])
    batch = {
        "img": images,
        "img_metas": [dict(meta) for _ in range(2)],
        "gt_bboxes": [boxes, boxes],
        "gt_labels": [torch.tensor([1]), torch.tensor([2])],
    }
    return {
        "config": config,
        "detector_2": detectors[1],
        "detector_3": detectors[2],
        "batches": [images],
        "loader": [batch],
        "metas": batch["img_metas"],
    }


# What a page's examples take for granted.
GIVEN: dict[str, Callable[[], dict[str, Any]]] = {"qat.md": for_qat, "origin.md": for_origin}
# Their own test runs them, on several ranks too.
ELSEWHERE = {"library.md": ROOT / "tests/test_library_page.py"}


@pytest.mark.parametrize("block", [b for b in CODE if b.page.name not in ELSEWHERE], ids=place)
def test_code_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that the page leaves out, `img=...`, are taken from the first batch."""
    monkeypatch.chdir(tmp_path)
    names = GIVEN.get(block.page.name, dict)()
    code = re.sub(r"\b(\w+)=\.\.\.", r'\1=batch["\1"]', block.text)
    exec(compile(code, block.place, "exec"), names)


def test_the_other_tests_are_there() -> None:
    assert {page.name for page in PAGES} >= {*GIVEN, *ELSEWHERE}
    assert all(path.is_file() for path in ELSEWHERE.values())
    assert len(SETTINGS) > 8


def given_in_the_text() -> Iterator[tuple[str, str, ast.expr | None]]:
    """Yield page, name and value of all `name=value` in the text; None for no Python value."""
    for page in PAGES:
        for code in inline_code(page):
            match = re.fullmatch(r"([a-z][\w.]*) ?= ?([^=].*)", code)
            if match is None:
                continue
            value = None
            with contextlib.suppress(SyntaxError):
                value = ast.parse(match[2], mode="eval").body
            yield page.name, match[1], value


def evaluated(value: ast.expr) -> Any:
    """Return the value of an expression in which names are texts, as for ``--cfg-options``.

    Raises:
        ValueError: It leaves something out.
    """
    if any(isinstance(x, ast.Constant) and x.value in (..., "...") for x in ast.walk(value)):
        raise ValueError("something is left out")
    names = {x.id: x.id for x in ast.walk(value) if isinstance(x, ast.Name)}
    return eval(compile(ast.Expression(value), "page", "eval"), {**names, "dict": dict})


def accepted(name: str, value: Any) -> list[str]:
    """Return the reasons why no section has this setting; empty if one has it."""
    reasons = []
    for section, keys in SECTIONS.items():
        if name not in keys:
            continue
        given: Any = {name: value, **({"recipe": "qat-int8"} if name in SHARES else {})}
        top, *below = section.split(".")
        for part in reversed(below):
            given = {part: [{"type": "Conv2d", **given}] if part == "rules" else given}
        try:
            READ[top](given)
        except (ValueError, TypeError) as error:
            reasons.append(str(error))
        else:
            return []
    return reasons


def test_settings_in_the_text_exist_and_have_a_possible_value() -> None:
    of_mmdet = {part for key in (*KEYS, *CHECKPOINT_KEYS) for part in key.name.split(".")}
    ours = {key for keys in SECTIONS.values() for key in keys}
    wrong, others = [], set()
    for page, name, value in given_in_the_text():
        first, _, key = name.partition(".")
        if name in OTHERS:
            others.add(name)
        elif first in SECTIONS and key:
            check_key(name)
        elif name in OWN_KEYS and value is not None:
            with contextlib.suppress(ValueError):
                given = evaluated(value)
                assert name == "accumulate" or READ[name](given), f"{page}: {name}"
        elif name in ours and value is not None:
            with contextlib.suppress(ValueError):
                given = evaluated(value)
                wrong += [f"{page}: {reason}" for reason in accepted(name, given)]
        elif first not in of_mmdet:
            wrong.append(f"{page}: {name} is no setting; if it is right, add it to OTHERS")
    assert not wrong
    assert others == set(OTHERS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_dotted_settings_exist(page: Path) -> None:
    sections = "|".join(section for section in SECTIONS if "." not in section)
    texts = [*inline_code(page), *(block.text for block in blocks(page))]
    for text in texts:
        for key in re.findall(rf"(?<![\w./])(?:{sections})(?:\.[a-z]\w*)+(?![\w(/])", text):
            check_key(key)


def test_a_wrong_setting_in_the_text_is_found() -> None:
    assert accepted("observer", "mse") == []
    assert accepted("observer", "msee")
    assert accepted("freeze_above", 2.0)
    for key in ("quant.observr", "guards.wors", "quant.schedule.round_aftr"):
        with pytest.raises(LookupError, match="is not a setting"):
            check_key(key)
