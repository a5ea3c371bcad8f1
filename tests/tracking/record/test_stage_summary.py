from pathlib import Path

from dq.tracking.record.stage_summary import (
    StageSummary,
    is_current,
    key_of,
    read_summary,
    sha256_of,
    write_summary,
)


def finished(folder: Path) -> StageSummary:
    (folder / "float.pth").write_bytes(b"weights")
    summary = StageSummary(
        stage="float",
        key="k",
        metric="mAP",
        value=0.5,
        metrics={"mAP": 0.5},
        checkpoint="float.pth",
        sha256=sha256_of(folder / "float.pth"),
    )
    write_summary(folder, summary)
    return summary


def test_summary_reads_back(tmp_path: Path) -> None:
    assert read_summary(tmp_path) is None
    assert read_summary_after(tmp_path) == finished(tmp_path)


def read_summary_after(folder: Path) -> StageSummary | None:
    finished(folder)
    return read_summary(folder)


def test_stage_counts_as_done_only_with_its_key_and_its_very_checkpoint(tmp_path: Path) -> None:
    summary = finished(tmp_path)
    assert is_current(tmp_path, "k") == summary
    assert is_current(tmp_path, "other") is None
    (tmp_path / "float.pth").write_bytes(b"other weights")
    assert is_current(tmp_path, "k") is None
    (tmp_path / "float.pth").unlink()
    assert is_current(tmp_path, "k") is None


def test_damaged_summary_counts_as_none(tmp_path: Path) -> None:
    finished(tmp_path)
    (tmp_path / "summary.json").write_text('{"stage": "fl')
    assert read_summary(tmp_path) is None
    assert is_current(tmp_path, "k") is None


def test_key_depends_on_every_part_and_its_place() -> None:
    keys = {key_of("a", "b"), key_of("ab"), key_of("a", "b", ""), key_of("b", "a"), key_of(1, None)}
    assert len(keys) == 5
