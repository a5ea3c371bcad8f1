"""Whether values of a config have the types that the fields of a dataclass are annotated with.

Python does not check annotations: a text in place of a number would fail somewhere deep in a
calculation, or would be accepted and change nothing. Configs are written by hand and come from
``--cfg-options`` too, so whole numbers count as numbers, and lists and tuples as the same. True and
False are no numbers, and a number is neither True nor False.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dq.names import hint

_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    str: "a text",
    NoneType: "None",
}
_UNIONS = (Union, UnionType)
_NUMBERS: dict[Any, type] = {int: Integral, float: Real}


def check_fields(given: Mapping[str, object], kind: type[Any], where: str) -> None:
    """Raise ValueError for the first value that its field cannot have.

    Args:
        given: Values by the names of fields, of which some may be missing.
        kind: The dataclass.
        where: The section, such as ``checkpoint_config``.
    """
    for field, value in given.items():
        check_value(f"{where}.{field}", value, *field_type(kind, field))


def field_type(kind: type[Any], field: str) -> tuple[Any, Mapping[str, Any]]:
    """Return the annotation and the metadata of a dataclass's field."""
    (found,) = (each for each in fields(kind) if each.name == field)
    return get_type_hints(kind)[field], found.metadata


def check_value(
    name: str, value: object, annotation: Any, more: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Raise ValueError for a value that is not of the annotated type.

    Args:
        name: The setting in the message.
        value: As given.
        annotation: Such as ``int | None``.
        more: What the message says too: ``known`` are the names to choose from, ``least`` and
            ``above`` the limits of a number, ``words`` what to call the value. With ``one``, a
            single text counts as a list of one; with ``digits``, a number counts as a text,
            because the command line gives digits as a number.
    """
    is_one = bool(more.get("one")) and isinstance(value, str)
    is_digits = bool(more.get("digits")) and type(value) in (int, float)
    if is_one or is_digits or fits(value, annotation):
        return
    words = more.get("words") or words_of(annotation)
    words += f" from {more['least']}" if "least" in more else ""
    words += f" above {more['above']:g}" if "above" in more else ""
    if not _is_plain(annotation):
        raise ValueError(f"{name} must be {words}, not {value!r}")
    if "known" in more:
        raise ValueError(f"{name} {value!r} does not exist; {hint(value, more['known'])}")
    raise ValueError(f"{name} is {value!r}; use {words}")


def fits(value: object, annotation: Any) -> bool:
    """Return whether a value of a config is of the annotated type.

    Args:
        value: As given.
        annotation: A class, a union, ``tuple[X, ...]`` or ``Mapping[X, Y]``. For a dataclass, a
            config has a dict, whose keys are checked on their own.
    """
    if annotation is Any:
        return True
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        return any(fits(value, each) for each in inner)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(fits(each, inner[0]) for each in value)
    if is_dataclass(annotation):
        return isinstance(value, Mapping)
    if _is_mapping(annotation):
        if not isinstance(value, Mapping):
            return False
        of_keys, of_values = inner or (Any, Any)
        return all(fits(k, of_keys) and fits(v, of_values) for k, v in value.items())
    if isinstance(value, bool) and annotation is not bool:
        return False
    return isinstance(value, _NUMBERS.get(annotation, annotation))


def words_of(annotation: Any) -> str:
    """Return what the annotated type allows, in words: ``a whole number or None``."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in _UNIONS:
        words = [word for each in inner for word in words_of(each).split(" or ")]
        return f"{', '.join(words[:-1])} or {words[-1]}"
    if origin is tuple:
        if inner[0] is Any:
            return "a list"
        kinds = get_args(inner[0]) if get_origin(inner[0]) in _UNIONS else (inner[0],)
        return f"a list of {' and '.join(map(_several, kinds))}"
    if is_dataclass(annotation) or _is_mapping(annotation):
        return "a dict"
    return _WORDS[annotation]


def _several(annotation: Any) -> str:
    lists = get_origin(annotation) is tuple
    return "lists" if lists else f"{words_of(annotation).removeprefix('a ')}s"


def _is_plain(annotation: Any) -> bool:
    """Return whether only single values are allowed, and neither lists nor dicts."""
    parts = get_args(annotation) if get_origin(annotation) in _UNIONS else (annotation,)
    return all(part in _WORDS for part in parts)


def _is_mapping(annotation: Any) -> bool:
    kind = get_origin(annotation) or annotation
    return isinstance(kind, type) and issubclass(kind, Mapping)
