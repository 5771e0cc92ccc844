"""Settings of the thread and the process that user code may change; they are put back after it.

Each is quick to read, and would affect the code of the next row: a language that is left active,
for example, may change the representation of that row, so that it runs again.
"""

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
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.utils import timezone, translation

#: Without SIGALRM, whose handler the time limits put back themselves.
_HANDLED = ("SIGTERM", "SIGINT", "SIGQUIT", "SIGCHLD")
_LIMITS = {f"RLIMIT_{name}" for name in ("AS", "CPU", "FSIZE", "NOFILE")}
#: The C functions under `signal` and `locale`, whose wrappers take longer than all other reads.
_signal: Any = import_module("_signal")
_get_locale = partial(import_module("_locale").setlocale, locale.LC_ALL)
#: The time zone of the process, which Django sets to that of the project's settings.
_TIME_ZONE = os.environ.get("TZ")
#: Modules whose handlers stay: Celery sets some while a worker without child processes shuts down.
_CELERYS = "celery."


class _Part(NamedTuple):
    """One setting. `read` is a function in C, as it is called after every call of user code."""

    name: str
    read: Callable[[], Any]
    put_back: Callable[[Any], object]


def read(reads: Sequence[Callable[[], Any]]) -> list[Any]:
    """The results of `reads`, with 0 for the working directory, which no longer exists."""
    return [0 if each is os.getcwd else each() for each in reads]


def put_back(known: list[Any], context: Context, found: list[Any]) -> Iterator[str]:
    """Put back the settings of `context`, and those whose `known` value is not the one `found` now.

    Yields the names of those that are put back. Any other, such as a raised limit, is known as it
    is from now on.
    """
    language = context.run(translation.get_language)
    if translation.get_language() != language:
        if language == django_settings.LANGUAGE_CODE:
            translation.deactivate()  # it follows the settings again
        else:
            translation.activate(language) if language else translation.deactivate_all()
        yield "language"
    zone = context.run(timezone.get_current_timezone)
    if timezone.get_current_timezone() != zone:
        is_projects = zone == timezone.get_default_timezone()
        timezone.deactivate() if is_projects else timezone.activate(zone)
        yield "time zone"
    arithmetic = context.run(decimal.getcontext)
    if decimal.getcontext() is not arithmetic:
        decimal.setcontext(arithmetic)
        yield "decimal context"
    for at, (part, now) in enumerate(zip(_PARTS, found, strict=False)):
        if now == known[at] or getattr(now, "__module__", "").startswith(_CELERYS):
            continue
        was, (left,) = known[at], kept([now])
        known[at] = left
        with suppress(Exception):  # such as a directory that no longer exists
            part.put_back(was)
            (known[at],) = kept([part.read()])
        # Of the environment and the filters, some changes stay and others do not.
        is_partly = isinstance(left, (dict, list)) and known[at] != left
        if is_partly or known[at] == was:
            yield part.name


def kept(found: Iterable[Any]) -> list[Any]:
    """The readings, with lists and dicts as copies, to be compared with later readings."""
    return [each.copy() if isinstance(each, (dict, list)) else each for each in found]


def _put_back_environment(was: dict[bytes, bytes]) -> None:
    """Put back what was removed or replaced. What was added or extended, such as PATH, stays."""
    # Modules add variables when they are imported, which may be in a body, and only then.
    for name, value in was.items():
        if (now := os.environb.get(name)) is None or value not in now:
            os.environb[name] = value


def _put_back_filters(was: list[Any]) -> None:
    """Remove the filters that were added and would turn the warnings of other code into errors."""
    warnings.filters[:] = [  # type: ignore[index]
        each for each in warnings.filters if each[0] != "error" or each in was
    ]
    with warnings.catch_warnings():  # which also clears what modules remember
        pass


def _set_local_time(_: object) -> None:
    if _TIME_ZONE is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = _TIME_ZONE
    time.tzset()


def _raise_limit(number: int, was: tuple[int, int]) -> None:
    # A higher one harms no other code; as an unsigned number, an infinite one is the highest.
    if resource.getrlimit(number)[0] % 2**64 < was[0] % 2**64:
        resource.setrlimit(number, was)


def _end_timer(number: int, was: tuple[float, float]) -> None:
    if not any(was):  # else it is a profiler's, and what is left of it is never the same
        signal.setitimer(number, 0)


def _attribute(of: Any, name: str, title: str) -> _Part:
    return _Part(title, partial(getattr, of, name), partial(setattr, of, name))


_OF_THREAD = [
    # Django takes a thread with an event loop for asynchronous, and refuses its queries.
    _Part("event loop", asyncio._get_running_loop, asyncio._set_running_loop)
]
#: The place of a list that is changed, and so is kept as a copy.
FILTERS = len(_OF_THREAD)
_OF_PROCESS = [
    _Part("filter of warnings", partial(getattr, warnings, "filters"), _put_back_filters),
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
    _Part("interval of threads", sys.getswitchinterval, sys.setswitchinterval),
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
if hasattr(os, "environb"):  # after the local time, which belongs to it
    _data: Any = vars(os.environ)["_data"]
    _OF_PROCESS.append(_Part("environment", _data.copy, _put_back_environment))
if hasattr(_signal, "pthread_sigmask"):
    _mask = partial(_signal.pthread_sigmask, signal.SIG_BLOCK, ())
    _set_mask = partial(_signal.pthread_sigmask, signal.SIG_SETMASK)
    _OF_PROCESS.append(_Part("blocked signals", _mask, _set_mask))
if sys.platform != "win32":
    import resource

    _OWN = (os.PRIO_PROCESS, 0)
    _OF_PROCESS += [
        _Part("priority", partial(os.getpriority, *_OWN), partial(os.setpriority, *_OWN)),
        _Part("effective user", os.geteuid, os.seteuid),
        *(
            _Part(name, partial(resource.getrlimit, number), partial(_raise_limit, number))
            for name, number in vars(resource).items()
            if name in _LIMITS
        ),
        *(
            _Part("timer", partial(_signal.getitimer, each), partial(_end_timer, each))
            for each in (signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
        ),
    ]
_PARTS = [*_OF_THREAD, *_OF_PROCESS]
READS_OF_THREAD = [part.read for part in _OF_THREAD]
#: The main thread reads those of the process as well. In any other thread, they may be as the code
#: of a third one has set them.
READS_OF_MAIN = [part.read for part in _PARTS]
