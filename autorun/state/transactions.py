"""Autorun's database: its rows, and short transactions that are repeated after a conflict."""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Manager, Model, QuerySet

from autorun.conf import settings
from autorun.state.logs import get_logger
from autorun.state.waits import bounded_idleness, sent_with_lock

logger = get_logger(__name__)

Result = TypeVar("Result")
Item = TypeVar("Item")
TableRow = TypeVar("TableRow", bound=Model)

ATTEMPTS = 6
FIRST_PAUSE = 0.05  # seconds; doubled each time
LONGEST_PAUSE = 2.0
#: While the database cannot be reached.
TRIES_WHILE_AWAY = 4
PAUSE_WHILE_AWAY = 0.3  # seconds; doubled each time

# A wait for a lock has reached its limit, on PostgreSQL and on MariaDB.
_WAITED_STATE, _WAITED_NUMBER = "55P03", 1205
# So has one; deadlock and serialisation failure on PostgreSQL; deadlock and changed row on MariaDB.
_CONFLICT_STATES = {"40P01", "40001", _WAITED_STATE}
_CONFLICT_NUMBERS = {_WAITED_NUMBER, 1213, 1020}
# PostgreSQL: connection exception, rolled back, out of resources, lock not available, shut down,
# system error.
_PASSING_CLASSES = {"08", "40", "53", "55", "57", "58"}
# One of them: a cancelled statement. It usually took longer than statement_timeout, and will again.
_NOT_PASSING_STATE = "57014"
# MariaDB: disk full, too many connections, shut down, too many connections of a user, killed;
# cannot connect, gone away, lost.
_PASSING_NUMBERS = {1021, 1040, 1053, 1203, 1927, 2002, 2003, 2006, 2013}
_PASSING_WORDS = ("unable to open database file", "disk I/O error", "disk is full")  # SQLite
#: Seconds before another try at what fails for all items.
PAUSE_FOR_ALL = 30.0


class StateManager(Manager[TableRow]):
    """Rows of autorun's own tables, in the database that `AUTORUN["DATABASE"]` names.

    Also each model's base manager: `refresh_from_db()`, a deferred column or a foreign key would
    else ask the project's routers, which may name a replica that lags behind.
    """

    def get_queryset(self) -> QuerySet[TableRow]:
        return super().get_queryset().using(self._db or settings.DATABASE)


def repeated_on_conflict(
    work: Callable[[], Result],
    *,
    is_idempotent: bool = False,
    on_conflict: Callable[[], object] = lambda: None,
    holds_node: bool = False,
) -> Result:
    """`work()` in a transaction of its own, repeated after a conflict with another transaction.

    Work that `is_idempotent` is also repeated on a new connection if the old one broke, for at
    least a lease: whether the server had committed is unknown then. What is refused is tried once
    more. Work that `holds_node` takes a lock that many need: a frozen process does not keep it, and
    a wait that has reached its limit is not repeated. In a transaction of the caller's, whose
    statements cannot be repeated, it runs once. `on_conflict` is called before each repetition.
    """
    connection = connections[settings.DATABASE]
    if connection.in_atomic_block:
        with transaction.atomic(using=settings.DATABASE):
            return work()
    began = time.monotonic()
    for attempt in count(1):
        used = None
        try:
            with transaction.atomic(using=settings.DATABASE):
                used = connection.connection
                with bounded_idleness(connection, from_lock=True) if holds_node else nullcontext():
                    return work()
        except (DatabaseError, InterfaceError) as error:
            is_over = attempt >= ATTEMPTS or (holds_node and has_waited(error))
            is_broken = is_idempotent and _is_broken(connection, used, error)
            is_refused = attempt == 1 and _is_refused(error)
            if is_broken or is_refused:
                connection.close()
                is_over = is_over and time.monotonic() - began >= settings.LEASE
            if is_over or not (is_broken or is_refused or is_conflict(error)):
                raise
            logger.debug("A transaction is repeated after attempt %d: %s", attempt, error)
            on_conflict()
            _pause(FIRST_PAUSE * (8 if is_broken else 1), attempt)  # a server starts slowly
    raise AssertionError("unreachable")


def repeated_while_away(work: Callable[[], Result]) -> Result:
    """`work()`, repeated on new connections for seconds while the database cannot be reached.

    The work must be idempotent. Inside a transaction of the caller's it runs once.
    """
    if not connections[settings.DATABASE].in_atomic_block:
        for attempt in range(1, TRIES_WHILE_AWAY):
            try:
                return work()
            except (OperationalError, InterfaceError) as error:
                logger.debug("Tried again after attempt %d: %s", attempt, error)
            leave_connections()
            _pause(PAUSE_WHILE_AWAY, attempt)
    return work()


def _pause(first: float, attempt: int) -> None:
    pause = min(first * 2 ** min(attempt - 1, 6), LONGEST_PAUSE)
    time.sleep(pause * random.uniform(0.5, 1.5))


def once_committed(work: Callable[[], Result], *, meanwhile: Callable[[], Result]) -> Result:
    """`work()`; in a transaction of the caller's `meanwhile()`, and `work()` once it commits.

    So no other process waits for the caller's. A TestCase's transaction, which never commits, does
    not count.
    """
    connection = connections[settings.DATABASE]
    blocks: list[Any] = connection.atomic_blocks
    if all(block._from_testcase for block in blocks):
        return work()

    def work_on_commit() -> None:
        work()

    connection.on_commit(work_on_commit, robust=True)
    return meanwhile()


def unflushed(connection: BaseDatabaseWrapper) -> AbstractContextManager[None]:
    """Have PostgreSQL commit the block's transaction without waiting for the disk.

    If the server crashes within a second, it has forgotten the commit, as a replica may after a
    failover. So this is for work that is handed out, and not for what is recorded. A transaction of
    the caller's is left alone.
    """
    if connection.vendor != "postgresql" or connection.in_atomic_block:
        return nullcontext()
    return sent_with_lock(connection, "SET LOCAL synchronous_commit = off; ")


def unlocked(rows: QuerySet[TableRow]) -> QuerySet[TableRow]:
    """Lock those of the rows that no other transaction locks; all, if none can be skipped."""
    features = connections[settings.DATABASE].features
    return rows.select_for_update(skip_locked=features.has_select_for_update_skip_locked)


def update_once_committed(rows: QuerySet[Any], **columns: Any) -> bool:
    """Update the rows `once_committed`. Return whether there are any."""
    return once_committed(lambda: bool(rows.update(**columns)), meanwhile=rows.exists)


def sum_of_each(work: Callable[[Item], int], items: Iterable[Item], *, name: str) -> int:
    """The sum of `work` over items that do not depend on each other.

    What is raised for one of them, as for one that is locked, is logged, and stops no other. Raises
    if the database is away, for all.
    """
    total = 0
    for item in list(items):
        try:
            total += work(item)
        except Exception as error:
            if is_conflict(error):
                logger.warning("%s %s is in use; the next round tries again: %s", name, item, error)
            elif is_passing(error):
                raise
            else:
                logger.exception("%s %s failed; the next round tries again.", name, item)
    return total


@dataclass
class Halving(Generic[Item]):
    """Yields all `items` at once, and then halves of those whose work adds to `errors`.

    for some in (halving := Halving(items, fail=fail, probe=probe, using=using)):
        try:
            work(some)
        except Exception as error:
            halving.errors.append(error)

    `fail` is called with an item that fails alone, and its error. `probe` does the work for no
    items at all: what it raises on a new connection, too, hits every item, is no item's fault, and
    is raised by the loop. So is the error of a database that is away.
    """

    items: Sequence[Item]
    fail: Callable[[Item, Exception], object]
    probe: Callable[[], object]
    using: str
    errors: list[Exception] = field(default_factory=list)

    def __iter__(self) -> Iterator[Sequence[Item]]:
        parts = [self.items]
        is_probed = False
        while parts:
            some = parts.pop()
            # In a transaction of the caller's, the error of one part must not break the next one.
            is_inside = len(self.items) > 1 and connections[self.using].in_atomic_block
            with transaction.atomic(using=self.using) if is_inside else nullcontext():
                yield some
                if is_inside and self.errors:
                    transaction.set_rollback(True, using=self.using)
            if not self.errors:
                continue
            error = self.errors.pop()
            if is_passing(error):
                raise error
            if not is_probed:
                is_probed = True
                if self._is_of_connection():
                    parts.append(some)
                    continue
            if len(some) == 1:
                self.fail(some[0], error)
            else:
                middle = len(some) // 2
                parts += [some[middle:], some[:middle]]

    def _is_of_connection(self) -> bool:
        """Whether the probe is refused on this connection, and succeeds on a new one.

        Code of the project may have changed the connection unnoticed. Raises what hits every item.
        """
        try:
            self.probe()
        except Exception as error:
            if is_passing(error) or connections[self.using].in_atomic_block:
                raise
            leave_connections()
            self.probe()
            return True
        return False


def leave_connections() -> None:
    """Close this thread's connections after an error, so that it opens new ones."""
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:  # then it is the caller's
            connection.close()


def has_left_connections(error: Exception) -> bool:
    """Whether a statement was refused that may be repeated: then `leave_connections` first."""
    is_refused = isinstance(error, DatabaseError) and _is_refused(error)
    if not is_refused or connections[settings.DATABASE].in_atomic_block:
        return False
    leave_connections()
    return True


def _is_broken(connection: BaseDatabaseWrapper, used: object, error: Exception) -> bool:
    """Whether `used`, the transaction's connection to the server, is gone."""
    if not isinstance(error, (OperationalError, InterfaceError)):
        return False
    # Leaving atomic() may have opened another one already.
    now: object = connection.connection
    return now is None or now is not used or not connection.is_usable()


def _is_refused(error: Exception) -> bool:
    """Whether a statement failed for neither its data nor the moment."""
    # Code of the project may have changed the session unnoticed, as in a stored function.
    return not (isinstance(error, (DataError, IntegrityError)) or is_passing(error))


def is_passing(error: Exception) -> bool:
    """Whether the database was unreachable or busy, so that a later attempt may succeed."""
    if isinstance(error, InterfaceError):
        return True
    if not isinstance(error, OperationalError):
        return False
    if hasattr(error.__cause__, "sqlstate") or hasattr(error.__cause__, "pgcode"):
        state = sqlstate(error)  # None if the server did not answer
        return state is None or (state[:2] in _PASSING_CLASSES and state != _NOT_PASSING_STATE)
    if error.args and error.args[0] in _PASSING_NUMBERS:
        return True
    return is_conflict(error) or any(words in str(error) for words in _PASSING_WORDS)


def is_conflict(error: Exception) -> bool:
    """Whether the same transaction may succeed if it is repeated."""
    if isinstance(error, IntegrityError):
        return True
    if not isinstance(error, OperationalError):
        return False
    if sqlstate(error) in _CONFLICT_STATES:
        return True
    if error.args and error.args[0] in _CONFLICT_NUMBERS:
        return True
    return "database is locked" in str(error) or "database table is locked" in str(error)


def sqlstate(error: Exception) -> str | None:
    """The SQLSTATE of an error of PostgreSQL; None if it has none."""
    cause = error.__cause__
    # psycopg2 calls it pgcode.
    return getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)


def has_waited(error: Exception) -> bool:
    """Whether a statement has waited for a lock up to its limit."""
    return sqlstate(error) == _WAITED_STATE or error.args[:1] == (_WAITED_NUMBER,)
