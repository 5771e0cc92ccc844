"""Return annotations: the types of outputs that they declare, and outputs compared with them.

`int | None` counts as `int`: any output may be null. What an annotation leaves open is None here.

The JSON that is recorded is compared: a NumPy integer is an int, and a date may be its text. An
error names the key. If an annotation leaves the JSON open, as a class of another package does,
nothing is compared.
"""

import dataclasses
import datetime as dt
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Set
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from pathlib import PurePath
from typing import Any
from uuid import UUID

from autorun.declare.conversion import Mismatch, convert, unwrapped
from autorun.exceptions import OutputError


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
    """The keys that outputs must have."""
    # `__required_keys__` takes no notice of NotRequired and Required in postponed annotations.
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


_SCALARS = {
    *(bool, int, float, str, type(None), Decimal, UUID),
    *(dt.datetime, dt.date, dt.time, dt.timedelta),
}


def check_outputs(plain: Any, annotation: Any) -> None:
    """Raise OutputError, naming the key, if the outputs do not fit the annotation."""
    try:
        _check(plain, annotation)
    except Mismatch as error:
        error.argument = "outputs"
        raise OutputError(f"{error}, as the function's return annotation says.") from None


def of_one(annotation: Any) -> Any:
    """The annotation of one row's outputs, from a batch body's annotation: a list of them."""
    # Exceptions stand for rows that fail. It is Any if it names no list.
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    is_list = isinstance(origin, type) and issubclass(origin, Iterable)
    if arguments[1:] == (...,):
        arguments = arguments[:1]
    if not is_list or len(arguments) != 1:
        return Any
    (item,) = arguments
    is_union = typing.get_origin(item) in (typing.Union, types.UnionType)
    kinds = [
        each
        for each in (typing.get_args(item) if is_union else arguments)
        if not (isinstance(each, type) and issubclass(each, BaseException))
    ]
    return typing.Union[tuple(kinds)] if kinds else Any  # noqa: UP007


def _check(value: Any, annotation: Any) -> None:
    is_plain = type(annotation) in (type, types.GenericAlias)  # such as float, and dict[str, float]
    _check_of(annotation if is_plain else unwrapped(annotation))(value)


@cache
def _check_of(annotation: Any) -> Callable[[Any], None]:
    """A check of values against the annotation; kept, since every run needs it."""
    if annotation in _SCALARS or _is_converted(annotation):
        return partial(_check_scalar, annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return partial(_check_union, annotation, arguments)
    if isinstance(annotation, type) and (members := members_of(annotation)) is not None:
        return partial(_check_members, annotation, members, required_of(annotation, members))
    if isinstance(kind := origin or annotation, type) and issubclass(kind, Collection):
        check = _check_mapping if issubclass(kind, Mapping) else _check_list
        return partial(check, kind, annotation, arguments)
    return lambda _: None


def _is_converted(annotation: Any) -> bool:
    is_class = isinstance(annotation, type)
    named = is_class and issubclass(annotation, (Enum, PurePath))
    return named or typing.get_origin(annotation) is typing.Literal


def _check_scalar(annotation: Any, value: Any) -> None:
    if type(value) is annotation or (annotation is float and type(value) is int):
        return
    if annotation is dt.date:  # a datetime is a date
        with suppress(Mismatch):
            convert(value, dt.datetime)
            return
    convert(value, annotation)


def _check_union(annotation: Any, members: tuple[Any, ...], value: Any) -> None:
    errors = []
    for member in members:
        # In the list of a batch, an exception takes the place of an output.
        if not (isinstance(member, type) and issubclass(member, BaseException)):
            try:
                _check(value, member)
            except Mismatch as error:
                errors.append(error)
            else:
                return
    # Of `Measures | None`, the error of Measures says more.
    raise next((each for each in errors if each.keys), None) or Mismatch(value, annotation)


def _check_members(
    annotation: Any, members: Mapping[str, Any], required: Set[str], value: Any
) -> None:
    if not isinstance(value, dict):
        raise Mismatch(value, annotation)
    if missing := sorted(required - value.keys()):
        raise OutputError(f"outputs of {annotation.__qualname__} lack the key {missing[0]!r}.")
    unknown = sorted(value.keys() - members.keys())
    if unknown and not hasattr(annotation, "model_fields"):  # pydantic computes some
        raise OutputError(f"outputs of {annotation.__qualname__} have no key {unknown[0]!r}.")
    for key, member in members.items():
        if key in value and type(value[key]) is not member:
            _check_element(value[key], member, key)


def _check_mapping(_: type, annotation: Any, arguments: tuple[Any, ...], value: Any) -> None:
    if not isinstance(value, dict):
        raise Mismatch(value, annotation)
    if len(arguments) == 2:
        element = arguments[1]
        for key, each in value.items():
            if type(each) is not element:
                _check_element(each, element, key)


def _check_list(kind: type, annotation: Any, arguments: tuple[Any, ...], value: Any) -> None:
    if kind.__module__ not in ("builtins", "collections.abc", "collections"):
        return  # such as an array, whose JSON is a list or a number
    if not isinstance(value, list):
        raise Mismatch(value, annotation)
    if issubclass(kind, tuple) and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise Mismatch(value, annotation)
        elements = arguments
    else:
        elements = (arguments[0] if arguments else Any,) * len(value)
    for index, (each, element) in enumerate(zip(value, elements, strict=True)):
        if type(each) is not element:
            _check_element(each, element, index)


def _check_element(value: Any, annotation: Any, key: object) -> None:
    """Check a value that is not simply of the type `annotation`, as most are."""
    try:
        _check(value, annotation)
    except Mismatch as error:
        error.keys.append(key)
        raise
