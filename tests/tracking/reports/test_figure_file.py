"""A plot that cannot be written is closed all the same, because pyplot keeps open ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from dq.tracking.reports.figure_file import write_figure


def test_a_figure_is_closed_even_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    figure = pyplot.figure()
    monkeypatch.setattr(figure, "savefig", refuse)
    with pytest.raises(OSError, match="No space left"):
        write_figure(tmp_path / "plot.png", figure)
    assert figure.number not in pyplot.get_fignums()
    assert list(tmp_path.iterdir()) == []
