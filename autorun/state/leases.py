"""Leases: one worker starts a chunk, and stays the only one.

A start is one compare-and-set that gives the chunk a new token, so a message delivered five times
starts it once. Later writes require the same token, so a worker that lost its lease writes nothing.
"""

import os
import secrets
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from celery import current_task
from django.db import DatabaseError, InterfaceError, OperationalError, connections
from django.db.models import (
    BooleanField,
    Exists,
    Expression,
    ExpressionWrapper,
    F,
    OuterRef,
    Q,
    QuerySet,
)
from django.db.models.functions import Greatest

from autorun.conf import settings
from autorun.models import Batch, Chunk, Pulse
from autorun.state import draining
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.logs import get_logger
from autorun.state.managers import ChunkQuerySet
from autorun.state.sql import Slot, changed_by, prepared, prepared_update
from autorun.state.transactions import is_conflict, repeated_while_away, unflushed

logger = get_logger(__name__)

#: Of this process and those forked from it: two containers may have one host name and the same ids.
FAMILY = secrets.token_hex(3)
#: The lease of a batch, in leases of a chunk: Python may have to prepare thousands of rows of a
#: window before planning can extend it.
PLANNING_LEASES = 10
#: The column takes 31 bits, and workers of an older version add one to a token.
TOKEN_BITS = 30


def ends_at(leases: int = 1) -> Expression:
    """When a lease ends that begins or is extended now."""
    return from_now(settings.LEASE * leases)


def planning_ends_at() -> Expression:
    return ends_at(PLANNING_LEASES)


@dataclass(frozen=True)
class Lease:
    """The right to execute a chunk and to record its results.

    `worker` is the name of the worker that failed, if another process rescues the chunk. `runs` are
    the chunk's pending runs, if they were read as it was started.
    """

    chunk: Chunk
    token: int
    worker: str = ""
    runs: Sequence[Any] | None = None

    def held(self) -> ChunkQuerySet[Chunk]:
        """The chunk, as a queryset that is empty once another worker has the lease."""
        return held(self.chunk.pk, self.token)

    def following(self) -> ChunkQuerySet[Chunk]:
        """The finished chunk, until what follows it has been planned."""
        return self.held().finished().filter(expires_at__isnull=False)


def held(chunk_id: Any, token: Any) -> ChunkQuerySet[Chunk]:
    return Chunk.objects.filter(pk=chunk_id, token=token)


def queued(chunk_id: int) -> Chunk | None:
    """The chunk with its node and batch; None if its message came late or twice."""
    return next(iter(_queued(chunk_id=chunk_id, note=draining.heeded())), None)


@prepared
def _queued() -> Any:
    # Asked here, these questions take no statement of their own.
    urgent = _urgent(OuterRef("queue"), OuterRef("priority"))
    waiting = Chunk.objects.waiting().of(OuterRef("node"))
    # Beside a stopped batch a release looks first which chunks could start.
    stopped = Batch.objects.stopped().filter(node=OuterRef("node"))
    is_followed = ExpressionWrapper(Exists(waiting) & ~Exists(stopped), BooleanField())
    is_refused = Exists(Pulse.objects.filter(name=Slot("note")))
    chunk: Any = _with_node(_startable(Chunk.objects.filter(pk=Slot("chunk_id"))))
    return chunk.annotate(
        is_preceded=Exists(urgent), is_followed=is_followed, is_refused=is_refused
    )


def start(chunk: Chunk, *, read_runs: Callable[..., Any] | None = None) -> Lease | None:
    """The lease of a queued chunk, or None if another process has it or locks it.

    `read_runs` is a prepared read of the runs of a chunk.
    """
    token = new_token()
    starts = _start(chunk_id=chunk.pk, read=chunk.token, token=token, worker=worker_name())
    try:
        with unflushed(connections[settings.DATABASE]):
            if read_runs is None:
                return Lease(chunk, token) if changed_by(starts) else None
            runs = read_runs(after=starts, chunk_id=chunk.pk)
    except (OperationalError, InterfaceError) as error:
        if is_conflict(error):
            return None  # upkeep sends its message again
        # If only the answer was lost, the chunk has started, and no other worker would execute it.
        if not repeated_while_away(held(chunk.pk, token).exists):
            raise
        return Lease(chunk, token)
    return None if runs is None else Lease(chunk, token, runs=runs)


@prepared_update
def _start() -> tuple[QuerySet[Chunk], dict[str, Any]]:
    is_kept = Q(expires_at=None) | Q(cancelling__isnull=True)  # no process is cancelling it
    return Chunk.objects.queued().filter(is_kept, pk=Slot("chunk_id"), token=Slot("read")), {
        "state": Chunk.State.RUNNING,
        "token": Slot("token"),
        "started_at": DatabaseNow(),
        "expires_at": ends_at(),
        "worker": Slot("worker"),
    }


def new_token() -> int:
    """A random token. A counted one would be given twice if a failover or a backup lost a start."""
    return secrets.randbits(TOKEN_BITS)


def extend(lease: Lease, **changes: Any) -> bool:
    """Extend the lease to its full length, with `changes`. Return whether it was still held."""
    return bool(lease.held().running().update(expires_at=ends_at(), **changes))


@contextmanager
def kept(held: QuerySet[Any]) -> Iterator[None]:
    """Extend the leases of these rows from a thread for as long as the block takes."""
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(settings.HEARTBEAT):
            try:
                held.update(expires_at=ends_at())
            except (DatabaseError, InterfaceError) as error:
                logger.warning("No heartbeat: %s", error)
            finally:
                connections.close_all()

    thread = threading.Thread(target=keep, name="autorun-lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def extend_unasked(lease: Lease, **changes: Any) -> bool:
    """`extend` the lease unless runs of the chunk are to be cancelled. Return whether it did."""
    unasked = lease.held().running().filter(cancelling__isnull=True)
    return bool(unasked.update(expires_at=ends_at(), **changes))


def requeue(chunk: Chunk) -> bool:
    """Leave a queued chunk to another worker; the caller sends its message. False if it changed."""
    again = {"publications": F("publications") + 1, "token": F("token") + 1}
    return bool(_as_read(chunk).update(published_at=DatabaseNow(), **again))


def give_back(chunk: Chunk) -> bool:
    """Let a queued chunk be released again, as if never sent. Return whether it was unchanged."""
    before = Greatest(F("publications") - 1, 0)
    return bool(_as_read(chunk).update(state=Chunk.State.WAITING, publications=before))


def park(chunk: Chunk, reason: str) -> bool:
    """Set a queued chunk aside until its runner is back. Return whether it was unchanged."""
    parked = {"state": Chunk.State.PARKED, "reason": reason}
    return bool(_as_read(chunk).update(**parked, token=F("token") + 1))


def set_aside(lease: Lease, reason: str, *, seconds: float) -> bool:
    """Park what is left of a started chunk for a later try. Return whether the lease was held."""
    parked = {"state": Chunk.State.PARKED, "reason": reason, "expires_at": None, "publications": 0}
    since = {} if lease.chunk.reason else {"created_at": DatabaseNow()}
    chunk = lease.held().running()
    return bool(chunk.update(**parked, **since, not_before=from_now(seconds)))


def next_urgent(chunk: Chunk, *, but: Collection[int] = ()) -> Chunk | None:
    """The most urgent queued chunk of the same queue that precedes `chunk`, but none of `but`."""
    # The broker delivers in order: a saved row's message may wait behind a backfill's. So a worker
    # does the most urgent work first, and the urgent chunk's own message then does nothing.
    urgent = _urgent(chunk.queue, chunk.priority).exclude(pk__in=but)
    return _with_node(urgent).order_by("-priority", "pk").first()


def worker_name() -> str:
    """A name of this process: Celery's node name, or the host, with FAMILY and the process id."""
    node = getattr(getattr(current_task, "request", None), "hostname", None)
    return f"{node or socket.gethostname()}:{FAMILY}:{os.getpid()}"[:255]


def _as_read(chunk: Chunk) -> QuerySet[Chunk]:
    """The queued chunk, as a queryset that is empty if another process has changed it."""
    return Chunk.objects.queued().filter(pk=chunk.pk, token=chunk.token)


def _urgent(queue: Any, priority: Any) -> QuerySet[Chunk]:
    return _startable(Chunk.objects.filter(queue=queue, priority__gt=priority))


def _startable(chunks: ChunkQuerySet[Chunk]) -> QuerySet[Chunk]:
    return chunks.queued().exclude(batch__state=Batch.State.CANCELLED)


def _with_node(chunks: QuerySet[Chunk]) -> QuerySet[Chunk]:
    # Long columns that no worker reads.
    unwanted = ("node__folded_hours", "node__counted", "batch__scope")
    return chunks.select_related("node", "batch").defer(*unwanted)
