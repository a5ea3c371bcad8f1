"""Messages about unknown names."""

from __future__ import annotations

import pytest

from dq.names import check_keys, did_you_mean, hint


@pytest.mark.parametrize(
    ("name", "where", "said"),
    [
        ("entrpy", "", "; did you mean entropy?"),
        ("entrpy", "`x` lists them", "; did you mean entropy? `x` lists them"),
        ("zzz", "", "; known are entropy, mse"),
        ("zzz", "`x` lists them", "; known are entropy, mse; `x` lists them"),
    ],
)
def test_the_end_of_a_sentence_is_one(name: str, where: str, said: str) -> None:
    assert did_you_mean(name, ["mse", "entropy"], where) == said


def test_many_names_are_cut_off_after_the_twelfth() -> None:
    assert hint("zzz", "abcdefghijkl") == "known are a, b, c, d, e, f, g, h, i, j, k, l"
    assert hint("zzz", "abcdefghijklm") == "known are a, b, c, d, e, f, g, h, i, j, k, l, ..."


@pytest.mark.parametrize("name", [8, 3.5, None, ["mse"]])
def test_a_name_that_is_no_string_gets_an_answer_too(name: object) -> None:
    assert hint(name, ["xyz", "entropy"]) == "known are entropy, xyz"


def test_the_first_unknown_key_is_named() -> None:
    check_keys(["a"], ["a", "b"], "quant")
    with pytest.raises(ValueError, match=r"^quant\.ema\.momentun is not a setting; did you mean"):
        check_keys(["steps", "momentun", "zzz"], {"steps", "momentum"}, "quant.ema")
