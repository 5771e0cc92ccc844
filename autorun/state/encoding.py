"""Values as JSON that every database stores; an error names the key that JSON cannot hold."""

import dataclasses
import datetime as dt
import hashlib
import json
import json.encoder
import math
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set, ValuesView
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any, ClassVar, NoReturn, TypeAlias
from uuid import UUID

import rfc8785
from django.utils.duration import duration_iso_string
from django.utils.functional import Promise

from autorun.exceptions import AutorunError, ConfigurationError, OutputError

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"

# MariaDB stores 31 levels of JSON; a recordset of outputs adds two around each.
MAX_DEPTH = 29

# Python itself refuses to write or read longer ones (sys.get_int_max_str_digits).
MAX_INTEGER_DIGITS = 4300

_SHOWN_KEY_CHARACTERS = 60

_WRITERS: tuple[tuple[type | tuple[type, ...], Callable[[Any], str]], ...] = (
    (str, str.__str__),
    ((dt.date, dt.time), lambda value: _written_time(value)),
    (dt.timedelta, duration_iso_string),
    (Decimal, lambda value: str(value) if value.is_finite() else _refuse(value)),
    ((UUID, PurePath, Promise), str),
)

# RFC 8785 writes numbers as JavaScript reads them: exact up to here only.
MAX_SAFE_INTEGER = 2**53 - 1


def encode_outputs(
    value: object,
    *,
    max_bytes: int | None,
    check: Callable[[JSON], object] | None = None,
    expected: Any = None,
) -> str:
    """Return an analysis's return value as JSON text; `check` may refuse the plain values.

    It is not asked if they are of the type `expected`.

    Dates, durations, Decimals, UUIDs, Paths, enumerations, sets, dataclasses, pydantic models and
    NumPy values become plain JSON. Raises `OutputError`, naming the key, for values JSON or a
    database cannot hold (NaN, NUL, bytes, circles, deep nesting), and for more than `max_bytes` of
    UTF-8.
    """
    limit = sys.maxsize if max_bytes is None else max_bytes
    try:
        plain = Encoder(max_items=limit).encode(value)
    except TooMany as error:
        # An element takes two bytes at least: itself, and a comma or bracket.
        raise OutputError(
            f"{error.path('outputs')} {error.reason}: outputs would take over {2 * limit:,} bytes "
            f"of JSON, {_too_large(limit)}"
        ) from None
    except Unencodable as error:
        raise in_words(error, "outputs", OutputError) from error.__cause__
    if check is not None and type(plain) is not expected:
        check(plain)
    text = "".join(_write(plain, 0))
    # A character takes four bytes at most.
    if 4 * len(text) > limit and (size := byte_length(text)) > limit:
        raise OutputError(
            f"outputs take {size:,} bytes of JSON{_largest_key(plain)}, {_too_large(limit)}"
        )
    return text


def encode_configuration(configuration: Mapping[str, object]) -> dict[str, JSON]:
    """Return plain JSON values for a JSON field; raises `ConfigurationError`, naming the key."""
    try:
        plain = _ConfigurationEncoder().encode(configuration)
    except Unencodable as error:
        raise in_words(error, "configuration", ConfigurationError) from error.__cause__
    if not isinstance(plain, dict):
        raise ConfigurationError(
            f"configuration must be a dictionary, not {type(configuration).__name__}."
        )
    return plain


def digest(title: str, version: str, configuration: Mapping[str, object], model_label: str) -> str:
    """Return a node's identity: hexadecimal SHA-256 of the canonical JSON of the arguments."""
    # By RFC 8785 100 equals 100.0, and the order of keys does not matter.
    identity: dict[str, Any] = {
        "title": title,
        "version": version,
        "configuration": encode_configuration(configuration),
        "model_label": model_label,
    }
    return hashlib.sha256(rfc8785.dumps(identity)).hexdigest()


class Unencodable(Exception):
    """A value JSON cannot hold; gathers its key path on the way up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.keys: list[object] = []

    def path(self, root: str) -> str:
        """The Python expression that reaches the value: `outputs["a"][0]`."""
        return root + "".join(f"[{_shown(key)}]" for key in reversed(self.keys))


class TooMany(Unencodable):
    """More elements than the encoder may take."""


def checked_text(text: str) -> str:
    """Return `text`, or raise `Unencodable` if PostgreSQL would refuse it."""
    if "\0" in text:
        raise Unencodable("holds a NUL character, which databases refuse. Remove or escape it")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise Unencodable(
                f"holds the lone surrogate U+{ord(text[error.start]):04X}, which databases refuse. "
                "Decode the text with its real encoding, or replace the character"
            ) from None
    return text


def checked_integer(value: int) -> int:
    if value.bit_length() > MAX_INTEGER_DIGITS * 3 and abs(value) >= 10**MAX_INTEGER_DIGITS:
        raise Unencodable(
            f"is an integer of more than {MAX_INTEGER_DIGITS} digits. Make it a string"
        )
    return value


def checked_float(value: float) -> float:
    return value if math.isfinite(value) else _refuse(value)


def _written_time(value: dt.date | dt.time) -> str:
    text = value.isoformat()
    return _refuse(text) if text == "NaT" else text  # pandas has a date that is none


def _refuse(value: object) -> NoReturn:
    raise Unencodable(f"is {value}, which JSON cannot hold. Replace it by None or leave it out")


@dataclasses.dataclass
class Encoder:
    """Turns values into plain JSON values; raises only `Unencodable`.

    `max_items` bounds all elements together: an array of millions is refused before it is expanded.
    """

    #: Every run encodes its outputs, and most values are of these types.
    scalars: ClassVar[Mapping[type, Callable[[Any], JSON]]] = {
        str: checked_text,
        int: checked_integer,
        float: checked_float,
    }

    max_items: int = sys.maxsize
    items: int = 0

    def encode(self, value: object) -> JSON:
        try:
            if type(value) is dict:
                return self._encode_mapping(value, self._enter(value, ()))
            return self._encode(value, ())
        except (Unencodable, AutorunError):
            raise
        except Exception as error:
            # A container class of the project may raise anything while it is read.
            raise Unencodable(f"could not be read: {type(error).__name__} was raised") from error

    def _encode(self, value: Any, parents: tuple[int, ...]) -> JSON:
        kind = type(value)
        if (encode := self.scalars.get(kind)) is not None:
            return encode(value)
        if value is None or kind is bool:
            return value  # type: ignore[no-any-return]
        if kind is dict:
            return self._encode_mapping(value, self._enter(value, parents))
        if kind is list or kind is tuple:
            return self._encode_items(value, self._enter(value, parents))
        return self._encode_other(value, parents)

    def _encode_other(self, value: Any, parents: tuple[int, ...]) -> JSON:
        if isinstance(value, Enum):
            return self._encode(value.value, parents)
        if _is_numpy(value):
            return self._encode_numpy(value, parents)
        for types, write in _WRITERS:
            if isinstance(value, types):
                return checked_text(write(value))
        if isinstance(value, int):
            return self.scalars[int](int(value))
        if isinstance(value, float):
            return self.scalars[float](float(value))
        if isinstance(value, (bytes, bytearray, memoryview)):
            raise Unencodable(
                f"is {type(value).__name__}, which JSON cannot hold. Decode it, or save it to a "
                "file and give its path"
            )
        return self._encode_container(value, parents)

    def _encode_container(self, value: Any, parents: tuple[int, ...]) -> JSON:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            return self._encode_mapping(fields, self._enter(value, parents, size=len(fields)))
        if isinstance(value, Mapping):
            return self._encode_mapping(value, self._enter(value, parents))
        if hasattr(type(value), "model_fields"):  # pydantic's, which need not be installed
            return self._encode(value.model_dump(), parents)
        if isinstance(value, Set):
            return _sorted(self._encode_items(value, self._enter(value, parents)))
        if isinstance(value, (Sequence, ValuesView, deque)):
            return self._encode_items(value, self._enter(value, parents))
        raise Unencodable(
            f"is of type {qualified_name(type(value))}, which JSON cannot hold. Give numbers, "
            "strings, lists or dictionaries instead"
        )

    def _encode_mapping(
        self, mapping: Mapping[Any, Any], parents: tuple[int, ...]
    ) -> dict[str, JSON]:
        result: dict[str, JSON] = {}
        for key, value in mapping.items():
            try:
                name = checked_text(key) if type(key) is str else self._encode_key(key)
                if name in result:
                    raise Unencodable(
                        f"occurs twice: another key is {name!r} in JSON as well. Rename one"
                    )
                encode = self.scalars.get(type(value))
                result[name] = encode(value) if encode else self._encode(value, parents)
            except Unencodable as error:
                error.keys.append(key)
                raise
        return result

    def _encode_items(self, items: Collection[Any], parents: tuple[int, ...]) -> list[JSON]:
        result: list[JSON] = []
        for item in items:
            try:
                result.append(self._encode(item, parents))
            except Unencodable as error:
                error.keys.append(len(result))
                raise
        return result

    def _encode_key(self, key: object) -> str:
        name = self._encode(key, ())
        if isinstance(name, (list, dict)):
            kind = qualified_name(type(key))
            raise Unencodable(f"is a key of type {kind}, which JSON cannot hold. Make it a string")
        return name if isinstance(name, str) else json.dumps(name)

    def _encode_numpy(self, value: Any, parents: tuple[int, ...]) -> JSON:
        # Duck typing, so that a project without NumPy never imports it.
        if not hasattr(value, "dtype"):
            raise Unencodable(f"is of type {qualified_name(type(value))}, which JSON cannot hold")
        if value.dtype.kind in "mM":
            # Only microseconds become Python's own dates; nanoseconds would become bare integers.
            if (value != value).any():  # noqa: PLR0124 - NaT is like NaN here
                raise Unencodable("holds NaT, which JSON cannot hold. Replace it by None")
            value = value.astype(f"{value.dtype.kind}8[us]")
        if self.items + value.size > self.max_items:
            raise _too_many(value, value.size)
        plain = value.tolist()
        if _is_numpy(plain):  # A longdouble has no Python type of its own.
            plain = float(plain)
        if value.ndim == 0:
            parents = self._enter(value, parents, size=0)
        return self._encode(plain, parents)

    def _enter(
        self, container: Any, parents: tuple[int, ...], *, size: int | None = None
    ) -> tuple[int, ...]:
        """Count the elements, and add `container` to its `parents`."""
        if id(container) in parents:
            raise Unencodable("refers back to what holds it. Break the circle")
        if len(parents) >= MAX_DEPTH:
            raise Unencodable(
                f"is nested more than {MAX_DEPTH} levels deep. Flatten it, or save it to a file"
            )
        size = len(container) if size is None else size
        self.items += size
        if self.items > self.max_items:
            raise _too_many(container, size)
        return (*parents, id(container))


def _safe_integer(value: int) -> int:
    if abs(value) > MAX_SAFE_INTEGER:
        raise Unencodable(
            "is an integer beyond ±(2**53 - 1), which JSON readers round. Make it a string and "
            "convert it in the analysis"
        )
    return value


class _ConfigurationEncoder(Encoder):
    scalars: ClassVar = {**Encoder.scalars, int: _safe_integer}


def byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def qualified_name(kind: type) -> str:
    """The name of a class, with its module unless it is built in."""
    is_builtin = kind.__module__ == "builtins"
    return kind.__qualname__ if is_builtin else f"{kind.__module__}.{kind.__qualname__}"


def _too_many(container: object, size: int) -> TooMany:
    return TooMany(f"is a {qualified_name(type(container))} of {size:,} elements")


def _sorted(items: list[JSON]) -> list[JSON]:
    try:
        return sorted(items)  # type: ignore[type-var]
    except TypeError:
        return sorted(items, key=lambda item: json.dumps(item, sort_keys=True))


def _is_numpy(value: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "numpy" for kind in type(value).__mro__)


def _shown(key: object) -> str:
    try:
        text = json.dumps(key, ensure_ascii=False) if isinstance(key, str) else repr(key)
    except Exception:  # noqa: BLE001 - a `__repr__` may raise anything
        text = f"<{qualified_name(type(key))}>"
    if len(text) > _SHOWN_KEY_CHARACTERS:
        text = text[:_SHOWN_KEY_CHARACTERS] + "…"
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def in_words(error: Unencodable, root: str, kind: type[AutorunError]) -> AutorunError:
    return kind(f"{error.path(root)} {error.reason}.")


def _writer() -> Callable[[JSON, int], Iterable[str]]:
    """A JSON encoder of plain values, which have no circles."""
    # `JSONEncoder.encode` makes one for each value, which takes as long as writing a small one.
    encoder = json.JSONEncoder(
        ensure_ascii=False, allow_nan=False, check_circular=False, separators=(",", ":")
    )
    in_c: Any = getattr(json.encoder, "c_make_encoder", None)
    if in_c is None:  # as on PyPy
        return lambda plain, _: encoder.iterencode(plain)
    write: Any = json.encoder.encode_basestring
    return in_c(None, encoder.default, write, None, ":", ",", False, False, False)  # type: ignore[no-any-return]


_write = _writer()


def _too_large(limit: int) -> str:
    return (
        f"more than the limit of {limit:,} bytes. Save large results to a file and return its "
        'path, or raise AUTORUN["MAX_OUTPUT_BYTES"].'
    )


def _largest_key(plain: JSON) -> str:
    if not isinstance(plain, dict) or not plain:
        return ""
    size, key = max((byte_length("".join(_write(value, 0))), key) for key, value in plain.items())
    largest = Unencodable("")
    largest.keys.append(key)
    return f" ({size:,} of them in {largest.path('outputs')})"
