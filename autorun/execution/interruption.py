"""What may end a body before it returns: its time limit, and a worker that is told to stop."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from billiard.common import TERM_SIGNAL

from autorun.exceptions import RunTimeout

#: A body that swallows the exception is told again this often, in seconds.
INSISTENCE = 1.0


class Interrupted(BaseException):
    """The worker was told to stop in the middle of a body."""


def can_use_signals() -> bool:
    """Whether this thread can be interrupted: the main one, of a process that has SIGALRM."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


@contextmanager
def time_limit(seconds: float | None, *, message: str = "") -> Iterator[None]:
    """Raise RunTimeout in the block after so many seconds, with `message` if given.

    Only where signals reach the thread. Elsewhere, and in C code that does not come back to the
    interpreter, the keeper of the lease stops the run.
    """
    if seconds is None or not can_use_signals():
        yield
        return

    is_over = False

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not is_over:
            raise RunTimeout(
                message or f"The run took longer than {seconds:g} s, the runner's TIMEOUT."
            )

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, INSISTENCE)
    try:
        try:
            yield
        finally:
            is_over = True
    finally:
        # Of its own: an exception raised by a signal as the block ends must not leave the timer on.
        is_over = True
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Termination:
    """SIGTERM, held back except where a body runs; and what a pool sends in its place.

    Within `raised()` the signal ends the body with Interrupted. Everywhere else, as while results
    are being written, it is only noted, and `was_requested` is True.
    """

    def __init__(self) -> None:
        self.was_requested = False
        self._may_raise = False
        self._received = signal.SIGTERM
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Termination:
        if can_use_signals():
            # With REMAP_SIGTERM=SIGQUIT, Celery's soft shutdown sends that to the pool.
            for each in {signal.SIGTERM, signal.Signals(TERM_SIGNAL)}:
                self._before[each] = signal.signal(each, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        if self.was_requested:
            # What it would have done then it does now, be it to end the process.
            signal.raise_signal(self._received)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Let the signal end the block."""
        self._may_raise = True
        try:
            if self.was_requested:
                raise Interrupted
            yield
        finally:
            self._may_raise = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.was_requested = True
        self._received = signal.Signals(number)
        if self._may_raise:
            raise Interrupted
