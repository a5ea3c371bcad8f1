"""Every key of every section refuses values of a wrong type, in one line that names it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dq.detector.config.read import finish, read_config
from dq.detector.model.compilation import compilation
from dq.field_types import fits
from dq.shipped import shipped
from launcher.config import guards, quant_settings, tracking
from launcher.plan import Surroundings, surroundings
from launcher.sections import SECTIONS, SHARES, type_of
from tests.detector.minimal import minimal

CONFIG = shipped()["digits/ssd_resnet_fpn_160"]
# One of each type, and lists and dicts of them.
VALUES: tuple[Any, ...] = (
    *("x", 5, 0, 0.5, True, False, None),
    *([], ["x"], [5], (5,), [{}], {}, {"x": 5}, {5: 5}),
)
NAMES = [(section, key) for section, keys in SECTIONS.items() for key in keys]


def read(given: Any, top: str) -> None:
    """Read a section as a config's."""
    if top == "compile":
        compilation(minimal(compile=given), torch.device("cpu"))
    else:
        {"quant": quant_settings, "guards": guards, "tracking": tracking}[top](given)


def whole(section: str, key: str, value: Any) -> tuple[str, Any, str]:
    """Return the top section, its content with this value, and the key's name in messages."""
    top, *below = section.split(".")
    given: Any = {key: value}
    if key in SHARES and section == "quant":
        given["recipe"] = "qat-int8"
    name = f"{section}.{key}".replace("quant.rules.", "quant.rules[0].")
    for part in reversed(below):
        given = {part: [{"type": "Conv2d", **given}] if part == "rules" else given}
    return top, given, name


def is_allowed(section: str, key: str, value: Any) -> bool:
    """Return whether the key's annotation allows a value, or its list allows a single text."""
    annotation, more = type_of(section, key)
    is_one = more.get("one") and isinstance(value, str)
    is_digits = more.get("digits") and type(value) in (int, float)
    return fits(value, annotation) or bool(is_one or is_digits)


def test_a_name_of_digits_is_a_text() -> None:
    found = tracking({"experiment": 2024, "project": 1.5, "entity": None})
    assert (found.experiment, found.project, found.entity) == ("2024", "1.5", None)


@pytest.mark.parametrize(("section", "key"), NAMES, ids=".".join)
def test_a_wrong_type_is_refused_by_name_and_no_right_one(section: str, key: str) -> None:
    refused = 0
    for value in VALUES:
        top, given, name = whole(section, key, value)
        if is_allowed(section, key, value):
            # Its content may be wrong, such as a name that does not exist.
            reason = refusal(given, top)
            assert not re.search(r" must be a (list|dict)", reason)
            continue
        refused += 1
        with pytest.raises(ValueError, match=re.escape(name)) as caught:
            read(given, top)
        assert repr(value) in str(caught.value), "the value is not shown"
        assert re.search("; use |; known are |; did you mean | must be ", str(caught.value))
        assert "\n" not in str(caught.value)
    assert refused > 5


def refusal(given: Any, top: str) -> str:
    """Return why a section is refused; empty if it is not."""
    try:
        read(given, top)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("top", [section for section in SECTIONS if "." not in section])
@pytest.mark.parametrize("value", ["x", 5, 0.5, [5], [{}]])
def test_a_section_is_a_dict(top: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{top} (is|must be) "):
        read(value, top)


@pytest.mark.parametrize("value", [False, 0, "", []])
@pytest.mark.parametrize("top", ["quant", "guards", "tracking", "compile"])
def test_nothing_else_counts_as_an_empty_section(top: str, value: Any) -> None:
    read(None, top)
    if (top, value) == ("compile", False) and isinstance(value, bool):
        read(value, top)
        return
    with pytest.raises(ValueError, match=rf"^{top} (is|must be) "):
        read(value, top)


@pytest.mark.parametrize("key", ["work_dir", "device", "seed"])
@pytest.mark.parametrize("value", ["5.5", "True", "[x]"])
def test_what_is_read_before_the_plan_is_reported_with_it(key: str, value: str) -> None:
    config = read_config(CONFIG, [f"{key}={value}"])
    arguments = argparse.Namespace(
        config=CONFIG, cfg_options=[f"{key}={value}"], work_dir=None, device="auto"
    )
    found = surroundings(arguments)
    assert found == Surroundings(experiment=Path("runs") / Path(CONFIG).stem, device="auto")
    with pytest.raises(ValueError, match=rf"^{key} is "):
        finish(config)


def options() -> Iterator[tuple[str, str, str]]:
    """Yield each key that a command line can give a wrong value, and that value."""
    for section, key in NAMES:
        if "rules" not in section and section != "compile":
            annotation, more = type_of(section, key)
            text = next((t for t in ("x", "5", "[5]") if not _passes(t, annotation, more)), None)
            if text is not None:
                yield section, key, text


def _passes(text: str, annotation: Any, more: Any) -> bool:
    value = {"x": "x", "5": 5, "[5]": [5]}[text]
    is_digits = more.get("digits") and type(value) is int
    is_one = more.get("one") and isinstance(value, str)
    return fits(value, annotation) or bool(is_digits or is_one)


@pytest.mark.parametrize(("section", "key", "text"), options())
def test_values_of_the_command_line_are_checked_too(section: str, key: str, text: str) -> None:
    more = ["quant.recipe=qat-int8"] if key in SHARES else []
    config = read_config(CONFIG, [*more, f"{section}.{key}={text}"])
    with pytest.raises(ValueError, match=rf"^{section}\.{key} "):
        read(config[section.partition(".")[0]], section.partition(".")[0])
