"""The types of an analysis's outputs, as its return annotation declares them.

`int | None` counts as `int`: any output may be null. What an annotation leaves open is None here.
"""

import dataclasses
import datetime as dt
import types
import typing
from collections.abc import Iterable, Mapping, Set
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

from autorun.declare.conversion import unwrapped


class Kind(Enum):
    """How SQL reads an output: a scalar, or any JSON."""

    INTEGER = "integer"
    NUMBER = "number"
    DECIMAL = "decimal"
    TEXT = "text"
    BOOLEAN = "boolean"
    JSON = "JSON"


#: Each of them can hold those before it.
NUMBERS = (Kind.INTEGER, Kind.NUMBER, Kind.DECIMAL)
#: In this order: a bool is an int as well.
_KINDS: tuple[tuple[tuple[type, ...], Kind], ...] = (
    ((bool,), Kind.BOOLEAN),
    ((int,), Kind.INTEGER),
    ((float,), Kind.NUMBER),
    ((Decimal,), Kind.DECIMAL),
    ((str, UUID, PurePath, dt.date, dt.time, dt.timedelta), Kind.TEXT),
    ((Mapping, list, tuple, set, frozenset), Kind.JSON),
)


def kind_of(annotation: Any) -> Kind | None:
    """The kind of a value so annotated."""
    plain = _plain(annotation)
    origin = typing.get_origin(plain)
    if origin is typing.Literal:
        return common(map(kind_of, map(type, typing.get_args(plain))))
    if origin in (typing.Union, types.UnionType):
        return common(map(kind_of, typing.get_args(plain)))
    declared = origin or plain
    if not isinstance(declared, type):
        return None
    if issubclass(declared, Enum):
        return common(kind_of(type(each.value)) for each in declared)
    if members_of(declared) is not None:
        return Kind.JSON
    return next((kind for kinds, kind in _KINDS if issubclass(declared, kinds)), None)


def common(kinds: Iterable[Kind | None]) -> Kind | None:
    """The kind that can hold all of these; None if there is none."""
    found = set(kinds)
    if found and found.issubset(NUMBERS):
        return max(found, key=NUMBERS.index)
    return found.pop() if len(found) == 1 else None


def type_at(annotation: Any, path: Iterable[str]) -> Any:
    """The annotation of the value that the keys in `path` lead to; Any if it is left open."""
    for key in path:
        annotation = _member(_plain(annotation), key)
    return annotation


def members_of(annotation: Any) -> Mapping[str, Any] | None:
    """The annotations by key of a TypedDict, a dataclass or a pydantic model; else None."""
    plain = _plain(annotation)
    is_closed = typing.is_typeddict(plain) or dataclasses.is_dataclass(plain)
    if isinstance(plain, type) and (is_closed or hasattr(plain, "model_fields")):
        with suppress(Exception):  # a name that is imported for type checkers only
            return typing.get_type_hints(plain)
    return None


def required_of(annotation: type, members: Mapping[str, Any]) -> Set[str]:
    """The keys that outputs must have.

    `__required_keys__` takes no notice of NotRequired and Required in postponed annotations.
    """
    hints = typing.get_type_hints(annotation, include_extras=True)
    marks = {key: typing.get_origin(hints.get(key)) for key in members}
    required = {key for key in members if marks[key] is typing.Required}
    required |= getattr(annotation, "__required_keys__", members.keys())
    return {key for key in required if marks.get(key) is not typing.NotRequired}


def _member(plain: Any, key: str) -> Any:
    members = members_of(plain)
    if members is not None:
        return members.get(key, Any)
    origin, arguments = typing.get_origin(plain), typing.get_args(plain)
    if not isinstance(origin, type) or not arguments:
        return Any
    if issubclass(origin, Mapping):
        return arguments[-1]
    if issubclass(origin, tuple) and arguments[-1] is not Ellipsis:
        is_index = key.isdecimal() and int(key) < len(arguments)
        return arguments[int(key)] if is_index else Any
    return arguments[0] if key.isdecimal() else Any


def _plain(annotation: Any) -> Any:
    """The annotation without None, Annotated, NewType and the names of type aliases."""
    arguments = typing.get_args(plain := unwrapped(annotation))
    if type(None) not in arguments or len(arguments) < 2:
        return plain
    return _plain(typing.Union[tuple(each for each in arguments if each is not type(None))])  # noqa: UP007
