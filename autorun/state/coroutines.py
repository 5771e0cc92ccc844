"""Coroutines of user code, in event loops of their own in the calling thread.

Signals arrive in a worker's main thread, so time limits and SIGTERM end a coroutine like any other
body. Nothing outlives the call: tasks and threads that the coroutine started end with it, and the
database connections of those threads are closed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Self

from asgiref.sync import AsyncToSync, async_to_sync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.state.user_code import cancel_queries, discard

#: Seconds that cancelled tasks have for their cleanup.
PATIENCE = 1.0
#: Seconds between looks at, and cancellations of, coroutines of a body that has ended.
JOIN_EVERY = 0.1

of_thread = threading.local()
#: When the time of a coroutine is over, by the clock of its loop, and the error to raise then.
_due: ContextVar[tuple[float, Exception]] = ContextVar("autorun_due")
#: The calls in progress, by the ids of their threads.
_calls: dict[int, _Call] = {}


def run(function: Callable[..., Any], /, **arguments: Any) -> Any:
    """Call an async function, and return what it returns when it is awaited.

    Code that it hands to `sync_to_async`, as Django's ORM does, runs in another thread. In an open
    transaction, as in a test, it runs in this one, which has the connection.
    """
    coroutine = function(**arguments)
    if not asyncio.iscoroutine(coroutine):
        return coroutine
    if is_in_transaction():
        return async_to_sync(_awaited)(coroutine)
    return _Call().run(coroutine)


def is_in_transaction() -> bool:
    """Whether coroutines have to use this thread's connections, one after the other."""
    return any(each.in_atomic_block for each in connections.all(initialized_only=True))


def interrupt(error: BaseException) -> None:
    """End what this thread executes by raising `error`. For signal handlers.

    A coroutine that waits is cancelled, so that it can clean up. One whose code keeps the event
    loop from running is interrupted in that code.
    """
    call: _Call | None = getattr(of_thread, "call", None)
    if call is None:
        cancel_queries()
        of_thread.left = cancel_waited_for()
        raise error
    call.interrupt(error)
    if asyncio.current_task(call.loop) is not None:
        raise error


def cancel_waited_for() -> list[asyncio.AbstractEventLoop]:
    """Cancel the coroutines for which `async_to_sync` waits in this thread; their loops."""
    me, waited_for = threading.current_thread(), []
    for loop, executor in list(AsyncToSync.loop_thread_executors.items()):
        if getattr(executor, "_work_thread", None) is me:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(_cancel_all, loop)
                waited_for.append(loop)
    return waited_for


def join_left() -> None:
    """Wait for the loops that run on in other threads since `interrupt` has raised an error."""
    # Nothing of a body may be at work beside its next attempt. The keeper of the lease ends a
    # process whose coroutine ignores its cancellation.
    left, of_thread.left = getattr(of_thread, "left", None), None
    while left := [loop for loop in left or () if loop.is_running()]:
        time.sleep(JOIN_EVERY)
        for loop in left:
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(_cancel_all, loop)


def interrupt_in(thread_id: int, error: BaseException) -> None:
    """Cancel the coroutine that another thread executes, if it does, with `error`."""
    if (call := _calls.get(thread_id)) is not None:
        call.interrupt(error)


@contextmanager
def limited(seconds: float, error: Exception) -> Iterator[None]:
    """Cancel a coroutine in the block with `error` after so many seconds, without signals."""
    of_thread.limit = (seconds, error)
    try:
        yield
    finally:
        del of_thread.limit


class _Call:
    """A coroutine with its event loop and its threads."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._error: BaseException | None = None
        self._connections: list[BaseDatabaseWrapper] = []
        # Thread-sensitive code, such as the ORM, has one thread.
        self._threads = [
            ThreadPoolExecutor(most, "autorun-async", initializer=self._share_connections)
            for most in (1, None)
        ]

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if (limit := getattr(of_thread, "limit", None)) is not None:
            self.loop.call_later(limit[0], self.interrupt, limit[1])
        with self:
            return self.advance(coroutine)

    def __enter__(self) -> Self:
        AsyncToSync.loop_thread_executors[self.loop], others = self._threads  # type: ignore[assignment]
        self.loop.set_default_executor(others)
        return self

    def __exit__(self, *_: object) -> None:
        of_thread.call = self
        try:
            self._end()
        finally:
            of_thread.call = None

    def advance(self, awaited: Awaitable[Any]) -> Any:
        """Run the loop until `awaited` is done, and return its result."""
        of_thread.call = _calls[threading.get_ident()] = self
        try:
            return self.loop.run_until_complete(awaited)
        except BaseException:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            of_thread.call = None
            del _calls[threading.get_ident()]

    def interrupt(self, error: BaseException) -> None:
        """Stop the loop, and cancel the queries of its threads. From any thread."""
        self._error = error
        with suppress(RuntimeError):  # the loop is closed, and its threads are waited for
            self.loop.call_soon_threadsafe(self.loop.stop)
        cancel_queries()
        cancel_queries(self._connections)

    def _end(self) -> None:
        """Cancel the tasks that are left, abandon those that do not end, and join the threads."""
        loop = self.loop
        loop.set_exception_handler(lambda _loop, _context: None)
        loop.call_soon(loop.stop)
        loop.run_forever()  # a stop that came too late
        with suppress(RuntimeError):  # interrupted once more
            loop.run_until_complete(_cancel_others())
        for task in asyncio.all_tasks(loop):
            with suppress(BaseException):
                task.get_coro().close()
        # Closed first: a thread that calls `async_to_sync` must not wait for this loop.
        loop.close()
        for threads in self._threads:
            threads.shutdown(cancel_futures=True)
        del AsyncToSync.loop_thread_executors[loop]
        for connection in self._connections:
            discard(connection)

    def _share_connections(self) -> None:
        """In a new thread: let the thread of the call close its connections."""
        for connection in connections.all():
            connection.inc_thread_sharing()
            self._connections.append(connection)


class Together(_Call):
    """Several coroutines at a time in one event loop, which runs only within `step` and `rest`.

    In between, the thread may use the database.
    """

    def __init__(self) -> None:
        super().__init__()
        self._tasks: set[asyncio.Task[Any]] = set()

    def begin(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        return task

    def cancel(self, task: asyncio.Task[Any]) -> None:
        """Cancel one of the coroutines. From any thread."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(task.cancel)

    def step(self) -> Sequence[asyncio.Task[Any]]:
        """Wait until one of the coroutines has ended. Return those that have."""
        waited = asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        done, self._tasks = self.advance(waited)
        return list(done)

    def rest(self, seconds: float) -> None:
        self.advance(asyncio.sleep(seconds))


def interrupt_overdue() -> None:
    """Raise the error of a coroutine that blocks its loop beyond its time. For signal handlers."""
    due = _due.get(None)
    call: _Call | None = getattr(of_thread, "call", None)
    if due is not None and call is not None and call.loop.time() > due[0]:
        cancel_queries()
        raise due[1]


async def within(
    seconds: float | None, error: Exception, function: Callable[..., Any], /, **arguments: Any
) -> Any:
    """Await an async function; cancel it after so many seconds, and raise `error`."""
    limit = asyncio.timeout(seconds)
    if seconds is not None:
        _due.set((asyncio.get_running_loop().time() + seconds, error))
    try:
        async with limit:
            coroutine = function(**arguments)
            return await coroutine if asyncio.iscoroutine(coroutine) else coroutine
    except Exception as raised:
        # A failed cleanup may have replaced it.
        if limit.expired() and raised is not error:
            raise error from raised
        raise


def _cancel_all(loop: asyncio.AbstractEventLoop) -> None:
    for task in asyncio.all_tasks(loop):
        task.cancel()


async def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return await coroutine


async def _cancel_others() -> None:
    """Cancel all other tasks, and wait for their cleanup and that of asynchronous generators."""
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left, timeout=PATIENCE)
    await asyncio.wait({loop.create_task(loop.shutdown_asyncgens())}, timeout=PATIENCE)
