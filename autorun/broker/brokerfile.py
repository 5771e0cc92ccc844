"""The file of the embedded broker: messages, leases, queues and bindings."""

import logging
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from autorun.broker.sharedfile import SharedFile

logger = logging.getLogger("autorun.broker.brokerfile")

SPARE_PAGES = 256  # free pages kept for reuse
VACUUM_PAGES = 4096  # the most pages given back to the disk at one heartbeat

READY = "queue = :queue AND owner IS NULL AND (expires_at IS NULL OR expires_at > :now)"
NEXT = f"SELECT id FROM message WHERE {READY} ORDER BY priority DESC, id LIMIT 1"
LEASE = (
    f"UPDATE message SET owner = :owner, deliveries = deliveries + 1 WHERE id = ({NEXT})"
    " RETURNING id, deliveries, payload"
)
COUNT = f"SELECT count(*) FROM message WHERE {READY}"
# No index begins with the owner, and the table may be long: scan the index, which is small.
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
DECLARE = """
    INSERT INTO queue (name, message_ttl, idle_limit, expires_at) VALUES (?, ?, ?, ?)
    ON CONFLICT (name) DO UPDATE SET
        message_ttl = excluded.message_ttl,
        idle_limit = excluded.idle_limit,
        expires_at = coalesce(excluded.expires_at, expires_at)
"""


class LeaseLapsed(sqlite3.OperationalError):
    """A consumer was silent for longer than its lease, or its file was replaced."""


class LeasedMessage(NamedTuple):
    """A message that is ours until it is settled, released, or our lease lapses."""

    id: int
    deliveries: int  # with this one
    payload: str


class BrokerFile(SharedFile):
    """One connection to the broker: what it leases, the queues it consumes, its heartbeat."""

    application_id = 0x6175746F  # "auto"
    layout_version = 1
    layout = (
        # A consuming connection; its heartbeat moves expires_at.
        "CREATE TABLE owner (id INTEGER PRIMARY KEY AUTOINCREMENT, expires_at REAL NOT NULL)",
        # A queue with an idle_limit is dropped when nobody has consumed from it for so long.
        """
        CREATE TABLE queue (
            name TEXT PRIMARY KEY, message_ttl REAL, idle_limit REAL, expires_at REAL
        ) WITHOUT ROWID
        """,
        """
        CREATE TABLE binding (
            exchange TEXT, routing_key TEXT, pattern TEXT NOT NULL, queue TEXT,
            PRIMARY KEY (exchange, routing_key, queue)
        ) WITHOUT ROWID
        """,
        # AUTOINCREMENT: no id is used twice, so a late acknowledgement meets no younger message.
        """
        CREATE TABLE message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL,
            priority INTEGER NOT NULL, expires_at REAL, owner INTEGER,
            deliveries INTEGER NOT NULL DEFAULT 0, payload TEXT NOT NULL
        )
        """,
        "CREATE INDEX message_order ON message (queue, owner, priority DESC, id, expires_at)",
        "CREATE INDEX message_expiry ON message (expires_at) WHERE expires_at IS NOT NULL",
    )

    def __init__(self, path: Path, *, lease: float = 30, busy_timeout: float = 10) -> None:
        super().__init__(path, busy_timeout=busy_timeout)
        self.lease_seconds = lease
        self.owner: int | None = None
        self.consumed: set[str] = set()
        self._found: set[str] = set()  # of those, what was declared when last looked at
        self.settled = threading.Event()  # there may be room for another message
        self._lapsed = False
        self._stopped = threading.Event()
        self._beaten_at = self._judges_from = 0.0

    def __del__(self) -> None:
        # Nothing is written: the garbage collector may come in the middle of a transaction.
        if hasattr(self, "_stopped"):
            self._stopped.set()
        super().__del__()

    def close(self) -> None:
        """Give back what is leased here, and let go of the file."""
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

    def put(self, queue: str, payload: str, *, priority: int, ttl: float | None) -> None:
        with self.writing() as handle:
            _put(handle, [queue], payload, priority, ttl)

    def put_fanout(self, exchange: str, payload: str, *, priority: int, ttl: float | None) -> None:
        """Append the message to every queue that is bound to the exchange."""
        with self.writing() as handle:
            bound = handle.execute(
                "SELECT DISTINCT queue FROM binding WHERE exchange = ?", (exchange,)
            )
            _put(handle, [queue for (queue,) in bound.fetchall()], payload, priority, ttl)

    def lease(self, queue: str) -> LeasedMessage | None:
        """The next message of the queue: highest priority first, oldest first."""
        parameters: dict[str, Any] = {"queue": queue, "now": time.time()}
        # An idle consumer only reads: it neither waits for the write lock nor holds others up.
        if not self.rows(NEXT, parameters):
            return None
        with self.writing() as handle:
            rows = handle.execute(LEASE, parameters | {"owner": self._owned(handle)}).fetchall()
        return LeasedMessage(*rows[0]) if rows else None

    def settle(self, message: int) -> None:
        """Delete a message that is leased here; one that no longer is, is somebody else's."""
        self._change_leased("DELETE FROM message WHERE id = ? AND owner = ?", message)

    def release(self, message: int) -> None:
        """Give a message that is leased here back to its queue, at its old place."""
        self._change_leased("UPDATE message SET owner = NULL WHERE id = ? AND owner = ?", message)

    def size(self, queue: str) -> int:
        """How many messages wait in the queue."""
        return int(self.rows(COUNT, {"queue": queue, "now": time.time()})[0][0])

    def purge(self, queue: str) -> int:
        """Delete the messages that wait in the queue, and say how many there were."""
        with self.writing() as handle:
            return handle.execute(
                "DELETE FROM message WHERE queue = ? AND owner IS NULL", (queue,)
            ).rowcount

    # Queues and bindings

    def declare(
        self, queue: str, *, message_ttl: float | None, idle_limit: float | None, idle: bool
    ) -> None:
        """Make or change a queue; `idle` counts its limit from now, not from its first consumer."""
        if idle_limit is not None:
            idle_limit = max(idle_limit, self.lease_seconds)
        expires_at = time.time() + idle_limit if idle and idle_limit is not None else None
        with self.writing() as handle:
            handle.execute(DECLARE, (queue, message_ttl, idle_limit, expires_at))

    def is_declared(self, queue: str) -> bool:
        return bool(self.rows("SELECT 1 FROM queue WHERE name = ?", (queue,)))

    def drop(self, queue: str) -> None:
        """Delete the queue with its bindings and messages."""
        with self.writing() as handle:
            _drop(handle, queue)

    def bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        with self.writing() as handle:
            handle.execute(
                "INSERT OR REPLACE INTO binding VALUES (?, ?, ?, ?)",
                (exchange, routing_key, pattern, queue),
            )

    def unbind(self, exchange: str, routing_key: str, queue: str) -> None:
        with self.writing() as handle:
            handle.execute(
                "DELETE FROM binding WHERE exchange = ? AND routing_key = ? AND queue = ?",
                (exchange, routing_key, queue),
            )

    def bindings(self, exchange: str) -> list[tuple[str, str, str]]:
        """Routing key, pattern and queue of every binding of the exchange."""
        return self.rows(
            "SELECT routing_key, pattern, queue FROM binding WHERE exchange = ?", (exchange,)
        )

    def consume(self, queue: str) -> None:
        """Keep the queue in being from now on."""
        self.consumed.add(queue)
        with self.writing() as handle:
            self._owned(handle)
            self._touch_queues(handle)
            self._lapsed = self._has_lost_a_queue(handle) or self._lapsed

    # The lease and its heartbeat

    def check_lease(self) -> None:
        """Raise LeaseLapsed if this consumer was taken for dead and must declare all anew."""
        if self._lapsed:
            raise LeaseLapsed(
                f"This consumer of {self.path} was stopped for more than its lease of"
                f" {self.lease_seconds:g} s, or its queue or the file was replaced. Connect again."
            )

    def beat(self) -> None:
        """Renew the lease and the consumed queues, and clear away what the dead have left."""
        with self._lock:
            if self.owner is None:
                return
            now = time.time()
            # After a pause of the whole machine everybody looks dead: let the others beat first.
            if now - self._beaten_at > self.lease_seconds / 2:
                self._judges_from = now + self.lease_seconds
            self._beaten_at = now
            with self.writing() as handle:
                renewed = handle.execute(
                    "UPDATE owner SET expires_at = ? WHERE id = ?",
                    (now + self.lease_seconds, self.owner),
                )
                self._lapsed = self._lapsed or renewed.rowcount == 0
                self._touch_queues(handle)
                self._lapsed = self._has_lost_a_queue(handle) or self._lapsed
                if now >= self._judges_from:
                    _sweep(handle, now)
            surplus = self.rows("PRAGMA freelist_count")[0][0] - SPARE_PAGES
            if surplus > 0:
                # As a script, which runs to its end: execute() would free a single page.
                self._connected().executescript(
                    f"PRAGMA incremental_vacuum({min(surplus, VACUUM_PAGES)})"
                )

    def on_replaced(self) -> None:
        self._lapsed, self.owner = self._lapsed or self.owner is not None, None

    def on_forked(self) -> None:
        self.owner, self._lapsed = None, False
        self.consumed, self._found = set(), set()
        self.settled, self._stopped = threading.Event(), threading.Event()

    def _owned(self, handle: sqlite3.Connection) -> int:
        """The id to lease under; the first call starts the heartbeat."""
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
            self._stopped = threading.Event()
            threading.Thread(
                target=_keep_beating,
                args=(weakref.ref(self), self._stopped, self.lease_seconds / 6),
                name="autorun-broker-heartbeat",
                daemon=True,
            ).start()
        return int(self.owner or 0)

    def _change_leased(self, statement: str, message: int) -> None:
        with self._lock:
            if self.owner is not None:
                with self.writing() as handle:
                    handle.execute(statement, (message, self.owner))
        self.settled.set()

    def _has_lost_a_queue(self, handle: sqlite3.Connection) -> bool:
        """Whether somebody has deleted a queue that this consumer is at.

        So does a worker that ends, to the control queue of the one of its name that was started
        before it had ended. Nothing would ever arrive there again.
        """
        declared = {name for (name,) in handle.execute("SELECT name FROM queue")}
        consumed = set(self.consumed)
        lost = (self._found & consumed) - declared
        self._found = declared & consumed
        return bool(lost)

    def _touch_queues(self, handle: sqlite3.Connection) -> None:
        handle.executemany(
            "UPDATE queue SET expires_at = ? + idle_limit WHERE name = ? AND idle_limit > 0",
            [(time.time(), queue) for queue in tuple(self.consumed)],
        )


def _put(
    handle: sqlite3.Connection,
    queues: Iterable[str],
    payload: str,
    priority: int,
    ttl: float | None,
) -> None:
    message = {"payload": payload, "priority": priority, "ttl": ttl, "now": time.time()}
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
