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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from django.conf import settings
from django.utils import timezone, translation

#: SIGALRM is missing: time limits put its handler back themselves.
_HANDLED = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGCHLD")
_SIGNALS = [getattr(signal, name) for name in _HANDLED if hasattr(signal, name)]
#: What `signal` is made of, without the enumerations, which take longer than all else.
_fast: Any = import_module("_signal")
_get_locale = partial(import_module("_locale").setlocale, locale.LC_ALL)
_set_locale = partial(locale.setlocale, locale.LC_ALL)


class _Part(NamedTuple):
    name: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object]


class Surroundings:
    """The state of this thread and of its process when this is made.

    The state of the process counts in the main thread only. In other threads, it may be what the
    code of yet another one is using.
    """

    __slots__ = ("_context", "_known", "_parts", "_reads")

    def __init__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._parts = [*_OF_THREAD, *_OF_PROCESS] if is_main else _OF_THREAD
        self._reads = [part.read for part in self._parts]
        self._known = [read() for read in self._reads]
        self.enter()

    def enter(self) -> None:
        """Take the context variables as they are now; autorun sets some for each call."""
        self._context = copy_context()

    def put_back(self) -> Iterator[str]:
        """Put back what is no longer as it was; the names of it."""
        if self._context != copy_context():
            yield from self._put_back_context()
        found = [read() for read in self._reads]
        if found == self._known:
            return
        for part, was, now in zip(self._parts, self._known, found, strict=True):
            if was != now:
                with suppress(Exception):  # such as a directory that is gone
                    part.put_back(was)
                yield part.name

    def _put_back_context(self) -> Iterator[str]:
        """Put back Django's language and time zone, which contexts hold."""
        language = self._context.run(translation.get_language)
        if translation.get_language() != language:
            translation.activate(language) if language else translation.deactivate_all()
            yield "language"
        zone = self._context.run(timezone.get_current_timezone)
        if timezone.get_current_timezone() != zone:
            timezone.activate(zone)
            yield "time zone"


def _arithmetic() -> tuple[int, str]:
    context = decimal.getcontext()
    return context.prec, context.rounding


def _directory() -> str:
    try:
        return os.getcwd()  # noqa: PTH109  a text, which takes less time
    except OSError:  # it was removed
        return ""


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _set_local_time(_: object) -> None:
    """Put it back to the project's, as Django does when it starts."""
    if settings.TIME_ZONE:
        os.environ["TZ"] = settings.TIME_ZONE
    else:
        os.environ.pop("TZ", None)
    time.tzset()


def _set_streams(before: Sequence[Any]) -> None:
    sys.stdout, sys.stderr = before


def _set_handlers(before: Sequence[Any]) -> None:
    for number, handler in zip(_SIGNALS, before, strict=True):
        signal.signal(number, handler)


_OF_THREAD = [
    _Part("decimal context", _arithmetic, lambda was: decimal.setcontext(decimal.Context(*was))),
    # Django takes a thread with an event loop for asynchronous, and refuses its queries.
    _Part("event loop", asyncio._get_running_loop, asyncio._set_running_loop),
]
_OF_PROCESS = [
    _Part("working directory", _directory, os.chdir),
    _Part("umask", _umask, os.umask),
    _Part("standard output", lambda: (sys.stdout, sys.stderr), _set_streams),
    _Part("locale", _get_locale, _set_locale),
    _Part("garbage collection", gc.isenabled, lambda was: gc.enable() if was else gc.disable()),
    _Part("timeout of sockets", socket.getdefaulttimeout, socket.setdefaulttimeout),
    _Part("logging.disable()", lambda: logging.root.manager.disable, logging.disable),
    _Part("signal handlers", lambda: [*map(_fast.getsignal, _SIGNALS)], _set_handlers),
]
if hasattr(time, "tzset"):
    _OF_PROCESS.append(_Part("local time", lambda: time.tzname, _set_local_time))
if hasattr(_fast, "pthread_sigmask"):
    _mask = partial(_fast.pthread_sigmask, signal.SIG_BLOCK, ())
    _set_mask = partial(_fast.pthread_sigmask, signal.SIG_SETMASK)
    _OF_PROCESS.append(_Part("blocked signals", _mask, _set_mask))
