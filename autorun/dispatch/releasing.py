"""Releases chunks within their limits and publishes one message for each.

The broker is a wake-up and nothing more. A chunk is claimed in the database before its message is
sent: a crash in between leaves a queued chunk that upkeep sends again, whereas the other order
could let two dispatchers release more than the window.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.db import InterfaceError, OperationalError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet
from django.db.models.functions import Greatest, Least

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.declare.runner import Runner
from autorun.dispatch.publishing import Message, publish
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.models import Batch, Chunk, Node
from autorun.state import pulses
from autorun.state.clock import DatabaseNow
from autorun.state.crash_points import crash_point
from autorun.state.transactions import is_conflict, repeated_on_conflict

logger = logging.getLogger(__name__)

EXECUTE = "autorun.execute"
BACKFILL = "autorun.backfill"
#: Waiting chunks read first; then four times as many, and so on. Mostly there is room for one.
FIRST_PAGE = 8
#: A runner's chunks that are with the broker, beyond one for each that is being worked on. A saved
#: row's message lies behind them, whatever a chunk takes.
SPARE_CHUNKS = 2
#: How often a chunk's messages are counted; smallints end a little above.
MOST_PUBLICATIONS = 30_000
#: Seconds to wait for the lock of a node, each time it is tried: whoever releases holds it briefly.
PATIENCE = 1.0


def queue_of(runner: Runner) -> str:
    """The Celery queue of a runner's chunks; '' for Celery's default."""
    return runner.QUEUE or settings.QUEUE or ""


@dataclass(frozen=True)
class Release:
    """How many chunks were claimed, and whether the broker refused their messages."""

    chunks: int = 0
    was_refused: bool = False


def release(node_id: int) -> Release:
    """Hand over to Celery what the node's limits allow, urgent chunks first.

    Inside a transaction the messages are sent when it commits.
    """
    if not _due(node_id).exists():
        return Release()
    try:
        claimed = repeated_on_conflict(
            lambda: _claim(node_id), using=settings.DATABASE, patience=PATIENCE
        )
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


def release_everywhere() -> int:
    """`release` for every node that has something waiting; how many chunks."""
    # Asked of each node: all that waits may be many thousands.
    waiting = Chunk.objects.waiting().of(OuterRef("pk"))
    nodes_waiting = Node.objects.filter(Exists(waiting)).values_list("pk", flat=True)
    released = 0
    for node_id in list(nodes_waiting):
        try:
            released += release(node_id).chunks
        except (OperationalError, InterfaceError):
            raise  # the database is away, for all of them
        except Exception:
            logger.exception("Node %d: nothing was released; the next round tries again.", node_id)
    return released


def send(chunks: Sequence[Chunk]) -> int:
    """Publish a message for each chunk; those that no broker took wait again. How many went out."""
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
        # What a broker took in spite of its silence finds the chunk waiting, and does nothing.
        Chunk.objects.queued().filter(pk__in=[chunk.pk for chunk in refused]).update(
            state=Chunk.State.WAITING, publications=Greatest(F("publications") - 1, 0)
        )
        return len(chunks) - len(refused)
    crash_point("dispatch.sent")
    return len(chunks)


def follow_queues(chunks: Iterable[Chunk]) -> None:
    """Have the chunks go to the queues that their runners have now, as far as they are known here.

    They may have been planned before a runner was given another one, where nobody listens any more.
    """
    moved: dict[str, list[int]] = defaultdict(list)
    for chunk in chunks:
        runner = registry.find(chunk.runner)
        if runner is not None and chunk.queue != (queue := queue_of(runner)):
            chunk.queue = queue
            moved[queue].append(chunk.pk)
    for queue, ids in moved.items():
        Chunk.objects.filter(pk__in=ids).update(queue=queue)


def message_for(chunk: Chunk) -> Message:
    """The message that wakes a worker up for `chunk`: its id and nothing else."""
    runner = registry.find(chunk.runner)
    seconds = longest(chunk)
    return Message(
        task=EXECUTE,
        args=(chunk.pk,),
        queue=chunk.queue or None,
        priority=None if runner is None else runner.PRIORITY,
        # The last resort, for a body that holds the interpreter's lock: everything else that stops
        # a run happens before this does.
        time_limit=None if seconds is None else seconds + 2 * settings.LEASE,
    )


def longest(chunk: Chunk) -> float | None:
    """The seconds after which each run of `chunk` has been stopped; None where they have no limit.

    Nor where this process does not know the runner: it may well take longer than others.

    What is left of a slow chunk is handed over, so that it takes as long as one run and a little;
    unless BATCH_SIZE says that they belong together.
    """
    runner = registry.find(chunk.runner)
    if runner is None:
        return None
    try:
        timeout = runner.get_timeout()
    except Exception:
        logger.exception("%s: get_timeout() raises; its messages have no limit.", runner.label)
        return None
    if timeout is None:
        return None
    return timeout if runner.BATCH_SIZE is None else timeout * chunk.size


def message_to_plan_on(batch: Batch, *, expires: float | None = None) -> Message:
    """The message that has a worker plan the rest of a batch that no process is planning."""
    return Message(
        task=BACKFILL,
        args=(batch.runner, None, None, None, False, None, None, batch.pk),
        queue=settings.QUEUE,
        expires=expires,
    )


def _due(node_id: int) -> QuerySet[Any]:
    """The node's waiting chunks whose time has come, urgent ones first."""
    return (
        Chunk.objects.waiting()
        .of(node_id)
        .filter(Q(not_before=None) | Q(not_before__lte=DatabaseNow()))
        .exclude(batch__state__in=(Batch.State.PAUSED, Batch.State.CANCELLED))
        .filter(node__paused_at=None)
        .order_by("-priority", "pk")
    )


def _claim(node_id: int) -> list[Chunk]:
    """Mark as queued what fits beside the runs in flight, under a lock of the node."""
    node_digest = nodes.lock(node_id)
    in_flight = (
        Chunk.objects.in_flight()
        .of(node_id)
        .values_list("state", "runner", "batch_id", "batch__window", Chunk.runs_left())
    )
    claimed = list(_fitting(_due(node_id), _Room(in_flight, node_id, node_digest)))
    # One that was cancelled since it was read stays so; its message finds nothing to do.
    Chunk.objects.waiting().filter(pk__in=[chunk.pk for chunk in claimed]).update(
        state=Chunk.State.QUEUED,
        published_at=DatabaseNow(),
        publications=Least(F("publications") + 1, MOST_PUBLICATIONS),
        not_before=None,
    )
    follow_queues(claimed)
    crash_point("dispatch.claimed")
    return claimed


def _fitting(due: QuerySet[Chunk], room: _Room) -> Iterator[Chunk]:
    """The chunks there is room for, in their order and a page at a time.

    What can take no more is left out of the next page: behind a batch whose window is full, or a
    runner at its MAX_PARALLEL, thousands of its own chunks may stand before another's.
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


def _in_flight_elsewhere(label: str, *, node_id: int) -> int:
    """How many chunks of the runner are in flight at other nodes: at those of other versions."""
    chunks = Chunk.objects.in_flight().filter(runner=label)
    return chunks.exclude(node_id=node_id).count()


class _Room:
    """What is left of the limits: the node's window, a batch's own, a runner's MAX_PARALLEL.

    A chunk works on its runs one after the other, so as many of them run at once as chunks do.
    A chunk that is larger than a window goes out when nothing else of it is in flight.

    Of a runner that is supplied, whose workers have their next chunks already, only what was just
    saved goes out. Where all of the node's runners are alike, nothing is looked for.
    """

    def __init__(
        self,
        in_flight: Iterable[tuple[int, str, int | None, int | None, int]],
        node_id: int,
        node_digest: str,
    ) -> None:
        self._node_id = node_id
        self._node_digest = node_digest
        self._runs = 0
        self._is_reached = False
        self._runs_of_batch: Counter[int | None] = Counter()
        self._chunks_of_runner: Counter[str] = Counter()
        self._full_batches: set[int] = set()
        self._full_runners: set[str] = set()
        self._spare_of_runner: Counter[str] = Counter()
        self._counted_elsewhere: set[str] = set()
        for state, runner, batch_id, window, size in in_flight:
            self._add(runner, batch_id, window, size, is_queued=state == Chunk.State.QUEUED)

    def is_full(self) -> bool:
        """Whether the node takes no more; nor does it once its window could not take a chunk."""
        return (
            self._is_reached
            or self._runs >= settings.WINDOW
            or self._is_true_of_all(self._full_runners)
        )

    def open_to(self, chunks: QuerySet[Chunk]) -> QuerySet[Chunk]:
        """Those of `chunks` whose batch and runner may take another one."""
        supplied = {label for label in self._spare_of_runner if self._is_supplied(label)}
        if self._is_true_of_all(supplied):
            chunks = chunks.filter(priority=Chunk.Priority.LIVE)
        else:
            chunks = chunks.exclude(runner__in=supplied, priority__lt=Chunk.Priority.LIVE)
        return chunks.exclude(batch_id__in=self._full_batches).exclude(
            runner__in=self._full_runners
        )

    def takes(self, chunk: Any) -> bool:
        """Whether `chunk` fits; if so it is counted in."""
        if chunk.runner in self._full_runners or chunk.batch_id in self._full_batches:
            return False
        if chunk.runner not in self._counted_elsewhere and _most_parallel(chunk.runner):
            self._count_elsewhere(chunk.runner)
            if chunk.runner in self._full_runners:
                return False
        if self._is_supplied(chunk.runner) and chunk.priority < Chunk.Priority.LIVE:
            return False
        if self._runs and self._runs + chunk.size > settings.WINDOW:
            self._is_reached = True
            return False
        of_batch = self._runs_of_batch[chunk.batch_id]
        if chunk.window and of_batch and of_batch + chunk.size > chunk.window:
            self._full_batches.add(chunk.batch_id)
            return False
        self._add(chunk.runner, chunk.batch_id, chunk.window, chunk.size, is_queued=True)
        return True

    def _count_elsewhere(self, label: str) -> None:
        """Count in the chunks of a runner with MAX_PARALLEL that are in flight at other nodes.

        Nobody else of those who know the runner releases any of it before the transaction ends.
        The locks are taken in one order, behind that of the node, so that two nodes which have
        several such runners in common do not wait for each other.
        """
        limited = {each for each in self._labels if _most_parallel(each)}
        if registry.find(label) is not None:
            limited.add(label)
        for each in sorted(limited - self._counted_elsewhere):
            pulses.lock(f"parallel:{hashlib.sha256(each.encode()).hexdigest()[:32]}")
        for each in {label, *limited} - self._counted_elsewhere:
            self._chunks_of_runner[each] += _in_flight_elsewhere(each, node_id=self._node_id)
            self._counted_elsewhere.add(each)
            self._note_whether_full(each)

    def _note_whether_full(self, label: str) -> None:
        if 0 < _most_parallel(label) <= self._chunks_of_runner[label]:
            self._full_runners.add(label)

    def _is_true_of_all(self, labels: Collection[str]) -> bool:
        """Whether `labels` are those of all of the node's runners, as far as this process knows."""
        return bool(labels) and bool(self._labels) and self._labels <= set(labels)

    @cached_property
    def _labels(self) -> set[str]:
        """Of the node's runners; all configurations are read for it, so only where it matters."""
        return set(nodes.labels_by_digest().get(self._node_digest, ()))

    def _is_supplied(self, label: str) -> bool:
        return self._spare_of_runner[label] >= SPARE_CHUNKS

    def _add(
        self, runner: str, batch_id: int | None, window: int | None, size: int, *, is_queued: bool
    ) -> None:
        self._runs += size
        self._spare_of_runner[runner] += 1 if is_queued else -1
        self._chunks_of_runner[runner] += 1
        self._note_whether_full(runner)
        if batch_id is not None and window:
            self._runs_of_batch[batch_id] += size
            if self._runs_of_batch[batch_id] >= window:
                self._full_batches.add(batch_id)


def _most_parallel(label: str) -> int:
    """The runner's MAX_PARALLEL; 1 where this process does not know it, as it may have one."""
    runner = registry.find(label)
    return 1 if runner is None else runner.MAX_PARALLEL
