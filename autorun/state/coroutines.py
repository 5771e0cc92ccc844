"""Coroutines of user code, each in an event loop of its own in the calling thread.

Signals arrive in a worker's main thread, so time limits and SIGTERM end a coroutine like any other
body. Nothing outlives the call: tasks and threads that the coroutine started end with it, and the
database connections of those threads are closed.
"""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from asgiref.sync import AsyncToSync, async_to_sync
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.state.user_code import cancel_queries, discard

#: Seconds that cancelled tasks have for their cleanup.
PATIENCE = 1.0

_thread = threading.local()


def run(function: Callable[..., Any], /, **arguments: Any) -> Any:
    """Call an async function, and return what it returns when it is awaited.

    Code that it hands to `sync_to_async`, as Django's ORM does, runs in another thread. In an open
    transaction, as in a test, it runs in this one, which has the connection.
    """
    coroutine = function(**arguments)
    if not asyncio.iscoroutine(coroutine):
        return coroutine
    if any(each.in_atomic_block for each in connections.all(initialized_only=True)):
        return async_to_sync(_awaited)(coroutine)
    return _Call().run(coroutine)


def interrupt(error: BaseException) -> None:
    """End what this thread executes by raising `error`. For signal handlers.

    A coroutine that waits is cancelled, so that it can clean up. One whose code keeps the event
    loop from running is interrupted in that code.
    """
    call: _Call | None = getattr(_thread, "call", None)
    if call is None:
        cancel_queries()
        raise error
    call.interrupt(error)
    if asyncio.current_task(call.loop) is not None:
        raise error


@contextmanager
def limited(seconds: float, error: Exception) -> Iterator[None]:
    """Cancel a coroutine in the block with `error` after so many seconds, without signals."""
    _thread.limit = (seconds, error)
    try:
        yield
    finally:
        del _thread.limit


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
        loop = self.loop
        AsyncToSync.loop_thread_executors[loop], others = self._threads  # type: ignore[assignment]
        loop.set_default_executor(others)
        if (limit := getattr(_thread, "limit", None)) is not None:
            loop.call_later(limit[0], self.interrupt, limit[1])
        _thread.call = self
        try:
            return loop.run_until_complete(coroutine)
        except BaseException:
            if self._error is not None:
                raise self._error from None
            raise
        finally:
            self._end()
            _thread.call = None

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
