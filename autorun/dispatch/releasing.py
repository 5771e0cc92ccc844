"""Release waiting chunks within their limits, and publish one message for each.

A chunk is claimed before its message is sent. A crash in between leaves a queued chunk that upkeep
sends again; in the other order two processes could release more than the window.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import OperationalError, connections, transaction
from django.db.models import Count, Exists, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Greatest, Least

from autorun.conf import settings
from autorun.declare import nodes
from autorun.dispatch.holding import next_try
from autorun.dispatch.limiting import bounds_of, nodes_sharing
from autorun.dispatch.messages import follow_queues, message_for
from autorun.dispatch.ordering import FIRST_PAGE, IS_DUE, due, fitting, with_window
from autorun.dispatch.publishing import publish
from autorun.dispatch.room import SPARE_CHUNKS, InFlight, Room
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.models import Batch, Chunk, Node
from autorun.state import pulses, transactions
from autorun.state.clock import DatabaseNow
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.sql import RowsAsJSON, Slot, changed_by, prepared, prepared_update

logger = get_logger(__name__)

#: Nodes that upkeep releases in one transaction, and how many chunks of each.
NODES_AT_ONCE = 200
FIRST_OF_MANY = SPARE_CHUNKS
#: Claims that a process makes on behalf of others before the next process takes over.
MOST_CLAIMS = 10
#: Messages of a chunk are counted up to this number, the limit of a smallint.
MOST_PUBLICATIONS = 30_000


@dataclass(frozen=True)
class Release:
    """The chunks that were claimed, and whether the broker refused their messages."""

    claimed: tuple[Chunk, ...] = ()
    was_refused: bool = False

    @property
    def chunks(self) -> int:
        return len(self.claimed)


def release(node_id: int, node_digest: str | None = None) -> Release:
    """Send what the node's limits allow, urgent chunks first, once the transaction commits.

    Without a `node_digest`, a look for chunks that could start saves the lock if there are none.
    """
    has_stopped = False
    if node_digest is None:
        found = _look(node_id=node_id)
        if not found:
            return Release()
        node_digest, has_stopped = found[0]
    work = partial(_release, node_id, node_digest, has_stopped)
    return transactions.once_committed(work, meanwhile=Release)


@prepared
def _look() -> QuerySet[Any]:
    """The digest of a node with a chunk that could start, and whether it has a stopped batch."""
    is_held_up = Q(state=Chunk.State.PARKED, not_before__isnull=False)
    # This includes chunks of a paused batch: many of them may precede those of another batch.
    startable = Chunk.objects.of(Slot("node_id")).filter(IS_DUE | is_held_up, node__paused_at=None)
    stopped = Batch.objects.stopped().filter(node=OuterRef("node"))
    return startable.order_by().values_list("node__digest", Exists(stopped))[:1]


def release_everywhere() -> int:
    """Release for every node with waiting chunks; return the number of released chunks."""
    # A subquery for each node: there may be many thousands of waiting chunks.
    waiting = Chunk.objects.waiting().of(OuterRef("pk"))
    held_up = Chunk.objects.held_up().of(OuterRef("pk"))
    startable = Node.objects.filter(Exists(waiting) | Exists(held_up), paused_at=None)
    ids = startable.order_by("pk").values_list("pk", "digest")
    found = dict(ids)
    pages = [list(found)[at : at + NODES_AT_ONCE] for at in range(0, len(found), NODES_AT_ONCE)]
    return transactions.sum_of_each(
        lambda page: _release_page({node_id: found[node_id] for node_id in page}),
        pages,
        name="Releasing: nodes",
    )


def _release_page(digests: Mapping[int, str]) -> int:
    """Release for many nodes in one transaction, then for each of those that need more; chunks."""
    known = nodes.runners_by_node().labels
    labels = {node_id: set(known.get(digest, ())) for node_id, digest in digests.items()}
    claimed: list[Chunk] = []
    left: Collection[int] = labels
    try:
        claimed, left = transactions.repeated_on_conflict(
            partial(_claim_first, labels), holds_node=True
        )
    except Exception as error:  # noqa: BLE001  raised again for the node that is at fault
        logger.warning("%d nodes are released one by one: %s", len(labels), error)
    _send_on_commit(claimed)
    each = transactions.sum_of_each(lambda pk: release(pk).chunks, left, name="Releasing: node")
    return len(claimed) + each


def release_after(chunk: Chunk) -> set[int | None]:
    """Release what the end of `chunk` makes room for, also at the nodes that share its limit.

    Returns the batches of the released chunks.
    """
    known = {chunk.node_id: chunk.node.digest} if chunk.is_followed else {}
    released = [
        release(node_id, known.get(node_id))
        for node_id in nodes_sharing(chunk.runner, chunk.node_id)
    ]
    return {each.batch_id for some in released for each in some.claimed}


def _release(node_id: int, node_digest: str, has_stopped: bool) -> Release:
    """Claim and send, and repeat that while others leave notes.

    A process that finds another one doing so leaves a note, and does not wait for the lock.
    """
    # Configurations come from user code: none is created in the transaction, under the lock.
    labels = set(nodes.runners_by_node().labels.get(node_digest, ()))
    claim = partial(_claim, node_id, labels, by_batch=has_stopped)
    note = f"again:{node_id}"
    claimed: list[Chunk] = []
    try:
        for turn in range(MOST_CLAIMS if pulses.locks_rows() else 1):
            if turn and not pulses.take_note(note):
                break
            some = _claimed(claim)
            # The note is taken after the lock is given up: whoever leaves it looks once more. If
            # there is one already, it will be taken, and what has ended by now be seen.
            if some is None and pulses.leave_note(note):
                some = _claimed(claim)
            if some is None:
                break
            claimed += some
    except OperationalError as error:
        if not transactions.is_conflict(error):
            raise
        logger.warning(
            "Node %d is locked by another process; upkeep releases it: %s", node_id, error
        )
    finally:
        refused = _send_on_commit(claimed)
    return Release(tuple(claimed), bool(refused))


def _claimed(claim: Callable[[], list[Chunk] | None]) -> list[Chunk] | None:
    with transactions.unflushed(connections[settings.DATABASE]):
        return transactions.repeated_on_conflict(claim, holds_node=True)


def _send_on_commit(claimed: Sequence[Chunk]) -> list[bool]:
    """Send the chunks' messages on commit; the list then has an item if the broker refused one."""
    refused: list[bool] = []

    def send_claimed() -> None:
        if send(claimed) < len(claimed):
            refused.append(True)

    if claimed:
        transaction.on_commit(send_claimed, using=settings.DATABASE, robust=True)
    return refused


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
        # A silent broker may have accepted a message: its worker finds a waiting chunk and does
        # nothing.
        Chunk.objects.queued().filter(pk__in=[chunk.pk for chunk in refused]).update(
            state=Chunk.State.WAITING, publications=Greatest(F("publications") - 1, 0)
        )
        return len(chunks) - len(refused)
    crash_point("dispatch.sent")
    return len(chunks)


def _claim(node_id: int, labels: Set[str], *, by_batch: bool = False) -> list[Chunk] | None:
    """Mark as queued what fits beside the runs in flight. Return None if the node is locked."""
    first = None
    # A stopped batch may have very many chunks: beside one, they are not read in their order.
    if not by_batch:
        first = _first_page(after=nodes.to_lock_free(node_id), node_id=node_id)
    if first is None:
        if not nodes.lock_free([node_id], has_tried=not by_batch):
            return None
        first = None if by_batch else _first_page(node_id=node_id)
    kinds = (first[0].kinds or ()) if first else _kinds_of_node(node_id=node_id)
    claimed = []
    if held_up := {runner for _, state, runner, *_ in kinds if state == Chunk.State.PARKED}:
        tries = [next_try(node_id, label, due(node_id)) for label in sorted(held_up)]
        claimed = [chunk for chunk in tries if chunk is not None]
        kinds, first = _kinds_of_node(node_id=node_id), None
    room = Room(map(InFlight._make, kinds), node_id, labels)
    known = [chunk.pk for chunk in claimed]
    claimed += fitting(node_id, room, first=first, but=known, by_batch=by_batch)
    _mark_queued(claimed)
    return claimed


def _claim_first(labels: Mapping[int, Set[str]]) -> tuple[list[Chunk], list[int]]:
    """Mark as queued the first chunks of many nodes. Return them, and the nodes to release alone.

    Such a node is locked or held up, or has more waiting chunks, a paused batch or a limit.
    """
    stopped = Batch.objects.stopped().filter(node__in=labels).values_list("node_id", flat=True)
    free = nodes.lock_free(set(labels).difference(stopped))
    in_flight: dict[int, list[InFlight]] = defaultdict(list)
    first: dict[int, list[Chunk]] = defaultdict(list)
    limiting = Chunk.objects.limiting().filter(node__in=free)
    for each in _by_kind(limiting):
        kind = InFlight(*each)
        in_flight[kind.node_id].append(kind)
    of_each = due(OuterRef("pk")).values("pk")
    firsts = {f"due_{at}": Subquery(of_each[at : at + 1]) for at in range(FIRST_OF_MANY)}
    columns = Node.objects.filter(pk__in=free).annotate(**firsts).values_list(*firsts)
    ids = {chunk_id for found in columns for chunk_id in found if chunk_id is not None}
    chunks = Chunk.objects.filter(pk__in=ids).annotate(window=F("batch__window"))
    for chunk in chunks.order_by("-priority", "pk"):
        first[chunk.node_id].append(chunk)
    claimed: list[Chunk] = []
    left = set(labels).difference(free)
    for node_id in free:
        is_held_up = any(kind.state == Chunk.State.PARKED for kind in in_flight[node_id])
        if is_held_up or any(bounds_of(chunk.runner) for chunk in first[node_id]):
            left.add(node_id)
            continue
        room = Room(in_flight[node_id], node_id, labels[node_id])
        claimed += [chunk for chunk in first[node_id] if not room.is_full() and room.takes(chunk)]
        if len(first[node_id]) == FIRST_OF_MANY and not room.is_full_after(first[node_id][-1]):
            left.add(node_id)
    _mark_queued(claimed)
    return claimed, sorted(left)


@prepared
def _kinds_of_node() -> QuerySet[Any]:
    return _by_kind(Chunk.objects.limiting().of(Slot("node_id")))


@prepared
def _first_page() -> QuerySet[Any]:
    """The node's first due chunks, each with all `kinds` in flight: one statement."""
    limiting = _by_kind(Chunk.objects.limiting().of(Slot("node_id")))
    kinds = RowsAsJSON(limiting, width=len(InFlight._fields))
    return with_window(due(Slot("node_id")).annotate(kinds=kinds))[:FIRST_PAGE]


def _by_kind(chunks: QuerySet[Chunk]) -> QuerySet[Any]:
    columns = ("node_id", "state", "runner", "batch_id", "batch__window")
    kinds = chunks.order_by().values_list(*columns)
    return kinds.annotate(n_chunks=Count("pk"), n_runs=Sum(Chunk.RUNS_LEFT))


_QUEUED: dict[str, Any] = {
    "state": Chunk.State.QUEUED,
    "published_at": DatabaseNow(),
    "publications": Least(F("publications") + 1, MOST_PUBLICATIONS),
    "not_before": None,
}


@prepared_update
def _mark_one() -> tuple[QuerySet[Chunk], dict[str, Any]]:
    return Chunk.objects.waiting().filter(pk=Slot("chunk_id")), _QUEUED


def _mark_queued(claimed: Sequence[Chunk]) -> None:
    # A chunk that was cancelled since it was read stays so; its message does nothing.
    if len(claimed) == 1:
        changed_by(_mark_one(chunk_id=claimed[0].pk))
    else:
        Chunk.objects.waiting().filter(pk__in=[chunk.pk for chunk in claimed]).update(**_QUEUED)
    follow_queues(claimed)
    crash_point("dispatch.claimed")
