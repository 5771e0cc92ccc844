"""What may end a body before it returns, beside its time limit: a worker that is told to stop."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from billiard.common import TERM_SIGNAL

from autorun.timeouts import can_use_signals


class Interrupted(BaseException):
    """The worker was told to stop in the middle of a body."""


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
