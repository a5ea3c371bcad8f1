"""``--cfg-options`` that cannot be applied are one line that names the key."""

from __future__ import annotations

import pytest
from mmcv import Config

from dq.detector.config.options import apply_options, parse_options


def config() -> Config:
    return Config(
        {
            "data": {"train": {"pipeline": [{"type": "A"}, {"type": "B"}], "size": (1, 2)}},
            "custom_hooks": [],
            "optimizer": {"lr": 0.1},
        }
    )


@pytest.mark.parametrize("option", ["=3", "a", "a.=3", ".a=3", "a..b=3", " =3", ""])
def test_an_option_without_a_key_is_refused(option: str) -> None:
    with pytest.raises(ValueError, match=r"is not of the form key=value$"):
        parse_options(["optimizer.lr=1", option])


def test_the_message_names_the_option_that_was_given() -> None:
    with pytest.raises(ValueError, match=r"^--eval-options 'a' is not of the form"):
        parse_options(["a"], where="--eval-options")
    with pytest.raises(ValueError, match=r"^--eval-options a=\[1,2 cannot be read: .*; quote"):
        parse_options(["a=[1,2"], where="--eval-options")


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("data.train.pipeline.2.type", "data.train.pipeline is a list, which has 2 parts, the"),
        ("data.train.pipeline.first", "the first is 0; first is none of them"),
        ("data.train.pipeline.-1", "the first is 0; -1 is none of them"),
        ("custom_hooks.0.priority", "custom_hooks is a list, which has 0 parts; 0 is none of them"),
        ("data.train.size.5", "an override does not fit the config: "),
        ("optimizer.lr.x", "an override does not fit the config: "),
        ("optimiser.lr", "optimiser is not there; did you mean optimizer?"),
    ],
)
def test_a_key_that_does_not_fit_is_named(key: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"^--cfg-options") as raised:
        apply_options(config(), {key: 1})
    assert said in str(raised.value)
    assert not str(raised.value).endswith(":")


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_of_a_list_is_changed_by_its_number(number: int) -> None:
    found = config()
    apply_options(found, {f"data.train.pipeline.{number}.type": "C"})
    assert [step.type == "C" for step in found.data.train.pipeline].index(True) == number
