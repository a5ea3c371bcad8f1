"""An error of mmcv's registries is one line, with the text as it was raised."""

from __future__ import annotations

import pytest

from dq.detector.config.registry_errors import explain


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (KeyError("'FPNN is not in the models registry'"), "did you mean FPN?"),
        (KeyError("FPNN is not in the models registry"), "did you mean FPN?"),
        (KeyError("FPN: 'in_channels'"), "KeyError: FPN: 'in_channels'"),
        (KeyError("lr"), "KeyError: lr"),
        (AttributeError("'NoneType' object has no attribute 'pop'"), "'NoneType' object has no"),
        (TypeError("it takes 'a'"), "it takes 'a'"),
        (AssertionError(), "AssertionError"),
    ],
)
def test_an_error_keeps_its_text(error: Exception, said: str) -> None:
    found = explain(error)
    assert said in found
    assert found.count("'") % 2 == 0
