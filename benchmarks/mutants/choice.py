"""Choose mutants at random, among those that could change what a module computes."""

from __future__ import annotations

import ast
import logging
import operator
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.mutants.parts import modules_of

Position = tuple[int, int]  # Line from 1, column from 0.
Span = tuple[Position, Position]

LOGGERS = re.compile(r"(log|logger|logging|warnings)\.\w+|print")
BARE_STAR = re.compile(r"[*/](?=,)")
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"}
BINARY = re.compile(r"ReplaceBinaryOperator_(\w+)_(\w+)$")
COMPARISON = re.compile(r"ReplaceComparisonOperator_(\w+)_(\w+)$")
IDENTITY = {"Is", "IsNot"}
# Calls that return whole numbers, with the smallest that each can return.
COUNTS = {"len": 0, "numel": 0, "dim": 0, "count": 0, "bit_length": 0, "world_size": 1}
COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One change of one module.

    Attributes:
        part: Its part, a key of `PARTS`.
        module: Path below the root of the tree.
        operator: Cosmic-ray's name of the kind of change.
        occurrence: Which of the places in the module where the operator applies.
        span: Start and end of the change in the source.
    """

    part: str
    module: str
    operator: str
    occurrence: int
    span: Span


def left_out(source: str) -> list[Span]:
    """Return the spans of a source in which a change does not change what it computes.

    These are type hints, messages (f-strings and the arguments of raised errors), log lines, code
    for type checkers, and the star before keyword-only parameters. Two more have no effect by their
    documentation: how many results `lru_cache` keeps, and ``staticmethod`` in an autograd function,
    whose methods torch calls through the class. Cosmic-ray does not change strings, so docstrings
    need no span.
    """
    found: list[ast.expr | ast.stmt] = []
    lines: list[int] = []
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.arg(annotation=ast.expr() as hint) | ast.AnnAssign(annotation=hint):
                found.append(hint)
            case ast.FunctionDef(returns=ast.expr() as hint):
                found.append(hint)
            case ast.Raise() | ast.JoinedStr():
                found.append(node)
            case ast.Expr(value=ast.Call(func=func)) if LOGGERS.fullmatch(ast.unparse(func)):
                found.append(node)
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                found.append(node)
            case ast.Call(func=func) if ast.unparse(func).endswith("lru_cache"):
                found += [*node.args, *(keyword.value for keyword in node.keywords)]
            case ast.ClassDef(bases=[base]) if ast.unparse(base).endswith("autograd.Function"):
                methods = [each for each in node.body if isinstance(each, ast.FunctionDef)]
                marks = [mark for each in methods for mark in each.decorator_list]
                lines += [mark.lineno for mark in marks if ast.unparse(mark) == "staticmethod"]
    stars = [
        ((number, star.start()), (number, star.end()))
        for number, line in enumerate(source.splitlines(), 1)
        for star in BARE_STAR.finditer(line)
    ]
    return [*stars, *(((line, 0), (line + 1, 0)) for line in lines)] + [
        ((node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset))
        for node in found
        if node.end_lineno is not None and node.end_col_offset is not None
    ]


def is_fault(operator: str) -> bool:
    """Whether a kind of change is a fault that a test has to find by its results.

    Arithmetic operators are replaced only by arithmetic ones and bit operators by bit operators,
    because others raise a TypeError, which any test finds. ``==`` and ``is`` are not exchanged,
    because they are the same for members of an enum and small numbers.
    """
    if binary := BINARY.search(operator):
        return (binary[1] in ARITHMETIC) == (binary[2] in ARITHMETIC)
    if comparison := COMPARISON.search(operator):
        return (comparison[1] in IDENTITY) == (comparison[2] in IDENTITY)
    return True


def same_for_every_count(before: str, after: str) -> bool:
    """Whether two sources differ in one comparison that has the same result for every count.

    ``len(x) == 0`` and ``len(x) <= 0`` for example, because no length is below 0.

    Args:
        before: A source.
        after: The source with a change that keeps the order of its comparisons.
    """
    comparisons = [
        [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Compare)]
        for source in (before, after)
    ]
    if len(comparisons[0]) != len(comparisons[1]):
        return False
    pairs = zip(*comparisons, strict=True)
    changed = [pair for pair in pairs if ast.dump(pair[0]) != ast.dump(pair[1])]
    if len(changed) != 1:
        return False
    own, other_own = (_rule_about_a_count(compare) for compare in changed[0])
    if own is None or other_own is None or own[0] != other_own[0]:
        return False
    (_, smallest, first, rule), (_, _, second, other) = own, other_own
    numbers = range(smallest, max(smallest, first, second) + 2)
    return all(rule(number, first) == other(number, second) for number in numbers)


def _rule_about_a_count(
    compare: ast.Compare,
) -> tuple[str, int, int, Callable[[int, int], bool]] | None:
    """Return the call, its smallest result, the number it is compared with, and how.

    None for a comparison of something else.
    """
    match compare:
        case ast.Compare(
            left=ast.Call(func=ast.Name() | ast.Attribute() as func) as call,
            ops=[comparison],
            comparators=[number],
        ) if type(comparison) in COMPARE:
            name = func.id if isinstance(func, ast.Name) else func.attr
            try:
                value = ast.literal_eval(number)
            except ValueError:
                return None
            if name in COUNTS and type(value) is int:
                return ast.unparse(call), COUNTS[name], value, COMPARE[type(comparison)]
    return None


def mutants_of(root: Path, part: str, scratch: Path) -> list[Mutant]:
    """Return all mutants of a part, listed by cosmic-ray.

    Args:
        root: The tree.
        part: A key of `PARTS`.
        scratch: A folder for cosmic-ray's database.
    """
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB

    logging.getLogger("stevedore").setLevel(logging.ERROR)
    database = WorkDB(str(scratch / "mutants.sqlite"), WorkDB.Mode.create)
    init([root / module for module in modules_of(root, part)], database, {})
    items = database.work_items
    database.close()
    found, spans = [], {}
    for (change,) in (item.mutations for item in items):
        module = change.module_path.relative_to(root).as_posix()
        if module not in spans:
            spans[module] = left_out((root / module).read_text())
        span = (tuple(change.start_pos), tuple(change.end_pos))
        inside = any(a <= span[0] and span[1] <= b for a, b in spans[module])
        if not inside and is_fault(change.operator_name):
            found.append(
                Mutant(
                    part=part,
                    module=module,
                    operator=change.operator_name,
                    occurrence=change.occurrence,
                    span=span,
                )
            )
    return sorted(found, key=lambda m: (m.module, m.span, m.operator, m.occurrence))


def mutated(root: Path, mutant: Mutant) -> str | None:
    """Return the source with the change; None if that is no valid Python or computes the same."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (root / mutant.module).read_text()
    text = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        compile(text, mutant.module, "exec")
    except (SyntaxError, TypeError):
        return None
    return None if same_for_every_count(source, str(text)) else str(text)


def in_turn(mutants: Mapping[str, Sequence[Mutant]], chance: random.Random) -> Iterator[Mutant]:
    """Yield mutants in random order, one of each part in turn.

    First a place in the source is chosen, then one of its changes, so that an operator with many
    replacements is not chosen more often.
    """
    waiting = {}
    for part, those in mutants.items():
        places: dict[tuple[str, Span], list[Mutant]] = {}
        for mutant in those:
            places.setdefault((mutant.module, mutant.span), []).append(mutant)
        chosen = [chance.choice(changes) for changes in places.values()]
        chance.shuffle(chosen)
        waiting[part] = chosen
    while any(waiting.values()):
        for chosen in waiting.values():
            if chosen:
                yield chosen.pop()
