"""Interruption of a body by a signal to the worker, or by Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from billiard.common import TERM_SIGNAL

from autorun.declare.timeouts import can_use_signals
from autorun.state.user_code import cancel_queries


class Interrupted(BaseException):
    """The process was told to stop in the middle of a body."""


class Termination:
    """Holds back SIGTERM, the signal a pool sends in its place, and Ctrl-C until a body runs.

    Within `raised()` the signal ends the body with Interrupted. Elsewhere, as while results are
    written, it only sets `was_requested`. At the end of the block it has its usual effect: it ends
    the process, or raises KeyboardInterrupt.
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
            # A worker has its own handler, or its pool ignores the signal; a command has Python's.
            if _raises_keyboard_interrupt(signal.getsignal(signal.SIGINT)):
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        if self.was_requested:
            signal.raise_signal(self._received)

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Let the signal end the block."""
        self._may_raise = True
        try:
            if self.was_requested:
                raise Interrupted
            yield
        except BaseException:
            if self.was_requested:  # whatever the body made of it
                raise Interrupted from None
            raise
        finally:
            self._may_raise = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.was_requested and not self._may_raise:
            self._before[signal.SIGINT](number, frame)  # pressed twice: end at once
        self.was_requested = True
        self._received = signal.Signals(number)
        if self._may_raise:
            cancel_queries()
            raise Interrupted


def _raises_keyboard_interrupt(handler: Any) -> bool:
    """Whether the handler is Python's own, or that of an outer chunk whose body led to this one."""
    is_nested = isinstance(getattr(handler, "__self__", None), Termination)
    return is_nested or handler is signal.default_int_handler
