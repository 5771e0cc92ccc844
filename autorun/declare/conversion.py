"""Convert values to annotations: strings from JSON become Paths, dates and enumerations.

Why no library does this: the end of docs/design.md.
"""

import collections.abc
import dataclasses
import datetime as dt
import json
import os
import reprlib
import types
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from enum import Enum
from functools import cache, partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path, PurePath
from typing import Any, Self, TypeAlias
from uuid import UUID

from django.core.files.base import File
from django.utils.dateparse import parse_duration

from autorun.state.masking import STARS, secrets_in

# From a value, the class of its annotation, and the annotation; any of _REFUSALS refuses the value.
Converter: TypeAlias = Callable[[Any, Any, Any], Any]

_REFUSALS = (TypeError, ValueError, OverflowError, InvalidOperation)

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class Mismatch(Exception):
    """A value that does not fit an annotation; gathers its key path on the way up."""

    def __init__(self, value: object, annotation: object) -> None:
        super().__init__(value, annotation)
        self.argument = "value"
        self.keys: list[object] = []

    def __str__(self) -> str:
        value = self.args[0]
        name = self.keys[0] if self.keys else self.argument
        shown = STARS if any(secrets_in({name: value})) else _SHORT.repr(value)
        path = self.argument + "".join(f"[{_SHORT.repr(key)}]" for key in reversed(self.keys))
        must = f"'{path}' must be {_expected(self.args[1])}"
        return f"{must}, not {shown} ({type(value).__name__})"


class StoredText(str):
    """The stored text of a field, with its `original` value."""

    __slots__ = ("original",)
    original: object

    def __new__(cls, text: object, original: object) -> Self:
        stored = super().__new__(cls, text)
        stored.original = original
        return stored

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def convert(value: object, annotation: Any) -> Any:
    """Return `value` converted to `annotation`; raise `Mismatch` if it does not fit.

    Integers become floats; strings Paths, UUIDs, Decimals, dates, times and durations; values or
    names members of an enumeration; lists the annotated collection. A stored text becomes
    its original value if that fits, and a file the Path of its location. Any, a type variable and a
    protocol accept every value unchanged.
    """
    kind = annotation
    if type(annotation) is not type:
        annotation = unwrapped(annotation)
        kind = typing.get_origin(annotation) or annotation
        if not isinstance(kind, type) and kind not in (typing.Union, typing.Literal):
            return value
    if isinstance(value, StoredText) and kind not in (Any, object):
        with suppress(Mismatch):
            return convert(value.original, annotation)
    try:
        return _converter(kind)(value, kind, annotation)
    except _REFUSALS:
        raise Mismatch(value, annotation) from None


def unwrapped(annotation: Any) -> Any:
    while True:
        if typing.get_origin(annotation) is typing.Annotated:
            annotation = annotation.__origin__
        elif isinstance(annotation, typing.NewType):
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":  # Python 3.12 and later
            annotation = annotation.__value__
        else:
            return type(None) if annotation is None else annotation


@cache
def _converter(kind: Any) -> Converter:
    if kind in _CONVERTERS:
        return _CONVERTERS[kind]
    if issubclass(kind, Enum):
        return _to_enum
    if issubclass(kind, PurePath):
        return _reading(partial(_path, kind), str, os.PathLike, File)
    if typing.is_typeddict(kind):
        return _to_mapping
    return _to_dataclass if dataclasses.is_dataclass(kind) else _instance


def _reading(read: Callable[[Any], object], *kinds: type) -> Converter:
    """A converter that keeps instances of its class and reads `kinds`; None is a refusal."""

    def read_scalar(value: Any, kind: Any, _: object) -> Any:
        if isinstance(value, kind):
            result = value
        else:
            result = read(value) if isinstance(value, kinds) else None
        # True is an int to Python, hardly ever to the person who wrote it.
        if result is None or value is True or value is False:
            raise TypeError
        return result

    return read_scalar


def _instance(value: Any, kind: Any, _: object = None) -> Any:
    with suppress(TypeError):  # a protocol that cannot be checked at run time
        if not isinstance(value, kind):
            raise ValueError
    return value


def _path(kind: Any, value: Any) -> object:
    # An empty text is a refusal: Path("") is the working directory.
    return kind(found) if (found := getattr(value, "path", value)) else None


def _to_none(value: Any, *_: object) -> None:
    # `Path | None` is None for a field without a file.
    if value is not None and not (isinstance(value, File) and not value):
        raise ValueError


def _to_enum(value: Any, kind: Any, _: object) -> Any:
    try:
        return kind(value)
    except (ValueError, TypeError):
        if value in kind.__members__:
            return kind[value]
        raise


def _to_literal(value: Any, _: object, annotation: Any) -> Any:
    for choice in typing.get_args(annotation):
        # True == 1, but they are two literals.
        if type(value) is type(choice) and value == choice:
            return choice
        if isinstance(choice, Enum) and value in (choice.value, choice.name):
            return choice
    raise ValueError


def _to_union(value: Any, _: object, annotation: Any) -> Any:
    """Prefer the member that keeps the value unchanged to the first that converts it."""
    results = []
    for member in typing.get_args(annotation):
        with suppress(Mismatch):
            results.append(convert(value, member))
    if not results:
        raise ValueError
    return next((result for result in results if result is value), results[0])


def _to_collection(value: Any, kind: Any, annotation: Any) -> Any:
    if isinstance(value, (list, tuple, set, frozenset)):
        element, *_ = typing.get_args(annotation) or (Any,)
        items = [
            item if type(item) is element else _element(item, element, index)
            for index, item in enumerate(value)
        ]
        return (_COLLECTIONS[kind] or (tuple if isinstance(value, tuple) else list))(items)
    # A string is a sequence of strings only by accident.
    if isinstance(value, (str, bytes, Mapping)) and kind is not collections.abc.Iterable:
        raise TypeError
    return _instance(value, kind)


def _to_tuple(value: Any, _: object, annotation: Any) -> Any:
    size = len(_instance(value, (list, tuple)))
    elements = typing.get_args(annotation)
    if annotation in (tuple, typing.Tuple):  # noqa: UP006
        elements = (Any, ...)
    if elements[1:] == (...,):
        elements = elements[:1] * size
    return tuple(_element(*each) for each in zip(value, elements, range(size), strict=True))


def _to_mapping(value: Any, _: object, annotation: Any) -> Any:
    _instance(value, Mapping)
    arguments = typing.get_args(annotation)
    if not arguments:
        return value
    of_keys, of_values = arguments
    return {_key(key, of_keys): _element(each, of_values, key) for key, each in value.items()}


def _to_dataclass(value: Any, kind: Any, _: object) -> Any:
    if not isinstance(value, Mapping):
        return _instance(value, kind)
    hints = typing.get_type_hints(kind)
    fields = {name: _element(each, hints.get(name, Any), name) for name, each in value.items()}
    return kind(**fields)


def _element(value: object, annotation: Any, key: object) -> Any:
    try:
        return convert(value, annotation)
    except Mismatch as error:
        error.keys.append(key)
        raise


def _key(key: Any, annotation: Any) -> Any:
    number = key
    if isinstance(key, str) and unwrapped(annotation) in (int, float):
        with suppress(ValueError):  # JSON has written the number as a string
            number = json.loads(key)
    return _element(number, annotation, key)


def _expected(annotation: Any) -> str:
    if typing.get_origin(annotation) is typing.Literal:
        return f"one of {', '.join(map(repr, typing.get_args(annotation)))}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        choices = ", ".join(_SHORT.repr(member.value) for member in annotation)
        return f"{annotation.__qualname__} (one of {choices})"
    return _described(annotation)


def _described(annotation: Any) -> str:
    """The annotation much as its author wrote it: `int | None`, `list[Path]`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return " | ".join(map(_described, typing.get_args(annotation)))
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type):
        return annotation.__qualname__
    return repr(annotation).replace("typing.", "")


# The collection that each annotation makes of a list; None keeps a list or tuple as it is.
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

_CONVERTERS: dict[Any, Converter] = {
    int: _reading(lambda value: int(value) if value.is_integer() else None, float),
    float: _reading(float, int),
    type(None): _to_none,
    os.PathLike: _reading(partial(_path, Path), str, File),
    Decimal: _reading(lambda value: Decimal(str(value)), int, float, str),
    **{kind: _reading(kind, str) for kind in (UUID, IPv4Address, IPv6Address)},
    **{kind: _reading(kind.fromisoformat, str) for kind in (dt.datetime, dt.date, dt.time)},
    dt.timedelta: _reading(parse_duration, str),
    typing.Literal: _to_literal,
    typing.Union: _to_union,
    types.UnionType: _to_union,
    tuple: _to_tuple,
    **dict.fromkeys(_COLLECTIONS, _to_collection),
    **dict.fromkeys((dict, Mapping, collections.abc.MutableMapping), _to_mapping),
}
