"""Actions at autorun's crash points: kill the process, end a block, or act in between."""

import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
from django.db import OperationalError

from autorun.state.probes import POINTS, Listener, listen

#: Names the point at which a process that a test starts is killed: `finish.updated`, or
#: `finish.updated:3` for the third time the process passes it.
ENVIRONMENT = "AUTORUN_CRASH_AT"


#: The error of a database that cannot be reached.
AWAY = OperationalError(2013, "Lost connection to server during query")


class Crash(BaseException):
    """Stands for SIGKILL in the test's own process: open transactions are rolled back."""


def arm_from_environment() -> None:
    """Arm a process that a test has started."""
    if text := os.environ.get(ENVIRONMENT):
        listen(_Trap(text, _kill))


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call `listener` with the name of each point that is passed during a `with` block."""
    before = listen(listener)
    try:
        yield
    finally:
        listen(before)


@contextmanager
def armed(text: str, *, act: Callable[[], object] | None = None) -> Iterator[None]:
    """Call `act` at the point during a `with` block; by default raise Crash there."""
    with listening(_Trap(text, act or _crash)):
        yield


@contextmanager
def failing_at(point: str, errors: Iterable[Exception]) -> Iterator[None]:
    """Raise the next of `errors`, until none is left, when a `with` block passes the point."""
    left = iter(errors)

    def fail(name: str) -> None:
        if name == point and (error := next(left, None)) is not None:
            raise error

    with listening(fail):
        yield


@contextmanager
def crashed_at(text: str) -> Iterator[None]:
    """End a `with` block with a crash at the point; fail if the block never gets there."""
    with armed(text), pytest.raises(Crash):
        yield


class _Trap:
    def __init__(self, text: str, act: Callable[[], object]) -> None:
        name, _, nth = text.partition(":")
        if name not in POINTS:
            raise ValueError(f"There is no crash point {name!r}. There are: {', '.join(POINTS)}.")
        self._name = name
        self._left = int(nth or 1)
        self._act = act

    def __call__(self, name: str) -> None:
        if name == self._name:
            self._left -= 1
            if not self._left:
                self._act()


def _crash() -> None:
    raise Crash


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
