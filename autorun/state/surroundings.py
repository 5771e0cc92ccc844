"""The settings of a thread or process that user code may leave changed, and are put back.

All of it is quick to read, and would affect the code of the next row: a language that is left on,
for example, may change the representation of that row, so that it runs again.
"""

from __future__ import annotations

import asyncio
import decimal
import gc
import locale
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from django.utils import timezone, translation

#: SIGALRM is missing: time limits put its handler back themselves.
_HANDLED = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGCHLD")
#: What `signal` and `locale` are made of, without what takes longer than all else.
_signal: Any = import_module("_signal")
_get_locale = partial(import_module("_locale").setlocale, locale.LC_ALL)


#: The process's own, which is usually that of the project's settings.
_TIME_ZONE = os.environ.get("TZ")
#: Of Celery, which replaces handlers itself while a worker without child processes is shut down.
_CELERYS = "celery."


class _Part(NamedTuple):
    """`read` is a function in C: all of them are called after each call of user code."""

    name: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def read(reads: Sequence[Callable[[], Any]]) -> list[Any]:
    """Call each of them; 0 stands for the working directory, as it is gone."""
    return [0 if each is os.getcwd else each() for each in reads]


def put_back(known: list[Any], context: Context, found: list[Any]) -> Iterator[str]:
    """Put back what is not as it is `known` to be, by READS, and in the `context`; its names.

    `found` is what it is now.
    """
    language = context.run(translation.get_language)
    if translation.get_language() != language:
        translation.activate(language) if language else translation.deactivate_all()
        yield "language"
    zone = context.run(timezone.get_current_timezone)
    if timezone.get_current_timezone() != zone:
        timezone.activate(zone)
        yield "time zone"
    arithmetic = context.run(decimal.getcontext)
    if decimal.getcontext() is not arithmetic:
        decimal.setcontext(arithmetic)
        yield "decimal context"
    for part, was, now in zip(_PARTS, known, found, strict=False):
        if now == was or getattr(now, "__module__", "").startswith(_CELERYS):
            continue
        with suppress(Exception):  # such as a directory that no longer exists
            part.put_back(was)
        yield part.name


def _set_local_time(_: object) -> None:
    if _TIME_ZONE is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = _TIME_ZONE
    time.tzset()


def _attribute(of: Any, name: str, title: str) -> _Part:
    return _Part(title, partial(getattr, of, name), partial(setattr, of, name))


_OF_THREAD = [
    # Django takes a thread with an event loop for asynchronous, and refuses its queries.
    _Part("event loop", asyncio._get_running_loop, asyncio._set_running_loop),
]
_OF_PROCESS = [
    _attribute(decimal.getcontext(), "prec", "decimal precision"),
    _attribute(decimal.getcontext(), "rounding", "decimal rounding"),
    _Part("working directory", os.getcwd, os.chdir),
    _attribute(sys, "stdout", "standard output"),
    _attribute(sys, "stderr", "standard error"),
    # The function also clears what loggers remember of whether they are enabled.
    _attribute(logging.root.manager, "disable", "logging.disable()")._replace(
        put_back=logging.disable
    ),
    _Part("locale", _get_locale, partial(locale.setlocale, locale.LC_ALL)),
    _Part("garbage collection", gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    _Part("timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    *(
        _Part(
            f"handler of {name}", partial(_signal.getsignal, number), partial(signal.signal, number)
        )
        for name in _HANDLED
        if (number := getattr(signal, name, None)) is not None
    ),
]
if hasattr(time, "tzset"):
    _OF_PROCESS.append(_Part("local time", partial(getattr, time, "tzname"), _set_local_time))
if hasattr(_signal, "pthread_sigmask"):
    _mask = partial(_signal.pthread_sigmask, signal.SIG_BLOCK, ())
    _set_mask = partial(_signal.pthread_sigmask, signal.SIG_SETMASK)
    _OF_PROCESS.append(_Part("blocked signals", _mask, _set_mask))
_PARTS = [*_OF_THREAD, *_OF_PROCESS]
READS_OF_THREAD = [part.read for part in _OF_THREAD]
#: In the main thread, those of its process as well. In others, they may be what the code of yet
#: another one is using.
READS_OF_MAIN = [part.read for part in _PARTS]
