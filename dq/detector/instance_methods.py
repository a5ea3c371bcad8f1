"""Methods of one detector, head or data set that are replaced by another callable.

mmdet and mmcv call ``extract_feat``, ``forward``, ``get_ann_info`` and others by name on objects of
their own classes, and offer no place for another implementation. An attribute of the instance
overrides the method of its class. Only this module sets such attributes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def replace_method(owner: Any, name: str, method: Callable[..., Any]) -> None:
    """Replace ``owner.<name>`` by a callable without ``self``.

    A callable that is a module does not become a child of the owner.
    """
    vars(owner)[name] = method


def replacement_of(owner: Any, name: str) -> Callable[..., Any] | None:
    """Return the callable that replaces the method of the class; None if there is none."""
    found: Callable[..., Any] | None = vars(owner).get(name)
    return found


def restore_method(owner: Any, name: str) -> None:
    """Restore the method of the class as ``owner.<name>``, if it was replaced."""
    vars(owner).pop(name, None)


@contextmanager
def replacements_kept(pairs: Sequence[tuple[Any, str]]) -> Iterator[None]:
    """Restore the present replacements after the body.

    Args:
        pairs: An object and the name of its method.
    """
    before = [replacement_of(owner, name) for owner, name in pairs]
    try:
        yield
    finally:
        for (owner, name), method in zip(pairs, before, strict=True):
            if method is None:
                restore_method(owner, name)
            else:
                replace_method(owner, name, method)
