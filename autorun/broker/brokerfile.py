"""The file of the embedded broker: messages, leases, queues and bindings."""

import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from autorun.broker import sharedfile
from autorun.broker.sharedfile import SharedFile, with_reserve
from autorun.state.logs import get_logger

logger = get_logger("autorun.broker.brokerfile")

SPARE_PAGES = 256  # free pages kept for reuse
VACUUM_PAGES = 4096  # most pages returned to the disk by one heartbeat
MAX_DEAD_LETTERS = 1000  # older ones are deleted

READY = "queue = :queue AND owner IS NULL AND (expires_at IS NULL OR expires_at > :now)"
NEXT = f"SELECT id FROM message WHERE {READY} ORDER BY priority DESC, id LIMIT 1"
LEASE = (
    f"UPDATE message SET owner = :owner, deliveries = deliveries + 1 WHERE id = ({NEXT})"
    # As bytes: SQLite's text need not be UTF-8.
    " RETURNING id, deliveries, CAST(payload AS BLOB)"
)
COUNT = f"SELECT count(*) FROM message WHERE {READY}"
# No index begins with the owner, and the table may be long: scan the smaller index.
RELEASE_ALL = """
    UPDATE message SET owner = NULL
    WHERE id IN (SELECT id FROM message INDEXED BY message_order WHERE owner = ?)
"""
PUT = """
    INSERT INTO message (queue, priority, payload, expires_at)
    SELECT :queue, :priority, :payload, :now + (
        SELECT min(ttl) FROM (
            SELECT :ttl AS ttl UNION ALL SELECT message_ttl FROM queue WHERE name = :queue
        )
    )
"""
BURY = """
    INSERT INTO dead_letter (queue, died_at, payload)
    SELECT queue, :now, payload FROM message WHERE id = :id AND owner = :owner
"""
DECLARE = """
    INSERT INTO queue (name, message_ttl, idle_limit, expires_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET
        message_ttl = excluded.message_ttl,
        idle_limit = excluded.idle_limit,
        expires_at = coalesce(excluded.expires_at, expires_at)
"""


class LeaseLapsed(sqlite3.OperationalError):
    """A consumer was silent for longer than its lease, or its file was replaced."""


class MessageTooLarge(ValueError):
    """A message is larger than `max_message_bytes`."""


class LeasedMessage(NamedTuple):
    """A message leased to this connection until it is settled or released, or the lease lapses."""

    id: int
    deliveries: int  # with this one
    payload: bytes


class BrokerFile(SharedFile):
    """One connection to the broker: its leases, the queues it consumes, its heartbeat."""

    application_id = 0x6175746F  # "auto"
    layout_version = 1
    layout = {
        # A consuming connection; its heartbeat moves expires_at.
        "owner": """
        CREATE TABLE owner (id INTEGER PRIMARY KEY AUTOINCREMENT, expires_at REAL NOT NULL)
        """,
        # A queue with an idle_limit is dropped after that many seconds without a consumer.
        "queue": """
        CREATE TABLE queue (
            name TEXT PRIMARY KEY, message_ttl REAL, idle_limit REAL, expires_at REAL
        ) WITHOUT ROWID
        """,
        "binding": """
        CREATE TABLE binding (
            exchange TEXT, routing_key TEXT, pattern TEXT NOT NULL, queue TEXT,
            PRIMARY KEY (exchange, routing_key, queue)
        ) WITHOUT ROWID
        """,
        # AUTOINCREMENT: no id is used twice, so a late acknowledgement finds no newer message.
        "message": """
        CREATE TABLE message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL,
            priority INTEGER NOT NULL, expires_at REAL, owner INTEGER,
            deliveries INTEGER NOT NULL DEFAULT 0, payload TEXT NOT NULL
        )
        """,
        "message_order": """
        CREATE INDEX message_order ON message (queue, owner, priority DESC, id, expires_at)
        """,
        "message_expiry": """
        CREATE INDEX message_expiry ON message (expires_at) WHERE expires_at IS NOT NULL
        """,
        # Messages that no consumer can read.
        "dead_letter": """
        CREATE TABLE dead_letter (
            id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, died_at REAL NOT NULL,
            payload TEXT NOT NULL
        )
        """,
    }

    def __init__(
        self,
        path: Path,
        *,
        lease: float = 30,
        busy_timeout: float = 10,
        max_message_bytes: float = 16 * 1024 * 1024,
    ) -> None:
        super().__init__(path, busy_timeout=busy_timeout)
        self.lease_seconds = lease
        self.max_message_bytes = max_message_bytes
        self.owner: int | None = None
        self.consumed: set[str] = set()
        self._found: set[str] = set()  # the consumed queues that were declared at the last check
        self.settled = threading.Event()  # a consumer may have room for another message
        self._lapsed = False
        self._stopped = threading.Event()
        self._beaten_at = self._judges_from = 0.0

    def __del__(self) -> None:
        # Write nothing: the garbage collector may run in the middle of a transaction.
        if hasattr(self, "_stopped"):
            self._stopped.set()
        super().__del__()

    @with_reserve
    def open(self) -> None:
        super().open()

    def close(self) -> None:
        """Release the messages leased here, and close the file."""
        self._stopped.set()
        with self._lock:
            owner, self.owner, self._lapsed = self.owner, None, False
            try:
                if owner is not None:
                    with self.writing() as handle:
                        handle.execute(RELEASE_ALL, (owner,))
                        handle.execute("DELETE FROM owner WHERE id = ?", (owner,))
            finally:
                self._disconnect()

    # Messages

    def put(
        self,
        queue: str,
        payload: str,
        *,
        priority: int,
        ttl: float | None,
        is_transient: bool = False,
    ) -> None:
        """Append the message to a queue; raises `MessageTooLarge` and `DiskFull`."""
        # A full disk refuses no transient message: workers answer a ping with one.
        self._check_size(payload, f"queue {queue!r}")
        if not is_transient:
            sharedfile.check_room(self.path)
        self._append(queue, payload=payload, priority=priority, ttl=ttl)

    @with_reserve
    def _append(self, queue: str, **terms: Any) -> None:
        with self.writing() as handle:
            _put(handle, [queue], **terms)

    @with_reserve
    def put_fanout(self, exchange: str, payload: str, *, priority: int, ttl: float | None) -> None:
        """Append the message to every queue bound to the exchange."""
        # A full disk does not refuse it: without events and control messages no worker can run.
        self._check_size(payload, f"exchange {exchange!r}")
        with self.writing() as handle:
            bound = handle.execute(
                "SELECT DISTINCT queue FROM binding WHERE exchange = ?", (exchange,)
            )
            queues = [queue for (queue,) in bound.fetchall()]
            _put(handle, queues, payload=payload, priority=priority, ttl=ttl)

    @with_reserve
    def lease(self, queue: str) -> LeasedMessage | None:
        """Lease the next message of the queue: highest priority first, oldest first."""
        parameters: dict[str, Any] = {"queue": queue, "now": time.time()}
        # An idle consumer only reads, so it neither waits for the write lock nor delays others.
        if not self.rows(NEXT, parameters):
            return None
        with self.writing() as handle:
            rows = handle.execute(LEASE, parameters | {"owner": self._owned(handle)}).fetchall()
        return LeasedMessage(*rows[0]) if rows else None

    def settle(self, message: int) -> None:
        """Delete a message if it is still leased here."""
        self._change_leased(message, "DELETE FROM message WHERE id = :id AND owner = :owner")

    def release(self, message: int) -> None:
        """Return a message to its old place in its queue if it is still leased here."""
        self._change_leased(
            message, "UPDATE message SET owner = NULL WHERE id = :id AND owner = :owner"
        )

    def bury(self, message: int) -> bool:
        """Move an unreadable message to the dead letters; return whether it was leased here."""
        return self._change_leased(
            message,
            BURY,
            "DELETE FROM message WHERE id = :id AND owner = :owner",
            f"DELETE FROM dead_letter WHERE id <= (SELECT max(id) FROM dead_letter)"
            f" - {MAX_DEAD_LETTERS}",
        )

    def size(self, queue: str) -> int:
        """Count the messages that wait in the queue."""
        return int(self.rows(COUNT, {"queue": queue, "now": time.time()})[0][0])

    @with_reserve
    def purge(self, queue: str) -> int:
        """Delete the messages that wait in the queue; return their number."""
        return self.write("DELETE FROM message WHERE queue = ? AND owner IS NULL", queue).rowcount

    # Queues and bindings

    @with_reserve
    def declare(
        self, queue: str, *, message_ttl: float | None, idle_limit: float | None, idle: bool
    ) -> None:
        """Create or change a queue; `idle` starts its limit now, not at its first consumer."""
        if idle_limit is not None:
            idle_limit = max(idle_limit, self.lease_seconds)
        expires_at = time.time() + idle_limit if idle and idle_limit is not None else None
        self.write(DECLARE, queue, message_ttl, idle_limit, expires_at)

    def is_declared(self, queue: str) -> bool:
        return bool(self.rows("SELECT 1 FROM queue WHERE name = ?", (queue,)))

    @with_reserve
    def drop(self, queue: str) -> None:
        """Delete the queue with its bindings and messages."""
        with self.writing() as handle:
            _drop(handle, queue)

    @with_reserve
    def bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        insert = "INSERT OR REPLACE INTO binding VALUES (?, ?, ?, ?)"
        self.write(insert, exchange, routing_key, pattern, queue)

    @with_reserve
    def unbind(self, exchange: str, routing_key: str, queue: str) -> None:
        delete = "DELETE FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?"
        self.write(delete, exchange, routing_key, queue)

    def bindings(self, exchange: str) -> list[tuple[str, str, str]]:
        """List routing key, pattern and queue of the exchange's bindings."""
        return self.rows(
            "SELECT routing_key, pattern, queue FROM binding WHERE exchange = ?", (exchange,)
        )

    @with_reserve
    def consume(self, queue: str) -> None:
        """Keep the queue from expiring while this consumer lives."""
        self.consumed.add(queue)
        with self.writing() as handle:
            self._owned(handle)
            self._keep_queues(handle)

    # The lease and its heartbeat

    def check_lease(self) -> None:
        """Raise LeaseLapsed if this consumer was considered dead and must connect again."""
        if self._lapsed:
            raise LeaseLapsed(
                f"This consumer of {self.path} was stopped for more than its lease of"
                f" {self.lease_seconds:g} s, or its queue or the file was replaced. Connect again."
            )

    @with_reserve
    def beat(self) -> None:
        """Renew the lease and the consumed queues, and clean up after dead consumers."""
        with self._lock:
            if self.owner is None:
                return
            now = time.time()
            # After a pause of the machine every consumer looks dead: let the others beat first.
            if now - self._beaten_at > self.lease_seconds / 2:
                self._judges_from = now + self.lease_seconds
            self._beaten_at = now
            with self.writing() as handle:
                renewed = handle.execute(
                    "UPDATE owner SET expires_at = ? WHERE id = ?",
                    (now + self.lease_seconds, self.owner),
                )
                self._lapsed = self._lapsed or renewed.rowcount == 0
                self._keep_queues(handle)
                if now >= self._judges_from:
                    _sweep(handle, now)
            surplus = self.rows("PRAGMA freelist_count")[0][0] - SPARE_PAGES
            if surplus > 0:
                # executescript() runs to the end; execute() would free a single page. Only a
                # checkpoint returns freed pages to the disk.
                self._connected().executescript(
                    f"PRAGMA incremental_vacuum({min(surplus, VACUUM_PAGES)});"
                    "PRAGMA wal_checkpoint(PASSIVE)"
                )
            sharedfile.keep_reserve(self.path)

    def use_reserve(self) -> None:
        """Make room for consumers on a full disk: delete the reserve and reuse the log."""
        logger.error(
            "The disk of %s is full. New messages are refused; workers continue with those already"
            " sent. Free some space.",
            self.path,
        )
        sharedfile.reserve_of(self.path).unlink(missing_ok=True)
        with suppress(sqlite3.OperationalError):  # the caller's next try says what is wrong
            self.rows("PRAGMA wal_checkpoint(RESTART)")

    def on_replaced(self) -> None:
        self._lapsed, self.owner = self._lapsed or self.owner is not None, None

    def on_forked(self) -> None:
        self.owner, self._lapsed = None, False
        self.consumed, self._found = set(), set()
        self.settled, self._stopped = threading.Event(), threading.Event()

    def _owned(self, handle: sqlite3.Connection) -> int:
        """Return the id to lease under; the first call starts the heartbeat."""
        if self.owner is not None:
            row = handle.execute("SELECT 1 FROM owner WHERE id = ?", (self.owner,)).fetchone()
            self._lapsed = self._lapsed or row is None
        self.check_lease()
        if self.owner is None:
            now = time.time()
            _sweep(handle, now)
            self.owner = handle.execute(
                "INSERT INTO owner (expires_at) VALUES (?)", (now + self.lease_seconds,)
            ).lastrowid
            self._beaten_at = now
            sharedfile.keep_reserve(self.path)
            self._stopped = threading.Event()
            threading.Thread(
                target=_keep_beating,
                args=(weakref.ref(self), self._stopped, self.lease_seconds / 6),
                name="autorun-broker-heartbeat",
                daemon=True,
            ).start()
        return int(self.owner or 0)

    @with_reserve
    def _change_leased(self, message: int, *statements: str) -> bool:
        """Execute the statements; return whether the first one has changed a row."""
        changed: list[int] = []
        with self._lock:
            if self.owner is not None:
                parameters = {"id": message, "owner": self.owner, "now": time.time()}
                with self.writing() as handle:
                    changed = [handle.execute(each, parameters).rowcount for each in statements]
        self.settled.set()
        return any(changed[:1])

    def _check_size(self, payload: str, receiver: str) -> None:
        if len(payload) > self.max_message_bytes:  # JSON is ASCII
            raise MessageTooLarge(
                f"The message to {receiver} has {len(payload):,} bytes; the broker accepts"
                f" {self.max_message_bytes:,.0f}. Send a path or a key instead of the data, or"
                " raise 'max_message_bytes' in broker_transport_options."
            )

    def _keep_queues(self, handle: sqlite3.Connection) -> None:
        """Renew the consumed queues; this consumer lapses if another has deleted one of them."""
        # A stopping worker deletes its control queue, even if a new worker of the same name already
        # consumes it. No message would reach that worker again.
        consumed = set(self.consumed)
        handle.executemany(
            "UPDATE queue SET expires_at = ? + idle_limit WHERE name = ? AND idle_limit > 0",
            [(time.time(), queue) for queue in consumed],
        )
        declared = {name for (name,) in handle.execute("SELECT name FROM queue")}
        if (self._found & consumed) - declared:
            self._lapsed = True
        self._found = declared & consumed


def _put(handle: sqlite3.Connection, queues: Iterable[str], **terms: Any) -> None:
    message = {**terms, "now": time.time()}
    handle.executemany(PUT, [message | {"queue": queue} for queue in queues])


def _drop(handle: sqlite3.Connection, queue: str) -> None:
    handle.execute("DELETE FROM queue WHERE name = ?", (queue,))
    handle.execute("DELETE FROM binding WHERE queue = ?", (queue,))
    handle.execute("DELETE FROM message WHERE queue = ?", (queue,))


def _sweep(handle: sqlite3.Connection, now: float) -> None:
    dead = handle.execute("DELETE FROM owner WHERE expires_at < ? RETURNING id", (now,)).fetchall()
    handle.executemany(RELEASE_ALL, dead)
    unused = handle.execute("SELECT name FROM queue WHERE expires_at < ?", (now,)).fetchall()
    for (queue,) in unused:
        _drop(handle, queue)
    handle.execute("DELETE FROM message WHERE expires_at < ? AND owner IS NULL", (now,))


def _keep_beating(
    reference: "weakref.ref[BrokerFile]", stopped: threading.Event, interval: float
) -> None:
    while not stopped.wait(interval):
        file = reference()
        if file is None:
            return
        try:
            file.beat()
        except (sqlite3.Error, OSError, ValueError) as error:
            logger.warning("No heartbeat could be written to %s: %s", file.path, error)
        del file
