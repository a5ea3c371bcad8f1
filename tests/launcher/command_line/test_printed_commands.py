"""Commands that a message names can be pasted into a shell, whatever is in their paths."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[3]
FILES = sorted(
    path for folder in ("launcher", "dq", "slurm") for path in (ROOT / folder).rglob("*.py")
)
# A command of the launcher whose end is not in this text.
OPEN_COMMAND = re.compile(r"launcher [a-z]+ [^`'\".;]*$")


def unquoted(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and expression of each value in a printed command that no shell could read."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.JoinedStr):
            continue
        text = ""
        for part in node.values:
            if isinstance(part, ast.Constant):
                text += str(part.value)
                continue
            expression = ast.unparse(part)
            if OPEN_COMMAND.search(text) and "shlex." not in expression:
                yield part.lineno, expression
            text += "VALUE"


def test_values_in_printed_commands_are_quoted() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {value}"
        for path in FILES
        for line, value in unquoted(path.read_text(encoding="utf-8"))
    ]
    assert not found


def test_the_search_finds_an_unquoted_path() -> None:
    assert list(unquoted('f"see `launcher sync {folder}`"'))
    assert not list(unquoted('f"see `launcher sync {shlex.quote(folder)}`"'))
    assert not list(unquoted('f"`launcher sync` sends {folder}"'))
