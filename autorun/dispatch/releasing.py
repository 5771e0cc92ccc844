"""Release waiting chunks within their limits, and publish one message for each.

A chunk is claimed before its message is sent. A crash in between leaves a queued chunk that upkeep
sends again; in the other order two processes could release more than the window.
"""

import logging
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import OperationalError, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Sum
from django.db.models.functions import Greatest, Least

from autorun.conf import settings
from autorun.declare import nodes
from autorun.dispatch.holding import next_try
from autorun.dispatch.messages import follow_queues, message_for
from autorun.dispatch.publishing import publish
from autorun.dispatch.room import Room
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.models import Batch, Chunk, Node
from autorun.state.clock import DatabaseNow
from autorun.state.probes import crash_point
from autorun.state.transactions import (
    is_conflict,
    once_committed,
    repeated_on_conflict,
    sum_of_each,
)

logger = logging.getLogger(__name__)

#: Waiting chunks read first, then four times as many, and so on. Usually there is room for one.
FIRST_PAGE = 8
#: Messages of a chunk are counted up to this number; a smallint ends a little above.
MOST_PUBLICATIONS = 30_000
_IS_DUE = Q(state=Chunk.State.WAITING) & (Q(not_before=None) | Q(not_before__lte=DatabaseNow()))


@dataclass(frozen=True)
class Release:
    """How many chunks were claimed, and whether the broker refused their messages."""

    chunks: int = 0
    was_refused: bool = False


def release(node_id: int) -> Release:
    """Send what the node's limits allow, urgent chunks first, once the transaction commits."""
    is_held_up = Q(state=Chunk.State.PARKED, not_before__isnull=False)
    startable = _unpaused(node_id).filter(_IS_DUE | is_held_up).order_by()
    node_digest = startable.values_list("node__digest", flat=True).first()
    if node_digest is None:
        return Release()
    work = partial(_release, node_id, node_digest)
    return once_committed(work, meanwhile=Release)


def release_everywhere() -> int:
    """Release for every node with waiting chunks; return the number of released chunks."""
    # A subquery for each node: there may be many thousands of waiting chunks.
    waiting = Chunk.objects.waiting().of(OuterRef("pk"))
    held_up = Chunk.objects.held_up().of(OuterRef("pk"))
    nodes_waiting = Node.objects.filter(Exists(waiting) | Exists(held_up))
    return sum_of_each(
        lambda pk: release(pk).chunks,
        nodes_waiting.values_list("pk", flat=True),
        name="Releasing: node",
    )


def _release(node_id: int, node_digest: str) -> Release:
    # Configurations come from user code: none is created in the transaction, under the lock.
    labels = set(nodes.runners_by_node().labels.get(node_digest, ()))
    try:
        claim = partial(_claim, node_id, labels)
        claimed = repeated_on_conflict(claim, holds_node=True)
    except OperationalError as error:
        if not is_conflict(error):
            raise
        logger.warning(
            "Node %d is locked by another process; upkeep releases it: %s", node_id, error
        )
        return Release()
    refused = []

    def send_claimed() -> None:
        if send(claimed) < len(claimed):
            refused.append(True)

    if claimed:
        transaction.on_commit(send_claimed, using=settings.DATABASE, robust=True)
    return Release(len(claimed), bool(refused))


def send(chunks: Sequence[Chunk]) -> int:
    """Publish a message for each chunk; return how many. Refused chunks wait again."""
    crash_point("dispatch.unsent")
    messages = {chunk.pk: message_for(chunk) for chunk in chunks}
    try:
        publish(list(messages.values()))
    except BrokerUnavailable as error:
        refused = list(chunks)
        if isinstance(error, MessagesRefused):
            refused = [chunk for chunk in chunks if messages[chunk.pk] in error.messages]
        logger.warning(
            "No broker took %d chunks of %s; upkeep sends them again. %s",
            len(refused),
            ", ".join(sorted({chunk.runner for chunk in refused})),
            error,
        )
        crash_point("dispatch.refused")
        # A silent broker may have taken a message: its worker finds a waiting chunk, does nothing.
        Chunk.objects.queued().filter(pk__in=[chunk.pk for chunk in refused]).update(
            state=Chunk.State.WAITING, publications=Greatest(F("publications") - 1, 0)
        )
        return len(chunks) - len(refused)
    crash_point("dispatch.sent")
    return len(chunks)


def _due(node_id: int) -> QuerySet[Any]:
    """The node's waiting chunks that may start now, urgent ones first."""
    return _unpaused(node_id).filter(_IS_DUE)


def _unpaused(node_id: int) -> QuerySet[Any]:
    paused = (Batch.State.PAUSED, Batch.State.CANCELLED)
    chunks = Chunk.objects.of(node_id).filter(node__paused_at=None)
    return chunks.exclude(batch__state__in=paused).order_by("-priority", "pk")


def _claim(node_id: int, labels: Set[str]) -> list[Chunk]:
    """Mark as queued what fits beside the runs in flight, under the lock of the node."""
    nodes.lock(node_id)
    limiting = Chunk.objects.limiting().of(node_id).order_by()
    kinds = limiting.values_list("state", "runner", "batch_id", "batch__window")
    in_flight = kinds.annotate(n_chunks=Count("pk"), n_runs=Sum(Chunk.runs_left()))
    claimed = []
    if held_up := {runner for state, runner, *_ in in_flight if state == Chunk.State.PARKED}:
        tries = [next_try(node_id, label, _due(node_id)) for label in sorted(held_up)]
        claimed = [chunk for chunk in tries if chunk is not None]
        in_flight = in_flight.all()
    room = Room(in_flight, node_id, labels)
    claimed += _fitting(_due(node_id).exclude(pk__in=[chunk.pk for chunk in claimed]), room)
    # A chunk that was cancelled since it was read stays so; its message does nothing.
    Chunk.objects.waiting().filter(pk__in=[chunk.pk for chunk in claimed]).update(
        state=Chunk.State.QUEUED,
        published_at=DatabaseNow(),
        publications=Least(F("publications") + 1, MOST_PUBLICATIONS),
        not_before=None,
    )
    follow_queues(claimed)
    crash_point("dispatch.claimed")
    return claimed


def _fitting(due: QuerySet[Chunk], room: Room) -> Iterator[Chunk]:
    """The chunks that fit, in their order, read a page at a time.

    Each page leaves out full batches and runners, which may have thousands of chunks.
    """
    rows = due.annotate(window=F("batch__window"))
    size = FIRST_PAGE
    while not room.is_full():
        page = list(room.open_to(rows)[:size])
        for chunk in page:
            if room.takes(chunk):
                yield chunk
            elif room.is_full():
                return
        if len(page) < size:
            return
        last = page[-1]
        rows = rows.filter(
            Q(priority__lt=last.priority) | Q(pk__gt=last.pk), priority__lte=last.priority
        )
        size *= 4
