"""Exceptions, and other long text, as the database stores them."""

import traceback
from collections.abc import Callable
from dataclasses import dataclass

from autorun.state.encoding import byte_length, qualified_name
from autorun.state.masking import masked
from autorun.state.words import harmless

MAX_CLASS_NAME_LENGTH = 255

_MAX_FRAMES = 1000
_LONGEST_LINE = 500
_SMALLEST_EXCERPT = 200


@dataclass(frozen=True)
class ExceptionText:
    exception_class: str
    message: str
    traceback: str
    log_tail: str = ""


def clean_text(text: str, *, max_bytes: int) -> str:
    """Remove NUL and surrogates, and cut the middle out beyond `max_bytes` of UTF-8."""
    text = str.__str__(text)
    if len(text) <= max_bytes:
        cleaned = _storable_bytes(text)
        if len(cleaned) <= max_bytes:
            return cleaned.decode()
    return _excerpt(text, max_bytes)


def describe_exception(error: BaseException, *, max_bytes: int) -> ExceptionText:
    """Class, message and traceback, about `max_bytes` each, with secrets masked; never raises."""
    return ExceptionText(
        exception_class=_cut_name(_guarded(qualified_name, type(error))),
        message=masked(clean_text(_guarded(str, error), max_bytes=max_bytes)),
        traceback=masked(clean_text(_guarded(_traceback, error, max_bytes), max_bytes=max_bytes)),
    )


def one_line(error: BaseException) -> str:
    """Return the exception's class and the first line of its message."""
    return summary(describe_exception(error, max_bytes=_LONGEST_LINE))


def summary(text: ExceptionText) -> str:
    """Return the exception's class and the first line of its message."""
    name, message = text.exception_class.rpartition(".")[2], text.message.strip()
    return harmless(f"{name}: {message.splitlines()[0][:_LONGEST_LINE]}" if message else name)


def name_exception(kind: type[BaseException]) -> str:
    """Return an exception class's name as in `ExceptionText`: built-in ones without a module."""
    return _cut_name(qualified_name(kind))


def _storable_bytes(text: str) -> bytes:
    return text.replace("\0", "").encode("utf-8", "ignore")


def _excerpt(text: str, max_bytes: int) -> str:
    # Cut before cleaning, so that at most twice max_bytes characters are processed.
    if max_bytes < _SMALLEST_EXCERPT:
        most = max(max_bytes, 0)
        return _storable_bytes(text[:most])[:most].decode("utf-8", "ignore")
    size = byte_length(text)
    room = max_bytes - len(_gap(size))
    head = _storable_bytes(text[:max_bytes])[: room // 2].decode("utf-8", "ignore")
    tail = _storable_bytes(text[-max_bytes:])[-(room // 2) :].decode("utf-8", "ignore")
    return head + _gap(size - byte_length(head) - byte_length(tail)) + tail


def _gap(left_out: int) -> str:
    return f"\n... {left_out:,} bytes left out ...\n"


def _guarded(describe: Callable[..., str], *arguments: object) -> str:
    try:
        return describe(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - `__str__` may raise anything, SystemExit too
        raised = type(failure).__name__
        return f"<not available: {raised} was raised while describing the exception>"


def _cut_name(name: str) -> str:
    return clean_text(name, max_bytes=4 * MAX_CLASS_NAME_LENGTH)[:MAX_CLASS_NAME_LENGTH]


def _traceback(error: BaseException, max_bytes: int) -> str:
    lines = traceback.TracebackException(
        type(error), error, error.__traceback__, limit=-_MAX_FRAMES, compact=True
    )
    # Line by line: each exception of a chain may bring megabytes of its own.
    return "".join(clean_text(line, max_bytes=max_bytes) for line in lines.format())
