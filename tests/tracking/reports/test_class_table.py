"""Classes are listed by what quantization costs them."""

from __future__ import annotations

from dq.tracking.record.stage_summary import StageSummary
from dq.tracking.reports.class_table import class_table


def summary(stage: str, **classes: float) -> StageSummary:
    return StageSummary(stage=stage, key="k", metric="mAP", value=0.5, classes=classes)


def test_the_class_that_lost_most_comes_first() -> None:
    stages = {
        "float": summary("float", cat=0.5, dog=0.8, cow=0.25),
        "qat": summary("qat", cat=0.55, dog=0.6, cow=0.25),
    }
    assert class_table(stages) == (
        "| AP of a class, % | float | int8 QAT     |\n"
        "| ---------------- | ----- | ------------ |\n"
        "| dog              | 80.0  | 60.0 (-20.0) |\n"
        "| cow              | 25.0  | 25.0 (+0.0)  |\n"
        "| cat              | 50.0  | 55.0 (+5.0)  |"
    )


def test_one_stage_lists_the_lowest_first_and_says_what_is_left_out() -> None:
    text = class_table({"eval": summary("eval", a=0.3, b=0.1, c=0.2)}, rows=2)
    rows = [line.split()[1] for line in text.splitlines() if line.startswith("| ")]
    assert rows == ["AP", "----------------", "b", "c"]
    assert text.endswith("and 1 more class, which has more")
    two = {"float": summary("float", a=0.3, b=0.1), "qat": summary("qat", a=0.2, b=0.1)}
    assert class_table(two, rows=1).endswith("and 1 more class, which lost less")


def test_a_class_without_boxes_is_left_out() -> None:
    text = class_table({"eval": summary("eval", a=0.3, b=float("nan"), c=0.2)})
    assert "nan" not in text
    assert "| b" not in text


def test_nothing_is_said_of_one_class_or_of_none() -> None:
    assert class_table({"eval": summary("eval", a=0.3)}) == ""
    assert class_table({"float": summary("float"), "qat": summary("qat")}) == ""
    assert class_table({}) == ""
