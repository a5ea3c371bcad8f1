"""Our files compared with float and with other quantizers, in engines: the smallest case."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from benchmarks.engines import __main__ as benchmark
from benchmarks.engines.files import FLOAT, NNCF, ORT, OURS, PLAIN, Place, prepare
from benchmarks.engines.nets import NETS
from benchmarks.engines.table import Cell, Row, table
from dq.engines import ENGINES
from dq.quant.latency.formats import is_quantized
from dq.quant.latency.paired import Spread

SIZE = ("--size", "64", "64")
WORDS = ("--nets", "ssd_resnet", *SIZE, "--rounds", "1", "--engines", *ENGINES)
SMALL = Path(__file__).parents[2] / "configs/digits/ssd_resnet_fpn_160.py"


@pytest.mark.slow
def test_the_smallest_net_is_prepared_once_and_timed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(NETS, "ssd_resnet", (SMALL, (64, 64)))
    words = [*WORDS, "--work-dir", str(tmp_path), "--write", str(tmp_path / "table.md")]
    assert benchmark.main(words) == 0
    captured = capsys.readouterr()
    assert "NNCF is left out, because --nncf-python is not given" in captured.err
    written = (tmp_path / "table.md").read_text()
    assert captured.out.endswith(f"{written}\n")
    rows = [line.split(" | ") for line in written.splitlines()[2:]]
    assert [row[2].split()[0] for row in rows] == ["ONNX", "OpenVINO"]
    assert {(row[0], row[1], row[7]) for row in rows} == {("| ssd_resnet", "64x64", "-")}
    folder = tmp_path / "ssd_resnet_64x64"
    place = Place(folder=folder, targets={n: n for n in ENGINES}, nncf_python=None)
    assert place.makers == [FLOAT, OURS, PLAIN, ORT]
    quantized = {m: is_quantized(onnx.load(place.file(m))) for m in place.makers}
    assert quantized == {FLOAT: False, OURS: True, PLAIN: True, ORT: True}
    # The second call finds everything; with --fresh our file is made again.
    monkeypatch.setattr("benchmarks.engines.files.build", fail)
    assert benchmark.main(words) == 0
    with pytest.raises(ZeroDivisionError):
        benchmark.main([*words, "--fresh"])


def fail(*_: object) -> None:
    raise ZeroDivisionError


def cell(median: float, against_ours: float) -> Cell:
    return Cell(
        times_as_fast=Spread(low=median - 0.25, median=median, high=median + 0.25),
        num_integer=9,
        num_layers=10,
        against_ours=Spread(low=0.0, median=against_ours, high=9.0),
    )


def test_the_table_names_the_best_other() -> None:
    cells = {OURS: cell(3.0, 1.0), ORT: cell(2.0, 0.5), NNCF: cell(2.5, 0.8)}
    cells[PLAIN] = cell(3.5, 2.0)  # It is ours too.
    row = Row(net="net", size=(8, 9), engine="Engine 1.0", ms_float=12.34, cells=cells)
    only = Row(net="net", size=(8, 9), engine="Engine 1.0", ms_float=1.0, cells={OURS: cells[OURS]})
    first, second = table([row, only]).splitlines()[2:]
    assert first == (
        "| net | 8x9 | Engine 1.0 | 12.3 | 3.00 (2.75 to 3.25), 9 of 10 |"
        " 3.50 (3.25 to 3.75), 9 of 10 |"
        " 2.00 (1.75 to 2.25), 9 of 10 | 2.50 (2.25 to 2.75), 9 of 10 | 1.25 |"
    )
    assert second.endswith("| 3.00 (2.75 to 3.25), 9 of 10 | - | - | - |  |")


@pytest.mark.slow
def test_a_tool_that_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("shared weights")

    monkeypatch.setattr("benchmarks.quantizers.with_onnxruntime.quantize_static", refuse)
    place = Place(folder=tmp_path, targets={"onnxruntime": "onnxruntime"}, nncf_python=None)
    prepare(SMALL, (64, 64), place)
    assert place.makers == [FLOAT, OURS, PLAIN]
    assert f"quantizer fails on {tmp_path.name}: shared weights" in capsys.readouterr().err
