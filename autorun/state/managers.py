"""The states of batches, chunks and runs, and the querysets that select rows by them."""

from collections.abc import Iterable
from functools import reduce
from operator import or_
from typing import Any, Self, TypeVar

from django.db.models import Exists, IntegerChoices, Model, OuterRef, Q, QuerySet, TextChoices

from autorun.state.clock import DatabaseNow
from autorun.state.keys import Key, KeyKind

Row = TypeVar("Row", bound=Model)


class BatchState(TextChoices):
    RUNNING = "running"
    PAUSED = "paused"
    CANCELLED = "cancelled"
    FINISHED = "finished"
    FAILED = "failed"


class BatchQuerySet(QuerySet[Row]):
    def unplanned(self) -> Self:
        """Running batches that still have rows to plan."""
        return self.filter(state=BatchState.RUNNING, planned_at=None)

    def planned(self) -> Self:
        """Running batches whose rows are all planned."""
        return self.filter(state=BatchState.RUNNING, planned_at__isnull=False)

    def unfinished(self) -> Self:
        """Running and paused batches."""
        return self.filter(state__in=(BatchState.RUNNING, BatchState.PAUSED))

    def cancelled(self) -> Self:
        return self.filter(state=BatchState.CANCELLED)

    def stopped(self) -> Self:
        """Batches whose waiting chunks are not released: paused, or still being cancelled."""
        is_left = Q(state=BatchState.CANCELLED, expires_at__isnull=False)
        return self.filter(Q(state=BatchState.PAUSED) | is_left)

    def lapsed(self) -> Self:
        """Batches that no process is planning or cancelling now."""
        return self.filter(expires_at__lte=DatabaseNow())


class ChunkState(IntegerChoices):
    WAITING = 0
    QUEUED = 1
    RUNNING = 2
    PARKED = 3
    FINISHED = 4


# Named one by one, so that an index finds them.
IN_FLIGHT = (ChunkState.QUEUED, ChunkState.RUNNING)
UNSTARTED = (ChunkState.WAITING, ChunkState.QUEUED, ChunkState.PARKED)
UNFINISHED = (*UNSTARTED, ChunkState.RUNNING)
NOT_WAITING = (*IN_FLIGHT, ChunkState.PARKED, ChunkState.FINISHED)


class ChunkQuerySet(QuerySet[Row]):
    def of(self, node: Any) -> Self:
        """Chunks of a node, given as a Node, its primary key or an expression."""
        return self.filter(node=node)

    def waiting(self) -> Self:
        return self.filter(state=ChunkState.WAITING)

    def queued(self) -> Self:
        return self.filter(state=ChunkState.QUEUED)

    def running(self) -> Self:
        return self.filter(state=ChunkState.RUNNING)

    def parked(self) -> Self:
        return self.filter(state=ChunkState.PARKED)

    def finished(self) -> Self:
        return self.filter(state=ChunkState.FINISHED)

    def in_flight(self) -> Self:
        return self.filter(state__in=IN_FLIGHT)

    def limiting(self) -> Self:
        """Chunks in flight, and those that an error holds up."""
        return self.filter(state__in=(*IN_FLIGHT, ChunkState.PARKED)).filter(
            ~Q(state=ChunkState.PARKED) | Q(not_before__isnull=False)
        )

    def held_up(self) -> Self:
        """Parked chunks of runners all of whose rows meet an error; with the time of a next try."""
        return self.parked().filter(not_before__isnull=False)

    def unstarted(self) -> Self:
        return self.filter(state__in=UNSTARTED)

    def unfinished(self) -> Self:
        return self.filter(state__in=UNFINISHED)

    def lapsed(self) -> Self:
        """Running chunks whose lease has run out."""
        return self.running().filter(expires_at__lte=DatabaseNow())

    def being_cancelled(self) -> Self:
        """Chunks marked to be cancelled, by no batch: they cannot start, and upkeep goes on."""
        return self.unstarted().filter(expires_at__isnull=False, cancelling__isnull=False)

    def unfollowed(self) -> Self:
        """Finished chunks whose lease has run out before what follows them was planned."""
        return self.finished().filter(expires_at__lte=DatabaseNow())

    def leased(self) -> Self:
        """Chunks that a worker executes, or after which it plans what follows."""
        states = (ChunkState.RUNNING, ChunkState.FINISHED)
        return self.filter(state__in=states, expires_at__isnull=False)

    def unfolded(self) -> Self:
        """Chunks whose counts are not part of their node's and batch's totals yet."""
        # `= False` would be written as NOT, for which SQLite and MariaDB use no index.
        return self.filter(is_folded__in=[False])


#: The fingerprint of the runs of a deleted row.
RETIRED = "e" * 32


class RunStatus(IntegerChoices):
    PENDING = 0
    SUCCEEDED = 1
    FAILED = 2
    CANCELLED = 3
    NOT_APPLICABLE = 4


class RunQuerySet(QuerySet[Row]):
    def of(self, node: Any) -> Self:
        """Runs of a node, given as a Node, its primary key or an expression."""
        return self.filter(node=node)

    def of_row(self, kind: KeyKind, key: Any) -> Self:
        """Runs of the row named by `key`, which may be an expression."""
        return self.filter(**kind.lookup(key))

    def of_rows(self, kind: KeyKind, keys: Iterable[Key] | None = None) -> Self:
        """Runs of the rows named by `keys`, or of all rows with such keys."""
        other = {"object_key": ""} if kind.is_integer else {"object_id": 0}
        named = {} if keys is None else {f"{kind.column}__in": keys}
        return self.filter(**other, **named)

    def current(self) -> Self:
        return self.filter(is_current=True)

    def slowest(self) -> Self:
        """Runs whose last attempt is measured, the longest first."""
        return self.filter(seconds__isnull=False).order_by("-seconds", "-pk")

    def pending(self) -> Self:
        return self.filter(status=RunStatus.PENDING)

    def succeeded(self) -> Self:
        return self.filter(status=RunStatus.SUCCEEDED)

    def failed(self) -> Self:
        return self.filter(status=RunStatus.FAILED)

    def stale(self, upstream: Iterable[Any]) -> Self:
        """Current successes on rows on which a node of `upstream` has no current success."""
        row = {name: OuterRef(name) for name in ("object_id", "object_key")}
        successes = self.model._default_manager.filter(
            is_current=True, status=RunStatus.SUCCEEDED, **row
        )
        is_stale = [Q(~Exists(successes.filter(node=node))) for node in upstream]
        found = self.current().succeeded()
        return found.filter(reduce(or_, is_stale)) if is_stale else found.none()

    def unretired(self) -> Self:
        """Runs of rows that have not been deleted since, as far as it is known."""
        return self.exclude(fingerprint=RETIRED)
