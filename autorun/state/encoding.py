"""Outputs, configurations, inputs and exceptions as the database stores them."""

from __future__ import annotations

import hashlib
import json
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from autorun.exceptions import AutorunError, ConfigurationError, InputError, OutputError
from autorun.state.plain import JSON, Encoder, TooMany, Unencodable, checked_text

# RFC 8785 writes numbers as JavaScript reads them: exact up to here only.
MAX_SAFE_INTEGER = 2**53 - 1

MAX_CLASS_NAME_LENGTH = 255

_MAX_FRAMES = 1000
_SMALLEST_EXCERPT = 200


@dataclass(frozen=True)
class ExceptionText:
    """An exception as text that every database can store."""

    exception_class: str
    message: str
    traceback: str


def encode_outputs(value: object, *, max_bytes: int | None) -> str:
    """Return an analysis's return value as JSON text.

    Dates, durations, Decimals, UUIDs, Paths, enumerations, sets, dataclasses and NumPy values
    become strings, numbers, lists and dictionaries. Raises `OutputError`, naming the key, for
    values JSON or a database cannot hold (NaN, NUL, bytes, circles, deep nesting), and for more
    than `max_bytes` of UTF-8; None means no limit.
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
        raise _in_words(error, "outputs", OutputError) from error.__cause__
    text = _dumps(plain)
    size = _byte_length(text)
    if size > limit:
        raise OutputError(
            f"outputs take {size:,} bytes of JSON{_largest_key(plain)}, {_too_large(limit)}"
        )
    return text


def canonical(value: object, *, root: str = "configuration") -> bytes:
    """Return RFC 8785 canonical JSON: 100 equals 100.0, and the order of keys does not matter.

    Raises `ConfigurationError`, naming the key below `root`, for values it cannot hold.
    """
    return rfc8785.dumps(_plain_configuration(value, root))


def encode_configuration(configuration: Mapping[str, object]) -> dict[str, JSON]:
    """Return plain JSON values for a JSON field; raises `ConfigurationError`."""
    plain = _plain_configuration(configuration, "configuration")
    if not isinstance(plain, dict):
        raise ConfigurationError(
            f"configuration must be a dictionary, not {type(configuration).__name__}."
        )
    return plain


def digest(title: str, version: str, configuration: Mapping[str, object], model_label: str) -> str:
    """Return a node's identity: hexadecimal SHA-256 of the canonical JSON of the arguments."""
    identity: dict[str, Any] = {
        "title": title,
        "version": version,
        "configuration": encode_configuration(configuration),
        "model_label": model_label,
    }
    return hashlib.sha256(rfc8785.dumps(identity)).hexdigest()


def fingerprint_of(representation: object) -> str:
    """Return 32 hexadecimal digits: the MD5 of the JSON of an input's representation.

    100 equals 100.0, and the order of keys does not matter. Raises `InputError`, naming the key,
    for values JSON cannot hold.
    """
    # Most representations are a text, such as a path.
    is_text = type(representation) is str
    encode: Callable[[Any], JSON] = checked_text if is_text else _FingerprintEncoder().encode
    try:
        plain = encode(representation)
    except Unencodable as error:
        raise _in_words(error, "representation", InputError) from error.__cause__
    # Not RFC 8785: only autorun compares it, and Python's own encoder takes a tenth of the time.
    text = _FINGERPRINT_JSON.encode(plain)
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


_FINGERPRINT_JSON = json.JSONEncoder(sort_keys=True, separators=(",", ":"))


def clean_text(text: str, *, max_bytes: int) -> str:
    """Remove NUL and surrogates, and cut the middle out beyond `max_bytes` of UTF-8."""
    text = str.__str__(text)
    if len(text) <= max_bytes:
        cleaned = _storable_bytes(text)
        if len(cleaned) <= max_bytes:
            return cleaned.decode()
    return _excerpt(text, max_bytes)


def describe_exception(error: BaseException, *, max_bytes: int) -> ExceptionText:
    """Return class, message and traceback of any exception, `max_bytes` each; never raises.

    A part that cannot be turned into text is replaced by a line that says why.
    """
    return ExceptionText(
        exception_class=_cut_name(_guarded(_class_name, error)),
        message=clean_text(_guarded(str, error), max_bytes=max_bytes),
        traceback=clean_text(_guarded(_traceback, error, max_bytes), max_bytes=max_bytes),
    )


def name_exception(kind: type[BaseException]) -> str:
    """Return an exception class's name as in `ExceptionText`: built-in ones without a module."""
    return _cut_name(_qualified_name(kind))


class _ConfigurationEncoder(Encoder):
    def encode_integer(self, value: int) -> JSON:
        if abs(value) > MAX_SAFE_INTEGER:
            raise Unencodable(
                "is an integer beyond ±(2**53 - 1), which JSON readers round. Make it a string and "
                "convert it in the analysis"
            )
        return value


class _FingerprintEncoder(Encoder):
    def encode_float(self, value: float) -> JSON:
        return int(value) if value.is_integer() else super().encode_float(value)


def _plain_configuration(value: object, root: str) -> Any:
    try:
        return _ConfigurationEncoder().encode(value)
    except Unencodable as error:
        raise _in_words(error, root, ConfigurationError) from error.__cause__


def _in_words(error: Unencodable, root: str, kind: type[AutorunError]) -> AutorunError:
    return kind(f"{error.path(root)} {error.reason}.")


_dumps = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def _byte_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _too_large(limit: int) -> str:
    return (
        f"more than the limit of {limit:,} bytes. Save large results to a file and return its "
        'path, or raise AUTORUN["MAX_OUTPUT_BYTES"].'
    )


def _largest_key(plain: JSON) -> str:
    if not isinstance(plain, dict) or not plain:
        return ""
    size, key = max((_byte_length(_dumps(value)), key) for key, value in plain.items())
    largest = Unencodable("")
    largest.keys.append(key)
    return f" ({size:,} of them in {largest.path('outputs')})"


def _storable_bytes(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "ignore")


def _excerpt(text: str, max_bytes: int) -> str:
    # Cut before cleaning, so that at most twice max_bytes characters are processed.
    size = _byte_length(text)
    room = max_bytes - len(_gap(size))
    if max_bytes < _SMALLEST_EXCERPT:
        return _storable_bytes(text[: max(max_bytes, 0)])[: max(max_bytes, 0)].decode(
            "utf-8", "ignore"
        )
    head = _storable_bytes(text[:max_bytes])[: room // 2].decode("utf-8", "ignore")
    tail = _storable_bytes(text[-max_bytes:])[-(room // 2) :].decode("utf-8", "ignore")
    return head + _gap(size - _byte_length(head) - _byte_length(tail)) + tail


def _gap(left_out: int) -> str:
    return f"\n... {left_out:,} bytes left out ...\n"


def _guarded(describe: Callable[..., str], error: BaseException, *arguments: int) -> str:
    try:
        return describe(error, *arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - `__str__` may raise anything, SystemExit too
        return (
            f"<not available: {type(failure).__name__} was raised while describing the exception>"
        )


def _cut_name(name: str) -> str:
    return clean_text(name, max_bytes=4 * MAX_CLASS_NAME_LENGTH)[:MAX_CLASS_NAME_LENGTH]


def _class_name(error: BaseException) -> str:
    return _qualified_name(type(error))


def _qualified_name(kind: type[BaseException]) -> str:
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _traceback(error: BaseException, max_bytes: int) -> str:
    lines = traceback.TracebackException(
        type(error), error, error.__traceback__, limit=-_MAX_FRAMES, compact=True
    )
    # Line by line: each exception of a chain may bring megabytes of its own.
    return "".join(clean_text(line, max_bytes=max_bytes) for line in lines.format())
