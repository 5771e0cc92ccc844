"""The one place through which user code is called; it checks and mends what that leaves behind.

Bodies, hooks, receivers and notifications may open a transaction, change the session, close the
connection, or be interrupted in the middle of a query. None of that may affect autorun's next
statement or the next body: a connection in another state than before is replaced by a new one, and
the surroundings of the code are put back.

The ordinary case takes no statement. The driver knows the state of a transaction, and a wrapper
around Django's cursors notices the statements of user code that change a session.
"""

from __future__ import annotations

import decimal
import math
import os
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from operator import call
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from autorun.state.logs import get_logger
from autorun.state.session_changes import changes_session, is_opening, watch
from autorun.state.sessions import (
    SESSIONS,
    be_interruptible,
    end_cursors,
    has_rows_left,
    has_temporary,
    prepare,
    put_back_attributes,
)
from autorun.state.surroundings import (
    FILTERS,
    READS_OF_MAIN,
    READS_OF_THREAD,
    kept,
    put_back,
    read,
)
from autorun.state.waits import IS_BOUNDED, bound_statements

logger = get_logger(__name__)

#: Seconds for cancelling a query on the server.
_PATIENCE = 2.0
_ACTIVE = 1  # libpq's state of a transaction with a query
_BOUNDS = {"connect_timeout": _PATIENCE, "read_timeout": _PATIENCE}  # PyMySQL's

#: How a connection is left.
_IN_USE = "in a transaction or broken: what it wrote is undone"
_CHANGED = "with other settings of its session"
_READING = "with a cursor that has rows left"
#: What refers to a connection that is closed, and of which no cursor is left.
_FIELD_AND_ARGUMENT = 2

_pid = os.getpid()
#: The databases of the project, without those that it adds and removes, as for each tenant.
_of_project: dict[str, Any] = {}
#: Connections that a child keeps from being closed.
_of_parent: list[Any] = []
_thread = threading.local()


class UserCode:
    """A `with` block around one or several calls of user code by this thread.

    At the end of the block, and at each `mend()`, all connections are usable again. A connection
    in a transaction of the caller's is left alone. `owner` names the code in log records.
    """

    __slots__ = (
        *("_all", "_attributes", "_before", "_connections", "_context", "_depth", "_known"),
        *("_pid", "_reads", "_touched", "_umask", "has_mended", "owner"),
    )

    def __init__(self, owner: object) -> None:
        self.owner = owner
        self._pid = _pid
        self._depth = sys.getrecursionlimit()
        is_main = is_main_thread()
        #: How the surroundings of the code are read, and what they are when it is first called.
        self._umask: int | None = None
        self._reads: Sequence[Callable[[], Any]] = READS_OF_MAIN if is_main else READS_OF_THREAD
        self._known: list[Any] = []
        self._context = Context()
        self._touched: set[BaseDatabaseWrapper] = set()
        self._before: UserCode | None = None  # a body, for example, that plans rows
        self._all = all_connections()
        #: Those that are not the caller's, with the project's settings of each: in the main thread,
        #: since another one may find settings that the code of a third thread has changed.
        self._connections: list[tuple[BaseDatabaseWrapper, Any]] = []
        #: Their attributes, and those of what is part of them, before the code is called.
        self._attributes: list[list[dict[Any, Any]]] = []
        #: Whether the last block has left anything that was mended.
        self.has_mended = False
        is_first = getattr(_thread, "user_code", None) is None
        for connection in self._all:
            if is_first and connection.vendor != "sqlite":
                _know_again(connection)
            is_reading = connection.vendor == "sqlite" and _left(connection) is _READING
            if connection.in_atomic_block or is_reading:
                continue
            if connection.connection is not None and not connection.autocommit:
                continue
            own: Any = connection.settings_dict
            of_project = {**own, "OPTIONS": {**own["OPTIONS"]}} if is_main else None
            self._connections.append((connection, of_project))
        self.mend()

    def __enter__(self) -> UserCode:
        if not self._known:
            try:
                self._known = list(map(call, self._reads))
            except OSError:  # the working directory is gone, as after a deployment
                self._known = read(self._reads)
            if self._reads is READS_OF_MAIN:
                self._known[FILTERS] = [*self._known[FILTERS]]
                self._umask = os.umask(0o077)  # it cannot be read otherwise
                os.umask(self._umask)
        decimal.getcontext()  # made now, it is part of the copy
        self._context = copy_context()  # autorun changes it between two calls
        self._before, _thread.user_code = getattr(_thread, "user_code", None), self
        self._attributes = []
        self.has_mended = False
        for connection, _ in self._connections:
            operations, features = vars(connection.ops), vars(connection.features)
            self._attributes.append([vars(connection).copy(), operations.copy(), features.copy()])
            connection.execute_wrappers = [*connection.execute_wrappers, self._notice]
        return self

    def __exit__(self, *_: object) -> None:
        if _pid != self._pid:
            os._exit(0)  # this is a forked child, and the connections are its parent's
        # With a lower limit, what follows would raise, dependents or all.
        sys.setrecursionlimit(max(sys.getrecursionlimit(), self._depth))
        try:
            found = list(map(call, self._reads))
        except OSError:
            found = read(self._reads)
        try:
            is_same = found == self._known and copy_context() == self._context
        except Exception:  # noqa: BLE001  values that cannot be compared, such as arrays
            is_same = False
        if not is_same:
            for name in put_back(self._known, self._context, found):
                self._warn("%s left another %s. It is put back.", name)
        _thread.user_code = self._before
        for (connection, _), before in zip(self._connections, self._attributes, strict=True):
            wrappers = before[0]["execute_wrappers"]
            is_as_before = connection.execute_wrappers == [*wrappers, self._notice]
            connection.execute_wrappers = wrappers
            if not is_as_before:  # it may have been opened meanwhile
                bound_statements(connection)
            operations, features = vars(connection.ops), vars(connection.features)
            try:
                is_same = [vars(connection), operations, features] == before
            except Exception:  # noqa: BLE001  they cannot be compared
                is_same = False
            if not is_same and (names := put_back_attributes(connection, before)):
                self._replace(connection, f"with another {', '.join(names)}")
            before.clear()  # it refers to the driver's connection
        self.mend()

    def mend(self) -> None:
        """Replace the connections that are not idle, or whose session was changed."""
        if self._umask is not None and os.umask(self._umask) != self._umask:
            self._warn("%s left another umask. It is put back.")
        is_as_before = len(connections.settings) == len(self._all)
        if not (is_as_before or _of_project.keys() <= connections.settings.keys()):
            connections.settings.update({**_of_project, **connections.settings})
            self._warn("%s has removed databases. They are put back.")
        if not all(map(_is_in_place, self._all)):
            self._put_back()
        for connection, of_project in self._connections:
            if of_project is not None and connection.settings_dict != of_project:
                connection.settings_dict.clear()  # those of other threads' connections, too
                connection.settings_dict.update(of_project, OPTIONS={**of_project["OPTIONS"]})
                self._replace(connection, "with other settings")
            elif left := _left(connection):
                self._replace(connection, left)
            elif connection in self._touched:
                self._replace(connection, _CHANGED)
            elif connection.errors_occurred:
                self.has_mended = True
                replace(connection)

    def _put_back(self) -> None:
        """Put the connections back in their places, and close those found there instead."""
        for connection in self._all:
            if not _is_in_place(connection):
                discard(connections[connection.alias])
                connections[connection.alias] = connection
                message = "%s left another connection in the place of %r. It is put back."
                self._warn(message, connection.alias)

    def _replace(self, connection: BaseDatabaseWrapper, left: str) -> None:
        self._touched.discard(connection)
        replace(connection)
        self._warn("%s left the connection %r %s. It is replaced.", connection.alias, left)

    def _warn(self, message: str, *args: object) -> None:
        self.has_mended = True
        logger.warning(message, self.owner, *args)

    def _notice(
        self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any
    ) -> Any:
        if IS_BOUNDED in context:  # autorun's own, as of a body that calls run()
            return execute(sql, params, many, context)
        connection: BaseDatabaseWrapper = context["connection"]
        if changes_session(sql, connection.vendor) and not is_opening():
            self._touched.add(connection)
        return execute(sql, params, many, context)


def _is_in_place(connection: BaseDatabaseWrapper) -> bool:
    of_alias = connections.settings.get(connection.alias)
    if of_alias is not connection.settings_dict:
        return True  # a project makes and removes it, as for each of its tenants
    return connections[connection.alias] is connection


def _is_called() -> bool:
    """Whether this thread calls user code at the moment."""
    return getattr(_thread, "user_code", None) is not None


def _note_changed(raw: Any) -> None:
    _thread.user_code._touched.update(each for each in all_connections() if each.connection is raw)


def replace(connection: BaseDatabaseWrapper) -> None:
    """Close the connection, so that the next statement opens a new one. Never raises."""
    raw: Any = connection.connection
    if (
        raw is not None and connection.vendor == "sqlite" and connection.is_in_memory_db()  # type: ignore[attr-defined]
    ):
        _reset(connection)
        with suppress(Exception):
            raw.rollback()
        return
    discard(connection)


def discard(connection: BaseDatabaseWrapper) -> None:
    """Close the connection in whatever state it is. Never raises."""
    raw: Any = connection.connection
    _reset(connection)
    if raw is None:
        return
    _cancel_query(raw)
    with suppress(Exception):
        raw.close()  # a pool would hand it to others as it is
    with suppress(Exception):
        connection.close()
    connection.connection = None


def _reset(connection: BaseDatabaseWrapper) -> None:
    raw: Any = connection.connection
    if connection.vendor == "sqlite" and raw is not None and has_rows_left(raw):
        end_cursors(raw)
    connection.in_atomic_block = connection.closed_in_transaction = False
    connection.needs_rollback = connection.errors_occurred = False
    connection.run_on_commit, connection.savepoint_ids, connection.atomic_blocks = [], [], []


def replace_left() -> None:
    """Replace the connections that another task of this process has left in a transaction."""
    for connection in all_connections():
        if _left(connection):
            logger.warning("A task left the connection %r in use.", connection.alias)
            replace(connection)


def _leave_to_parent() -> None:
    """In a child that user code has forked: have it open connections of its own.

    It would read the answers to its parent's queries, and end its parent's session.
    """
    global _pid  # noqa: PLW0603  asking for it takes a system call
    _pid = os.getpid()
    if _is_called():
        for connection in all_connections():
            if connection.vendor != "sqlite" or not connection.is_in_memory_db():  # type: ignore[attr-defined]
                _of_parent.append(connection.connection)
                connection.connection = None
                _reset(connection)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def cancel_queries(of: Sequence[BaseDatabaseWrapper] | None = None) -> None:
    """Cancel the queries that this thread waits for, before an exception ends the wait.

    Otherwise the server would continue with the query, and keep its locks. `of` are the connections
    of threads that this one waits for.
    """
    if getattr(_thread, "is_cancelling", False):
        return  # the next signal has interrupted its handler, which waits for a server in here
    try:
        _thread.is_cancelling = True
        for connection in all_connections() if of is None else of:
            raw: Any = connection.connection
            _cancel_query(raw)
            if of is not None and connection.vendor == "sqlite":
                with suppress(Exception):  # its thread may be closing it
                    raw.interrupt()
            if hasattr(raw, "server_thread_id"):  # PyMySQL; an idle connection is not affected
                with suppress(Exception), closing(connection.copy()) as other:
                    other.settings_dict["OPTIONS"] |= _BOUNDS
                    with other.cursor() as cursor:
                        cursor.execute(f"KILL QUERY {raw.thread_id():d}")
    finally:
        _thread.is_cancelling = False


def _cancel_query(raw: Any) -> None:
    pgconn = getattr(raw, "pgconn", None)
    if pgconn is not None and pgconn.transaction_status == _ACTIVE:
        with suppress(Exception):
            raw.cancel_safe(timeout=_PATIENCE)


def is_main_thread() -> bool:
    # Not current_thread(), which makes an object for a thread that it does not know.
    return threading.get_ident() == threading.main_thread().ident


def all_connections() -> list[BaseDatabaseWrapper]:
    """This thread's connections, kept: asking Django for them takes longer than checking them."""
    known: list[BaseDatabaseWrapper] = getattr(_thread, "connections", [])
    if not known or known[0] is not connections[known[0].alias]:
        known = _thread.connections = list(connections.all())
    return known


@dataclass(slots=True)
class _Known:
    """A connection as it was when it was opened."""

    raw: Any
    session: object
    references: float = math.inf
    has_temporary: bool = False


def _left(connection: BaseDatabaseWrapper) -> str:
    """How the connection is left; empty if it is closed, or idle in autocommit as it was before."""
    raw: Any = connection.connection
    is_sqlite = connection.vendor == "sqlite"
    if (
        connection.in_atomic_block
        or connection.needs_rollback
        or connection.closed_in_transaction
        # Django would not commit the next transaction, or would call these functions after it.
        or connection.atomic_blocks
        or connection.savepoint_ids
        or connection.run_on_commit
    ):
        return _IN_USE
    known: _Known | None = connection.__dict__.get("_autorun_session")
    if known is not None and known.raw is not raw:
        _forget(connection, known)
        known = None
    if raw is None:
        return ""
    try:
        session = SESSIONS[connection.vendor](raw)
    except Exception:  # noqa: BLE001  it was closed behind Django's back
        session = None
    if known is None:
        known = _note(connection, session)
        known.references = sys.getrefcount(raw)
        session = session if is_sqlite else known.session
    if session is None or session != known.session or not connection.autocommit:
        return _IN_USE
    if not is_sqlite:
        return ""
    be_interruptible(raw)
    # Each cursor refers to its connection.
    if sys.getrefcount(raw) > known.references and has_rows_left(raw):
        return _READING
    return _CHANGED if not known.has_temporary and _has_made_temporary(known) else ""


def _note(connection: BaseDatabaseWrapper, session: Any) -> _Known:
    raw: Any = connection.connection
    prepare(raw)
    watch(raw, is_of_users=_is_called, note=_note_changed)
    if connection.vendor == "sqlite":
        session = session and (False, *session[1:])
    elif session is not None:
        session = kept(SESSIONS[connection.vendor](raw))
    known = connection.__dict__["_autorun_session"] = _Known(raw, session)
    known.has_temporary = connection.vendor == "sqlite" and has_temporary(raw) is not None
    return known


def _know_again(connection: BaseDatabaseWrapper) -> None:
    """Take the present session for the project's choice: no user code is being called.

    Outside of workers, other receivers may set it up after `_note_opened`.
    """
    known: _Known | None = connection.__dict__.get("_autorun_session")
    if known is not None and known.raw is connection.connection:
        with suppress(Exception):  # it was closed
            if session := SESSIONS[connection.vendor](known.raw):
                known.session = kept(session)


def _forget(connection: BaseDatabaseWrapper, known: _Known) -> None:
    del connection.__dict__["_autorun_session"]
    if connection.vendor == "sqlite" and sys.getrefcount(known.raw) > _FIELD_AND_ARGUMENT:
        end_cursors(known.raw)


def _has_made_temporary(known: _Known) -> bool:
    found = has_temporary(known.raw)
    known.has_temporary = found is not None
    return bool(found)


def connect() -> None:
    """Know of each new connection what it is like before user code uses it.

    A worker calls this again: what the receivers of a project do comes before.
    """
    _of_project.update(connections.settings)
    connection_created.disconnect(dispatch_uid=__name__)
    connection_created.connect(_note_opened, dispatch_uid=__name__)


def _note_opened(connection: BaseDatabaseWrapper, **_: Any) -> None:
    _left(connection)
    if _is_called() and connection.vendor == "sqlite":
        be_interruptible(connection.connection)
