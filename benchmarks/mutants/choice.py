"""Choose mutants at random, among those that could change what a module computes."""

from __future__ import annotations

import ast
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
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
    for type checkers, and the star before keyword-only parameters. Cosmic-ray does not change
    strings, so docstrings need no span.
    """
    found: list[ast.expr | ast.stmt] = []
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
    stars = [
        ((number, star.start()), (number, star.end()))
        for number, line in enumerate(source.splitlines(), 1)
        for star in BARE_STAR.finditer(line)
    ]
    return stars + [
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
    """Return the source with the change, or None if it would not be valid Python."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (root / mutant.module).read_text()
    text = mutate_code(source, get_operator(mutant.operator)(), mutant.occurrence)
    try:
        compile(text, mutant.module, "exec")
    except (SyntaxError, TypeError):
        return None
    return str(text)


def in_turn(mutants: Mapping[str, Sequence[Mutant]], chance: random.Random) -> Iterator[Mutant]:
    """Yield mutants in random order, of one part after the other.

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
