"""Import the modules in a config's ``custom_imports``."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

from dq.dist.errors.foreseen import error_location
from dq.error_text import typed_error_text

log = logging.getLogger(__name__)
EXAMPLE = "dict(imports=['my_package.my_module'], allow_failed_imports=False)"


def import_modules(section: Any) -> None:
    """Import the modules in ``custom_imports`` as mmcv does, with errors that name the cause.

    Args:
        section: As in mmcv: ``imports`` (a name or a list of names) and ``allow_failed_imports``;
            or None.

    Raises:
        ValueError: A module cannot be imported, or the section has another form.
    """
    if section is None:
        return
    known = ("imports", "allow_failed_imports")
    if not isinstance(section, Mapping) or any(key not in known for key in section):
        raise ValueError(f"custom_imports is {section!r}; use {EXAMPLE}")
    names = section.get("imports") or []
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"custom_imports.imports is {names!r}; use {EXAMPLE}")
    for name in names:
        _import(name, may_fail=bool(section.get("allow_failed_imports", False)))


def _import(name: str, *, may_fail: bool) -> None:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        reason = typed_error_text(error)
        if may_fail and isinstance(error, ImportError):
            log.warning("custom_imports: %s is left out (%s)", name, reason)
            return
        raise ValueError(
            f"custom_imports: module {name} cannot be imported: {reason}{_fix(name, error)}"
        ) from error


def _fix(name: str, error: BaseException) -> str:
    missing = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (name == missing or name.startswith(f"{missing}.")):
        return "; start in its folder, or add its folder to PYTHONPATH"
    if missing is not None:
        return f"; install {missing.partition('.')[0]}, or leave the import out"
    return f" (raised at {error_location(error)})"
