"""Mutants are chosen where a test could find them, and tried on a copy with the tests they need."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks.mutants.__main__ import ROOT, difference, main, read, table
from benchmarks.mutants.choice import Mutant, in_turn, is_fault, left_out, same_for_every_count
from benchmarks.mutants.parts import ELSEWHERE, OF_ALL, PARTS, modules_of, stages_for
from benchmarks.mutants.trial import KILLED, SURVIVED, TIMED_OUT, UNCLEAR, Tree

SOURCE = '''"""1 + 1"""
if TYPE_CHECKING:
    x = 1
@cache
def f(a: int | None, *, b: float = 2) -> int | str:
    c: list[int | str] = [3]
    log.info("%d", a + 4)
    if a == 5:
        raise ValueError(f"{a + 6}", a + 7)
    print(f"{a + 8}")
    return f"{a + 9}" if a < 10 else g(a, print(11))
class A(torch.autograd.Function):
    @staticmethod
    def forward(ctx): return 12
class B(Other):
    @staticmethod  # kept
    def forward(ctx): return 13
    @lru_cache(maxsize=90)
    def g(ctx): pass
'''


def test_hints_messages_and_log_lines_are_left_out() -> None:
    spans = left_out(SOURCE)
    lines = SOURCE.splitlines()

    def is_left_out(text: str) -> bool:
        (line,) = [n for n, content in enumerate(lines, 1) if text in f"{content}\n"]
        place = (line, f"{lines[line - 1]}\n".index(text))
        return any(a <= place < b for a, b in spans)

    for text in (
        "x = 1",
        "int | None",
        "int | str:",
        "list[int",
        "4)",
        "6}",
        "7)",
        "8}",
        "9}",
        "*, b",
        "@staticmethod\n",
        "90",
    ):
        assert is_left_out(text), text
    for text in (
        "@cache",
        "2)",
        "[3]",
        "== 5",
        "< 10",
        "11",
        "12",
        "@staticmethod  # kept",
        "13",
        "@lru",
    ):
        assert not is_left_out(text), text


def test_only_changes_that_could_mean_something_are_tried() -> None:
    kept = ("core/ReplaceBinaryOperator_Add_Pow", "core/ReplaceBinaryOperator_BitOr_BitAnd",
            "core/ReplaceComparisonOperator_Lt_LtE", "core/ReplaceComparisonOperator_Is_IsNot",
            "core/AddNot", "core/NumberReplacer")  # fmt: skip
    others = ("core/ReplaceBinaryOperator_Add_BitOr", "core/ReplaceBinaryOperator_BitOr_Sub",
              "core/ReplaceComparisonOperator_Eq_Is",
              "core/ReplaceComparisonOperator_IsNot_Gt")  # fmt: skip
    assert [is_fault(name) for name in (*kept, *others)] == [True] * len(kept) + [False] * 4


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("len(x) == 0", "len(x) <= 0", True),
        ("len(x) > 0", "len(x) != 0", True),
        ("len(x) < 1", "len(x) == 1", False),
        ("len(x) < 1", "len(x) <= 1", False),
        ("len(x) > 0", "len(x) > 1", False),
        ("len(x) > 0", "len(x) > -1", False),
        ("len(x) >= 0", "len(x) > -1", True),
        ("len(x) == 2", "len(x) >= 2", False),
        ("x.numel() == 0", "x.numel() <= 0", True),
        ("x.dim() != 0", "x.dim() > 0", True),
        ("c.world_size() == 1", "c.world_size() <= 1", True),
        ("c.world_size() == 1", "c.world_size() < 1", False),
        ("c.world_size() > 0", "c.world_size() != 1", False),
        ("x == 0", "x <= 0", False),
        ("x.min() == 0", "x.min() <= 0", False),
        ("len(x) == 0", "not len(x) == 0", False),
        ("len(x) == 0", "len(y) <= 0", False),
        ("len(x) == len(y)", "len(x) <= len(y)", False),
        ("len(x) == 0.5", "len(x) <= 0.5", False),
        ("0 < len(x) < 3", "0 < len(x) <= 3", False),
        ("x + 1", "x - 1", False),
    ],
)
def test_a_comparison_that_is_the_same_for_every_count_is_no_mutant(
    before: str, after: str, same: bool
) -> None:
    around = "y = a == 3\nif {}:\n    z = b < len(c)\n"
    assert same_for_every_count(around.format(before), around.format(after)) is same


def _mutants(part: str, places: int, changes: int) -> list[Mutant]:
    return [
        Mutant(part=part, module=part, operator=f"{c}", occurrence=0, span=((p, 0), (p, 1)))
        for p in range(places)
        for c in range(changes)
    ]


def test_parts_take_turns_and_a_place_comes_once() -> None:
    listed = {"a": _mutants("a", 3, 11), "b": _mutants("b", 30, 1)}
    found = list(in_turn(listed, random.Random(4)))
    assert [m.part for m in found[:6]] == ["a", "b"] * 3
    assert max(Counter((m.part, m.span) for m in found).values()) == 1
    assert len(found) == 33
    assert found == list(in_turn(listed, random.Random(4)))
    assert found != list(in_turn(listed, random.Random(5)))


def test_every_module_has_tests_and_a_part_of_its_own() -> None:
    modules = [module for part in PARTS for module in modules_of(ROOT, part)]
    assert len(modules) == len(set(modules)) > 60
    for module in modules:
        stages = stages_for(ROOT, module)
        assert [marker for marker, _ in (stages[0], stages[-1])] == ["not slow", "slow"]
        for name in {name for _, names in stages for name in names}:
            assert (ROOT / name).is_file()
    assert set(ELSEWHERE) <= set(modules)


def test_the_tests_that_mirror_a_module_come_first() -> None:
    first, second, third = stages_for(ROOT, "dq/quant/observers/min_max.py")
    # No test has its name, so those of its folder mirror it.
    own = sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("tests/quant/observers/test_*"))
    assert first == ("not slow", [*own, *OF_ALL])
    assert second[0] == "not slow"
    assert "tests/quant/quantizers/test_frozen.py" in second[1]  # It imports the module.
    assert third == ("slow", first[1])
    assert stages_for(ROOT, "dq/sync.py")[0][1] == [
        "tests/test_sync.py",
        "tests/test_sync_repairs.py",
        *OF_ALL,
    ]
    first = stages_for(ROOT, "dq/dist/watch/watchdog.py")[0]
    assert first[1][:2] == [
        "tests/dist/watch/test_watchdog.py",
        "tests/dist/watch/test_agreement.py",
    ]


TESTS = {
    "test_module.py": "import module\ndef test_one(): assert module.one() == 1\n",
    "test_broken.py": "def test_broken(): assert False\n",
    "test_slow.py": "import pytest\n@pytest.mark.slow\ndef test_two():\n"
    "    import module; assert module.two() == 2\n",
}
MODULE = "def one():\n    return 1\ndef two():\n    return 2\n"
FAST_AND_SLOW = [("not slow", ["tests/test_module.py"]), ("slow", ["tests/test_slow.py"])]


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # They take most of the time.
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\naddopts = -ra\n")
    (tmp_path / "module.py").write_text(MODULE)
    for name, text in TESTS.items():
        (tmp_path / "tests" / name).write_text(text)
    return Tree(root=tmp_path, limit_s=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "after", "state", "by"),
    [
        ("return 1", "return 3", KILLED, "tests/test_module.py::test_one"),
        ("return 2", "return 3", KILLED, "tests/test_slow.py::test_two"),
        ("return 2", "return 1 + 1", SURVIVED, ""),
        ("def two", "import os; os._exit(7)\ndef two", KILLED, "pytest ended with 7"),
        ("def two", "raise OSError\ndef two", KILLED, "tests/test_module.py"),
    ],
)
def test_a_mutant_is_tried_on_the_copy(
    tree: Tree, before: str, after: str, state: str, by: str
) -> None:
    found = tree.try_out("module.py", MODULE.replace(before, after), FAST_AND_SLOW)
    assert (found.state, found.by) == (state, by)
    assert (tree.root / "module.py").read_text() == MODULE


@pytest.mark.slow
def test_a_test_that_fails_anyway_proves_nothing(tree: Tree) -> None:
    found = tree.try_out("module.py", MODULE, [("not slow", ["tests/test_broken.py"])])
    assert (found.state, found.by) == (UNCLEAR, "tests/test_broken.py::test_broken")


@pytest.mark.slow
def test_tests_that_do_not_end_find_a_mutant(tree: Tree) -> None:
    tree = Tree(root=tree.root, limit_s=5)
    endless = MODULE.replace("return 1", "import time; time.sleep(60)")
    found = tree.try_out("module.py", endless, FAST_AND_SLOW)
    assert (found.state, found.by) == (TIMED_OUT, "more than 5 s")


def test_the_table_counts_and_shows_survivors(tmp_path: Path) -> None:
    row = {"part": "dist", "module": "m.py", "operator": "o", "occurrence": 0, "seconds": 1.0,
           "span": [[7, 0], [7, 1]], "diff": "-a\n+b", "by": ""}  # fmt: skip
    rows = [{**row, "state": KILLED}, {**row, "state": SURVIVED, "occurrence": 1}]
    made = table(rows)
    assert "| dist | 2 | 1 | 0 | 1 | 0 |" in made
    assert "| all | 2 | 1 | 0 | 1 | 0 |" in made
    assert "m.py:7 survived" in made
    out = tmp_path / "out.jsonl"
    assert read(out, again=False) == {}
    out.write_text("\n".join(json.dumps(r) for r in rows) + "\n")
    assert list(read(out, again=False).values()) == rows
    assert list(read(out, again=True).values()) == rows[:1]


def test_a_difference_is_its_lines() -> None:
    assert difference("a\nb\nc\n", "a\nd\nc\n") == "-b\n+d"


def test_without_the_tool_the_command_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "cosmic_ray", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    assert "pip install -e '.[mutation]'" in capsys.readouterr().err
