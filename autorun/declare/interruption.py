"""Interruption of user code: by its time limit, a signal to the worker, or Ctrl-C.

Only where signals reach the thread: in the main thread of a process that has SIGALRM.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, field
from importlib import import_module
from types import FrameType
from typing import Any, Self, TypeVar

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.exceptions import RunTimeout
from autorun.state import coroutines
from autorun.state.user_code import all_connections, cancel_queries, is_main_thread

Argument = TypeVar("Argument")
Result = TypeVar("Result")

#: Timers and clocks may differ by so much.
NEARLY = 0.99
#: Seconds after which code that swallows the exception is interrupted again.
INSISTENCE = 1.0


def can_use_signals() -> bool:
    """Whether this thread can be interrupted: the main one, of a process that has SIGALRM."""
    return is_main_thread() and hasattr(signal, "setitimer")


def too_long(seconds: float, message: str = "") -> RunTimeout:
    return RunTimeout(message or f"The run took longer than {seconds:g} s, the runner's TIMEOUT.")


def time_limit(
    seconds: float | None, *, message: str = "", stop: Sequence[Exception] = ()
) -> AbstractContextManager[None]:
    """Raise RunTimeout in the block after that many seconds, with `message` if given.

    `interrupt()` raises the error in `stop` before that, if another thread has put one there. In C
    code that does not return to the interpreter, and in a thread without signals, the keeper of the
    lease stops the run. A coroutine is cancelled in any thread.
    """
    if can_use_signals():
        return _Limit(seconds, message, stop)
    if seconds is None:
        return nullcontext()
    return coroutines.limited(seconds, too_long(seconds, message))


@dataclass
class _Limit:
    """The block of a `time_limit()` that signals reach. Every run enters one: no generator."""

    seconds: float | None
    message: str
    stop: Sequence[Exception]
    _is_over: bool = False
    _raised: Exception | None = None

    def __enter__(self) -> None:
        self._began_at = time.monotonic()
        self._restore = _set_alarm(self._end, self.seconds or 0.0, every=INSISTENCE)

    def _end(self, _number: int, frame: FrameType | None) -> None:
        seconds, stop = self.seconds, self.stop
        is_late = seconds is not None and time.monotonic() - self._began_at >= NEARLY * seconds
        if not self._is_over and (stop or is_late) and not _is_leaving(frame):
            late = self._raised or too_long(seconds or 0.0, self.message)
            self._raised = stop[0] if stop else late
            coroutines.interrupt(self._raised)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            self._is_over = True
            if getattr(coroutines.of_thread, "left", None):
                coroutines.join_left()
            # A driver or a failed cleanup may have replaced it.
            if self._raised not in (None, error) and isinstance(error, Exception):
                raise self._raised from error
        finally:
            # An exception raised by a signal as the block ends must not leave the timer on.
            self._is_over = True
            self._restore()


def interrupt(thread_id: int, error: Exception) -> None:
    """Have the `time_limit()` of another thread raise the error that was put in its `stop`.

    In a thread without signals, only a coroutine ends. Nothing happens if the thread is not in a
    block of this module: the alarm would be another's, or end the process.
    """
    if thread_id == threading.main_thread().ident and hasattr(signal, "pthread_kill"):
        if getattr(signal.getsignal(signal.SIGALRM), "__module__", "") == __name__:
            signal.pthread_kill(thread_id, signal.SIGALRM)
    else:
        coroutines.interrupt_in(thread_id, error)


def within(seconds: float, work: Callable[[], Result], *, message: str = "") -> Result:
    """Return `work()`; raise RunTimeout after `seconds`, in any thread, with `message` if given."""
    message = message or f"It takes longer than {seconds:g} s."
    if can_use_signals():
        with time_limit(seconds, message=message):
            return work()
    return in_thread(work, seconds=seconds, late=RunTimeout(message))


def in_thread(work: Callable[[], Result], *, seconds: float, late: Exception) -> Result:
    """Return `work()` of another thread; after `seconds` leave it to itself, and raise `late`."""
    # It sees the context variables of this thread, such as its language. Its query is cancelled.
    outcome: Future[Result] = Future()
    context = copy_context()
    used: list[BaseDatabaseWrapper] = []

    def attempt() -> None:
        used.extend(all_connections())
        try:
            outcome.set_result(context.run(work))
        except BaseException as problem:  # noqa: BLE001 - raised again below
            outcome.set_exception(problem)
        finally:
            connections.close_all()

    # An executor would wait for its threads when the process ends.
    threading.Thread(target=attempt, name="autorun-in-thread", daemon=True).start()
    wait([outcome], timeout=seconds)
    if not outcome.done():
        cancel_queries(used)
        raise late
    return outcome.result()


@contextmanager
def calls_limited(
    function: Callable[[Argument], Result], seconds: float, *, message: str
) -> Iterator[Callable[[Argument], Result]]:
    """`function`, with each call ended by a RunTimeout after `seconds`, or a second later.

    One alarm serves the whole block: it costs more than a quick call. Unlimited without signals.
    """
    if not can_use_signals():
        yield function
        return

    began_at: float | None = None
    raised: list[Exception] = []

    def stop(_number: int, _frame: FrameType | None) -> None:
        if began_at is not None and time.monotonic() - began_at >= seconds:
            raised.append(RunTimeout(message))
            coroutines.interrupt(raised[-1])

    def call(argument: Argument) -> Result:
        nonlocal began_at
        raised.clear()
        began_at = time.monotonic()
        try:
            try:
                return function(argument)
            finally:
                began_at = None
        except Exception as error:
            if raised and error not in raised:
                raise raised[-1] from error  # SQLite has replaced it, or a failed cleanup
            raise
        finally:
            began_at = None  # again: the signal may have come in between

    restore = _set_alarm(stop, min(seconds, INSISTENCE), every=min(seconds, INSISTENCE))
    try:
        yield call
    finally:
        restore()


@contextmanager
def blocking_limited() -> Iterator[None]:
    """End coroutines that block their loop in the block beyond their time, a second later."""
    # Only where signals reach the thread; elsewhere the keeper of the lease notices.
    if not can_use_signals():
        yield
        return
    every = INSISTENCE
    restore = _set_alarm(lambda _number, _frame: coroutines.interrupt_overdue(), every, every=every)
    try:
        yield
    finally:
        restore()


@contextmanager
def soft_limit_ignored() -> Iterator[None]:
    """Ignore Celery's soft time limit in the block."""
    # It limits a message of hundreds of runs or a million rows, so that one would fail for what the
    # others took. A message cannot ask for a very long limit: Celery keeps a timer for each.
    from billiard import pool  # in a worker it is there already

    number: Any = pool.SIG_SOFT_TIMEOUT
    is_usable = number is not None and can_use_signals()
    if not (is_usable and signal.getsignal(number) is pool.soft_timeout_sighandler):
        yield
        return
    # Not SIG_IGN, which the programs that a body starts would inherit.
    signal.signal(number, lambda _number, _frame: None)
    try:
        yield
    finally:
        signal.signal(number, pool.soft_timeout_sighandler)


class Interrupted(BaseException):
    """The process was told to stop during a body."""


@dataclass
class Termination:
    """Holds back SIGTERM, the signal a pool sends in its place, and Ctrl-C until a body runs.

    In an `Interruptible` block the signal ends the body with Interrupted. Elsewhere, as while
    results are written, it only sets `was_requested`. At the end of the block it has its usual
    effect: it ends the process, or raises KeyboardInterrupt.
    """

    was_requested: bool = False
    _may_raise: bool = False
    _received: signal.Signals = signal.SIGTERM
    _before: dict[signal.Signals, Any] = field(default_factory=dict)
    _pid: int = field(default_factory=os.getpid)

    def __enter__(self) -> Self:
        if can_use_signals():
            if signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
                # One that arrives when its body has just ended must not end the process.
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, lambda *_: None)
            from billiard.common import TERM_SIGNAL

            # With REMAP_SIGTERM=SIGQUIT, Celery's soft shutdown sends that to the pool.
            for each in {signal.SIGTERM, signal.Signals(TERM_SIGNAL)}:
                self._before[each] = signal.signal(each, self._note)
            # A worker has its own handler, or its pool ignores the signal; a command has Python's.
            handler: Any = signal.getsignal(signal.SIGINT)
            # Or it is that of an outer chunk whose body led to this one.
            is_nested = isinstance(getattr(handler, "__self__", None), Termination)
            if is_nested or handler is signal.default_int_handler:
                self._before[signal.SIGINT] = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)
        if self.was_requested:
            signal.raise_signal(self._received)

    def sleep(self, seconds: float) -> None:
        """Sleep until the signal arrives; it raises Interrupted."""
        with Interruptible(self):
            time.sleep(seconds)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a child that a body forked: it ends, and its parent works on
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if number == signal.SIGINT and self.was_requested and not self._may_raise:
            self._before[signal.SIGINT](number, frame)  # pressed twice: end at once
        self.was_requested = True
        self._received = signal.Signals(number)
        if self._may_raise and not _is_leaving(frame):
            coroutines.interrupt(Interrupted())


@dataclass
class Interruptible:
    """A block that the signal of a `Termination` ends. Every run enters one: no generator."""

    termination: Termination

    def __enter__(self) -> None:
        try:
            self.termination._may_raise = True
            if self.termination.was_requested:
                raise Interrupted
        except Interrupted:
            self.termination._may_raise = False
            raise

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        try:
            if error is not None and self.termination.was_requested:
                raise Interrupted from None  # whatever the body made of it
            if isinstance(error, Interrupted):  # given back, it would run again without end
                raise RuntimeError(
                    "The body raised Interrupted; no signal had asked for it."
                ) from error
        finally:
            self.termination._may_raise = False


#: `signal.signal` without its enumerations, which take longer than the rest of an alarm.
_set_handler: Any = import_module("_signal").signal


def _is_leaving(frame: FrameType | None) -> bool:
    """Whether a signal arrived as a time limit ends: an exception would leave its alarm on."""
    if frame is None or frame.f_globals is not globals():
        return False
    return frame.f_code.co_name in ("__exit__", "restore")


def _set_alarm(
    stop: Callable[[int, FrameType | None], Any], seconds: float, *, every: float
) -> Callable[[], None]:
    """Call `stop` after `seconds`. Return a function that restores the previous alarm."""
    handler = _set_handler(signal.SIGALRM, stop)
    began_at = time.monotonic()
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, every)

    def restore() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _set_handler(signal.SIGALRM, handler)
        if left:
            # An outer alarm: a body may plan rows itself.
            passed = time.monotonic() - began_at
            signal.setitimer(signal.ITIMER_REAL, max(left - passed, 0.001), interval)

    return restore
