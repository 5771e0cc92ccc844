"""Values made to fit annotations: strings from JSON become Paths, dates and enumerations."""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime as dt
import json
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from enum import Enum
from inspect import Parameter
from pathlib import Path, PurePath
from typing import Any
from uuid import UUID

from django.utils.dateparse import parse_duration


class Mismatch(Exception):
    """A value that does not fit an annotation; gathers its key path on the way up."""

    def __init__(self, value: object, annotation: object, *, allowed: str = "") -> None:
        super().__init__(value, annotation)
        self.value = value
        self.expected = allowed or describe(annotation)
        self.argument = "value"
        self.keys: list[object] = []

    def __str__(self) -> str:
        where = self.argument + "".join(f"[{_SHORT.repr(key)}]" for key in reversed(self.keys))
        found = f"{_SHORT.repr(self.value)} ({type(self.value).__name__})"
        return f"'{where}' must be {self.expected}, not {found}"


def convert(value: object, annotation: Any) -> Any:
    """`value` as the annotation wants it; raises `Mismatch` where it does not fit.

    Integers become floats, strings become Paths, UUIDs, Decimals, dates, times and durations, and
    values or names become members of an enumeration. Lists become the annotated collection, element
    by element. What an annotation does not tell (Any, type variables, unresolved names, protocols)
    is accepted as it is.
    """
    if type(annotation) is type and annotation in _CONVERTERS:
        return _converted(value, annotation, _CONVERTERS[annotation])
    annotation = _unwrapped(annotation)
    if annotation is None or annotation is type(None):
        return _instance(value, type(None), None)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Union or origin is types.UnionType:
        return _to_union(value, annotation, arguments)
    if origin is typing.Literal:
        return _to_literal(value, annotation, arguments)
    kind = origin or annotation
    if not isinstance(kind, type) or kind in (object, Parameter.empty):
        return value
    return _to_class(value, annotation, kind, arguments)


def describe(annotation: Any) -> str:
    """The annotation as the user wrote it, near enough: `int | None`, `list[Path]`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(describe(member) for member in typing.get_args(annotation))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__qualname__
    return repr(annotation).replace("typing.", "")


def _unwrapped(annotation: Any) -> Any:
    """The annotation without `Annotated`, `NewType` and `type` aliases around it."""
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # Python 3.12 and later.
            annotation = annotation.__value__
        else:
            return annotation


def _to_union(value: object, annotation: Any, members: tuple[Any, ...]) -> Any:
    """The member that takes the value unchanged comes before the first that converts it."""
    results = []
    for member in members:
        try:
            results.append(convert(value, member))
        except Mismatch:
            continue
    if not results:
        raise Mismatch(value, annotation)
    return next((result for result in results if result is value), results[0])


def _to_literal(value: object, annotation: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if isinstance(choice, Enum) and value in (choice, choice.value, choice.name):
            return choice
        # True == 1, but they are two literals.
        if type(value) is type(choice) and value == choice:
            return choice
    raise Mismatch(value, annotation, allowed="one of " + ", ".join(map(repr, choices)))


def _to_class(  # noqa: PLR0911 - one return a kind of class
    value: Any, annotation: Any, kind: type, arguments: tuple[Any, ...]
) -> Any:
    if kind in _CONVERTERS:
        return _converted(value, annotation, _CONVERTERS[kind])
    if issubclass(kind, Enum):
        return _to_enum(value, kind)
    if issubclass(kind, PurePath):
        return _converted(value, annotation, lambda path: kind(_only(path, str, os.PathLike)))
    if kind in _COLLECTIONS:
        return _to_collection(value, annotation, kind, arguments)
    if kind is tuple:
        return _to_tuple(value, annotation, arguments)
    if kind in _MAPPINGS or typing.is_typeddict(kind):
        return _to_mapping(value, annotation, arguments)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return _to_dataclass(value, kind)
    return _instance(value, kind, annotation)


def _instance(value: object, kind: type, annotation: Any) -> object:
    try:
        fits = isinstance(value, kind)
    except TypeError:  # A protocol that cannot be checked at run time.
        fits = True
    if fits:
        return value
    raise Mismatch(value, annotation)


def _converted(value: Any, annotation: Any, converter: Callable[[Any], object]) -> object:
    try:
        return converter(value)
    except (TypeError, ValueError, OverflowError, InvalidOperation):
        raise Mismatch(value, annotation) from None


def _only(value: Any, *kinds: type) -> Any:
    # True is an int to Python, hardly ever to the person who wrote it.
    if isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool)):
        return value
    raise TypeError


def _to_int(value: Any) -> int:
    # JSON and a node's digest do not tell 100 from 100.0.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return _only(value, int)  # type: ignore[no-any-return]


def _to_float(value: Any) -> float:
    return value if isinstance(value, float) else float(_only(value, int))


def _to_decimal(value: Any) -> Decimal:
    return value if isinstance(value, Decimal) else Decimal(str(_only(value, int, float, str)))


def _to_duration(value: Any) -> dt.timedelta:
    duration = value if isinstance(value, dt.timedelta) else parse_duration(_only(value, str))
    if duration is None:
        raise ValueError
    return duration


def _from_text(kind: Any, read: Callable[[str], object]) -> Callable[[Any], object]:
    return lambda value: value if isinstance(value, kind) else read(_only(value, str))


_CONVERTERS: dict[Any, Callable[[Any], object]] = {
    bool: lambda value: _only(value, bool),
    int: _to_int,
    float: _to_float,
    str: lambda value: _only(value, str),
    os.PathLike: lambda value: value if isinstance(value, os.PathLike) else Path(_only(value, str)),
    Decimal: _to_decimal,
    UUID: _from_text(UUID, UUID),
    dt.datetime: _from_text(dt.datetime, dt.datetime.fromisoformat),
    dt.date: _from_text(dt.date, dt.date.fromisoformat),
    dt.time: _from_text(dt.time, dt.time.fromisoformat),
    dt.timedelta: _to_duration,
}

# What a JSON list becomes under each annotation; None leaves a list or tuple as it is.
_COLLECTIONS: dict[type, Callable[[list[Any]], object] | None] = {
    list: list,
    set: set,
    frozenset: frozenset,
    collections.abc.Set: frozenset,
    collections.abc.MutableSet: set,
    collections.abc.MutableSequence: list,
    collections.abc.Sequence: None,
    collections.abc.Collection: None,
    collections.abc.Iterable: None,
}

_MAPPINGS: tuple[type, ...] = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


def _to_enum(value: Any, kind: type[Enum]) -> Enum:
    try:
        return kind(value)
    except (ValueError, TypeError):
        if isinstance(value, str) and value in kind.__members__:
            return kind[value]
    choices = ", ".join(_SHORT.repr(member.value) for member in kind)
    raise Mismatch(value, kind, allowed=f"{kind.__qualname__} (one of {choices})") from None


def _to_collection(value: Any, annotation: Any, kind: type, arguments: tuple[Any, ...]) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        element = arguments[0] if arguments else Any
        items = [_element(item, element, index) for index, item in enumerate(value)]
        make = _COLLECTIONS[kind] or (tuple if isinstance(value, tuple) else list)
        return _converted(items, annotation, make)
    # A string is a sequence of strings only by accident.
    if isinstance(value, (str, bytes, Mapping)) and kind is not collections.abc.Iterable:
        raise Mismatch(value, annotation)
    return _instance(value, kind, annotation)


def _to_tuple(value: Any, annotation: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, (list, tuple)):
        raise Mismatch(value, annotation)
    if not arguments and annotation in (tuple, typing.Tuple):  # noqa: UP006
        return tuple(value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(value)
    if len(arguments) != len(value):
        raise Mismatch(value, annotation)
    return tuple(_element(*each) for each in zip(value, arguments, range(len(value)), strict=True))


def _to_mapping(value: Any, annotation: Any, arguments: tuple[Any, ...]) -> Any:
    if not isinstance(value, Mapping):
        raise Mismatch(value, annotation)
    if len(arguments) != 2:
        return value
    key_type, value_type = arguments
    return {_to_key(key, key_type): _element(item, value_type, key) for key, item in value.items()}


def _to_key(key: Any, annotation: Any) -> Any:
    try:
        return _element(key, annotation, key)
    except Mismatch:
        # JSON has written a number as a string.
        if not isinstance(key, str) or _unwrapped(annotation) not in (int, float):
            raise
        return _element(_converted(key, annotation, json.loads), annotation, key)


def _to_dataclass(value: Mapping[Any, Any], kind: Any) -> Any:
    hints = typing.get_type_hints(kind)
    fields = {name: _element(item, hints.get(name, Any), name) for name, item in value.items()}
    return _converted(value, kind, lambda _: kind(**fields))


def _element(value: object, annotation: Any, key: object) -> Any:
    try:
        return convert(value, annotation)
    except Mismatch as error:
        error.keys.append(key)
        raise


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
