from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.table import aligned, markdown_table


def summary(stage: str, value: float) -> StageSummary:
    return StageSummary(stage=stage, key="k", metric="mAP", value=value)


def test_table_shows_percent_and_difference_to_float() -> None:
    stages = {"float": 0.8519, "calibrated": 0.855, "qat": 0.8487}
    table = markdown_table("bccd", {s: summary(s, v) for s, v in stages.items()})
    assert table == (
        "| mAP, % | float | int8 calibrated | int8 QAT    |\n"
        "| ------ | ----- | --------------- | ----------- |\n"
        "| bccd   | 85.2  | 85.5 (+0.3)     | 84.9 (-0.3) |"
    )


def test_a_name_with_a_bar_is_one_cell() -> None:
    lines = aligned([["class", "AP"], ["a|b", "50.0"]]).splitlines()
    assert lines[2] == "| a\\|b  | 50.0 |"
    assert len({len(line) for line in lines}) == 1


def test_table_without_float_has_no_difference() -> None:
    table = markdown_table("x", {"qat": summary("qat", 0.5)}, "W4A8")
    assert table.splitlines()[0] == "| mAP, % | W4A8 QAT |"
    assert "50.0" in table
