"""Process saved rows in a test's own transaction, without a commit and without a worker.

A TestCase never commits, so hooks of `on_commit` would never run in it. Here a transaction counts
as committed when every `atomic()` that was entered within the `with` block has been left.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from celery import current_app
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.dispatch.publishing import Message, MessageQueue, redirected
from autorun.state.logs import get_logger

logger = get_logger(__name__)


class Inbox:
    """Takes messages in place of the broker, and executes them."""

    def __init__(self) -> None:
        self._queue = MessageQueue()

    def take(self, messages: Sequence[Message]) -> None:
        self._queue.add(messages)

    def execute(self, messages: Sequence[Message] = (), *, without: str | None = None) -> None:
        """Execute all messages, and those that they cause, except those for the task `without`."""
        for message in self._queue.taken_with(messages):
            if message.task != without:
                current_app.tasks[message.task](*message.args)


@contextmanager
def committed_at_once(sink: Callable[[Sequence[Message]], object]) -> Iterator[None]:
    """Within a `with` block, give messages to `sink` without waiting for a commit.

    Only autorun's own `on_commit` hooks run.
    """
    with ExitStack() as stack:
        stack.enter_context(redirected(sink))
        for connection in connections.all():
            if connection.in_atomic_block:
                stack.enter_context(_without_commit(connection))
        yield


@contextmanager
def _without_commit(connection: BaseDatabaseWrapper) -> Iterator[None]:
    depth = len(connection.savepoint_ids)
    on_commit, savepoint_commit = connection.on_commit, connection.savepoint_commit

    def begin() -> None:
        """Mark the start of the block in the list of hooks."""

    def settle() -> None:
        while len(connection.savepoint_ids) <= depth and (hooks := _take(connection, begin)):
            for hook in hooks:
                try:
                    hook()
                except Exception:  # as Django does with robust hooks
                    logger.exception("%s failed.", hook)

    def on_commit_at_once(func: Callable[[], object], robust: bool = False) -> None:
        on_commit(func, robust)
        settle()

    def savepoint_commit_at_once(sid: str) -> None:
        savepoint_commit(sid)
        settle()

    mark: Any = (set(connection.savepoint_ids), begin, True)
    connection.run_on_commit.append(mark)
    try:
        with (
            mock.patch.object(connection, "on_commit", on_commit_at_once),
            mock.patch.object(connection, "savepoint_commit", savepoint_commit_at_once),
        ):
            yield
            settle()
    finally:
        hooks = connection.run_on_commit
        connection.run_on_commit = [each for each in hooks if each[1] is not begin]


def _take(connection: BaseDatabaseWrapper, begin: Callable[[], None]) -> list[Any]:
    """Remove autorun's hooks that were registered since `begin`, and return them."""
    hooks = connection.run_on_commit
    places = [place for place, hook in enumerate(hooks) if hook[1] is begin]
    start = places[0] + 1 if places else 0
    ours = [hook for hook in hooks[start:] if _is_ours(hook[1])]
    others = [hook for hook in hooks[start:] if hook not in ours]
    connection.run_on_commit = [*hooks[:start], *others]
    return [hook[1] for hook in ours]


def _is_ours(hook: object) -> bool:
    module = str(getattr(hook, "__module__", ""))
    return module.startswith("autorun.") and module != __name__
