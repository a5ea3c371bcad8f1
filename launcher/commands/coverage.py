"""``launcher coverage``: run each family of mmdet's configs through all steps, and tabulate."""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HELP = "run one config of every family that mmdet ships through all steps, and write a table"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--families",
        type=lambda text: [name for name in text.split(",") if name],
        default=[],
        metavar="A,B",
        help="folders of mmdet's configs (default: all, which takes half an hour on two cores)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.md",
        help="file of the table (default: print it); with --families its other rows are kept",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, metavar="N", help="families at the same time (default 2)"
    )
    parser.add_argument(
        "--limit", type=float, default=600.0, metavar="SECONDS", help="of each step (default 600)"
    )
    parser.add_argument(
        "--memory", type=int, default=8192, metavar="MIB", help="of each step (default 8192)"
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the files and the output of all steps here (default: they are removed)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Run the chain of each family, write the table, and return 1 if one crashed or differs."""
    from launcher.command_line.written import write_text
    from launcher.coverage.families import chains
    from launcher.coverage.processes import Limits
    from launcher.coverage.row import CRASHED, DIFFERS
    from launcher.coverage.table import rows_of, table

    if arguments.jobs < 1:
        raise ValueError(f"--jobs is {arguments.jobs}; give a whole number of at least 1")
    limits = Limits(seconds=arguments.limit, mib=arguments.memory)
    out: Path | None = arguments.out
    keep = arguments.families and out is not None and out.is_file()
    rows = rows_of(out.read_text(encoding="utf-8")) if keep and out is not None else {}
    results = []
    with _folder(arguments.keep) as folder:
        for name, row in chains(arguments.families, folder, limits, jobs=arguments.jobs):
            rows[name] = row
            results.append(row.result)
            said = f"{name}: {row.result} in {row.seconds:.0f} s {row.what}"
            print(said.strip(), file=sys.stderr, flush=True)
            if out is not None:
                write_text(out, table(rows))
    if out is None:
        print(table(rows), end="")
    return int(CRASHED in results or DIFFERS in results)


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Yield the folder to keep, or a temporary one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="coverage-", ignore_cleanup_errors=True) as name:
        yield Path(name)
