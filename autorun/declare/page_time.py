"""The time that a request has for the code of a project, and for queries that this code shapes.

Each page and each action has one budget of SECONDS for all of it: once that is spent, queries are
cancelled on the server, and Python code is interrupted. In a thread that signals do not reach,
hooks of runners run in another thread, which is left to itself; code of a ModelAdmin stays in the
request's own thread, as it may read what a middleware keeps there, so only its queries end.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, TypeVar

from autorun.declare.interruption import INSISTENCE, time_limit, within
from autorun.exceptions import RunTimeout
from autorun.state.user_code import UserCode, all_connections, cancel_queries

Result = TypeVar("Result")

#: Seconds of a page, and of a hook that upkeep and workers call for all runners.
SECONDS = 5.0
#: Seconds for which a hook that took longer is not called again.
HUNG_FOR = 60.0
#: Seconds that a cancelled query has to end before the code that waits for it is interrupted.
GRACE = 0.5

#: By the name or function of code that took too long, when it may be called again.
_hung_until: dict[Any, float] = {}


@dataclass
class _Budget:
    """`left` counts down while the page calls code of the project; `slow` is what has taken it."""

    left: float
    ends_at: float | None = None
    slow: str = ""


#: The time of the page that this code serves.
current: ContextVar[_Budget | None] = ContextVar("autorun_page_time", default=None)


@contextmanager
def budget() -> Iterator[None]:
    """Give the blocks of `spent()` within this one SECONDS together, not each."""
    token = current.set(_Budget(SECONDS))
    try:
        yield
    finally:
        current.reset(token)


@contextmanager
def leaving(seconds: float) -> Iterator[None]:
    """Let the blocks within end that many seconds before the page's time is spent."""
    found = current.get() or _Budget(SECONDS)
    found.left -= seconds
    try:
        yield
    finally:
        found.left += seconds


@contextmanager
def spent(what: str) -> Iterator[None]:
    """Raise RunTimeout in the block, which names `what` is slow, once the page's time is spent."""
    found = current.get()
    if found is not None and found.ends_at is not None:  # within another block
        yield
        return
    found = found or _Budget(SECONDS)
    if found.left <= 0:
        raise RunTimeout(f"{what} was not tried: {_late(found.slow or 'Other code')}")
    found.ends_at = time.monotonic() + found.left
    token = current.set(found)
    try:
        late = _late(what)
        limit = time_limit(found.left + GRACE, message=str(late))
        with UserCode(what), _queries_limited(found.left, late), limit:
            yield
    finally:
        found.left, found.ends_at = found.ends_at - time.monotonic(), None
        current.reset(token)


def seconds_left() -> float | None:
    """The seconds until this page's time is spent; None unless a page calls code of a project."""
    found = current.get()
    if found is None or found.ends_at is None:
        return None
    return found.ends_at - time.monotonic()


def is_over() -> bool:
    left = seconds_left()
    return left is not None and left <= 0


def limited(
    what: str, work: Callable[[], Result], *, code: object = None, seconds: float | None = None
) -> Result:
    """Return `work()`, code that is known as `what`; raise RunTimeout once the time is spent.

    Without a page's time or `seconds`, it may take any. `code`, or `what`, is not called again for
    HUNG_FOR after it has taken all of SECONDS. Without `code`, it may call hooks and queries, which
    are to end first, so that the error names them.
    """
    page = current.get()
    if page is not None and page.ends_at is None:  # a hook that a page calls by itself
        with spent(what):
            return limited(what, work, code=code, seconds=seconds)
    left = seconds_left()
    most = seconds if left is None else left
    if most is None:
        return work()
    late, identity = _late(what), code or what
    if most <= 0 or time.monotonic() < _hung_until.get(identity, 0.0):
        raise late
    try:
        found = within(most if code else most + GRACE / 2, work, message=str(late))
        if is_over():  # the code has caught what was to end it
            raise late
    except RunTimeout:
        if page is not None:  # of hooks that call one another, the innermost
            page.slow = page.slow or what
        if most > SECONDS / 2:
            _hung_until[identity] = time.monotonic() + HUNG_FOR
        raise
    return found


def _late(what: str) -> RunTimeout:
    return RunTimeout(f"{what} takes longer than {SECONDS:g} s. Make it faster.")


@contextmanager
def _queries_limited(seconds: float, late: RunTimeout) -> Iterator[None]:
    """Cancel the queries that this thread waits for after `seconds`, and raise `late` then."""
    # The statement fails as any other does, so its connection stays usable.
    mine = all_connections()
    is_done, lock = threading.Event(), threading.Lock()
    is_late = False

    def watch() -> None:
        nonlocal is_late
        pause = seconds
        while not is_done.wait(pause):
            pause = INSISTENCE
            with lock:  # so that nothing is cancelled after the block
                if not is_done.is_set():
                    is_late = True
                    cancel_queries(mine)

    threading.Thread(target=watch, name="autorun-page-time", daemon=True).start()
    try:
        yield
    except Exception as error:
        if is_late and not isinstance(error, RunTimeout):
            raise late from error
        raise
    finally:
        with lock:
            is_done.set()
