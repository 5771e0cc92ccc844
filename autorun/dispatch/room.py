"""The limits that a release keeps: the node's window, a batch's window, those of a runner."""

from collections import Counter
from collections.abc import Iterable, Set
from operator import attrgetter
from typing import Any, NamedTuple

from django.db.models import Count, QuerySet, Sum

from autorun.conf import settings
from autorun.dispatch import limiting
from autorun.models import Chunk
from autorun.state import pulses

#: A runner's chunks in the broker beyond one for each running; a saved row waits behind them.
SPARE_CHUNKS = 2
#: A chunk goes out if its limit lets its first call start within so many seconds.
AHEAD = 2.0


class InFlight(NamedTuple):
    """Chunks of a node that have the state, runner and batch in common, and their runs."""

    node_id: int
    state: int
    runner: str
    batch_id: int | None
    window: int | None  # of the batch
    chunks: int
    runs: int


class Room:
    """How many more chunks of one node may go out beside those `in_flight`, counted by kind.

    A parked chunk among them has met an error that affects all rows of its runner: no other is
    released.

    A chunk larger than a window goes out when nothing else in that window is in flight.

    A runner is *supplied* once its workers' next chunks are in the broker, or if the next share of
    its limit is for a saved row of another node; then only its saved rows go out. When all runners
    of the node are full or supplied, no waiting chunk is read beyond the first page.
    """

    def __init__(self, in_flight: Iterable[InFlight], node_id: int, labels: Set[str]) -> None:
        self.full_batches: set[int] = set()
        self._node_id = node_id
        self._labels = labels  # of the node's runners that this process knows
        self._runs = 0
        self._is_reached = False
        self._runs_of_batch: Counter[int | None] = Counter()
        self._calls_of_runner: Counter[str] = Counter()  # at once, if it has a limit
        self._queued_runs: Counter[str] = Counter()  # by runner
        self._full_runners: set[str] = set()
        self._spare_of_runner: Counter[str] = Counter()
        self._yielding_runners: set[str] = set()
        self._wanted_elsewhere: set[limiting.Bound] = set()
        self._counted_elsewhere: set[str] = set()
        for _, state, runner, batch_id, window, chunks, runs in in_flight:
            if state == Chunk.State.PARKED:
                self._full_runners.add(runner)
            else:
                is_queued = state == Chunk.State.QUEUED
                self._add(runner, batch_id, window, int(runs), chunks=chunks, is_queued=is_queued)

    def is_full(self) -> bool:
        """Whether the node takes no more, or could not take the last chunk that was offered."""
        return (
            self._is_reached
            or self._runs >= settings.WINDOW
            or self._is_true_of_all(self._full_runners)
        )

    def is_full_after(self, chunk: Chunk) -> bool:
        """Whether the node takes none of the chunks that follow `chunk` in their order."""
        is_saved = chunk.priority == Chunk.Priority.LIVE
        return self.is_full() or (not is_saved and self._is_true_of_all(self._supplied()))

    def is_open_to_all(self) -> bool:
        """Whether `open_to` leaves all chunks as they are."""
        is_closed = self._full_runners or self.full_batches or self._bounds()
        return not (is_closed or self._supplied())

    def open_to(self, chunks: QuerySet[Chunk]) -> QuerySet[Chunk]:
        """The `chunks` whose batch and runner may take another one, with their limits' times."""
        supplied = self._supplied()
        if self._is_true_of_all(supplied):
            chunks = chunks.filter(priority=Chunk.Priority.LIVE)
        else:
            chunks = chunks.exclude(runner__in=supplied, priority__lt=Chunk.Priority.LIVE)
        chunks = chunks.exclude(batch_id__in=self.full_batches)
        return limiting.with_clocks(chunks.exclude(runner__in=self._full_runners), self._bounds())

    def takes(self, chunk: Any) -> bool:
        """Whether `chunk` fits; if it does, it is counted."""
        if chunk.runner in self._full_runners or chunk.batch_id in self.full_batches:
            return False
        if self._is_at_a_limit(chunk):
            return False
        if self._is_supplied(chunk.runner) and chunk.priority < Chunk.Priority.LIVE:
            return False
        if self._runs and self._runs + chunk.size > settings.WINDOW:
            self._is_reached = True
            return False
        of_batch = self._runs_of_batch[chunk.batch_id]
        if chunk.window and of_batch and of_batch + chunk.size > chunk.window:
            self.full_batches.add(chunk.batch_id)
            return False
        self._add(chunk.runner, chunk.batch_id, chunk.window, chunk.size, is_queued=True)
        return True

    def _is_at_a_limit(self, chunk: Any) -> bool:
        bounds = limiting.bounds_of(chunk.runner)
        if bounds and chunk.runner not in self._counted_elsewhere:
            self._count_elsewhere(chunk.runner)
        calls = limiting.calls_of(chunk.runner, 1, chunk.size) if bounds else 1
        for bound in bounds:
            if bound.parallel and bound.parallel - self._in_flight(bound) < calls:
                self._full_runners.add(chunk.runner)
            queued = sum(self._queued_runs[label] for label in bound.labels)
            # If nothing is in flight, no chunk ends, so a round of upkeep releases the next one.
            ahead = AHEAD + (0 if self._in_flight(bound) else settings.UPKEEP_INTERVAL)
            if bound.seconds_ahead(chunk, queued) > ahead:
                self._full_runners |= bound.labels
        return chunk.runner in self._full_runners

    def _count_elsewhere(self, label: str) -> None:
        """Count the chunks of runners with a limit that are in flight at other nodes.

        The lock keeps other processes that know the runner from releasing its chunks until the
        transaction ends. One order of locks prevents deadlocks between nodes that share runners.
        """
        bounds = self._bounds(label)
        for lock in sorted({bound.lock for bound in bounds if bound.is_locked}):
            pulses.hold(lock)
        limited = {each for bound in bounds if bound.is_counted for each in bound.labels}
        if limited := limited - self._counted_elsewhere:
            elsewhere = Chunk.objects.in_flight().filter(runner__in=limited)
            kinds = elsewhere.exclude(node=self._node_id).order_by().values_list("runner", "state")
            for runner, state, chunks, runs in kinds.annotate(
                Count("pk"), n_runs=Sum(Chunk.RUNS_LEFT)
            ):
                self._calls_of_runner[runner] += limiting.calls_of(runner, chunks, runs)
                self._queued_runs[runner] += runs if state == Chunk.State.QUEUED else 0
        self._counted_elsewhere |= {label, *limited}
        for bound in bounds:
            if limiting.is_wanted_elsewhere(bound, self._node_id):
                self._wanted_elsewhere.add(bound)
            self._note_whether_full(bound)

    def _note_whether_full(self, bound: limiting.Bound) -> None:
        left = bound.parallel - self._in_flight(bound)
        if bound.parallel and left <= 0:
            self._full_runners |= bound.labels
        if bound in self._wanted_elsewhere and left <= 1:
            self._yielding_runners |= bound.labels

    def _in_flight(self, bound: limiting.Bound) -> int:
        return sum(self._calls_of_runner[label] for label in bound.labels)

    def _bounds(self, *labels: str) -> set[limiting.Bound]:
        return {bound for label in {*self._labels, *labels} for bound in limiting.bounds_of(label)}

    def _is_true_of_all(self, labels: Set[str]) -> bool:
        return bool(self._labels) and self._labels <= labels

    def _supplied(self) -> set[str]:
        known = {*self._spare_of_runner, *self._yielding_runners}
        return {label for label in known if self._is_supplied(label)}

    def _is_supplied(self, label: str) -> bool:
        return label in self._yielding_runners or self._spare_of_runner[label] >= SPARE_CHUNKS

    def _add(
        self,
        runner: str,
        batch_id: int | None,
        window: int | None,
        runs: int,
        *,
        is_queued: bool,
        chunks: int = 1,
    ) -> None:
        self._runs += runs
        self._spare_of_runner[runner] += chunks if is_queued else -chunks
        self._queued_runs[runner] += runs if is_queued else 0
        if bounds := limiting.bounds_of(runner):
            self._calls_of_runner[runner] += limiting.calls_of(runner, chunks, runs)
        for bound in bounds:
            self._note_whether_full(bound)
        if batch_id is not None and window:
            self._runs_of_batch[batch_id] += runs
            if self._runs_of_batch[batch_id] >= window:
                self.full_batches.add(batch_id)


def is_at_its_limit(label: str) -> bool:
    """Whether what is in flight, at all nodes, leaves no room for a chunk of the runner.

    Nothing changes that until the transaction ends.
    """
    bounds = sorted(
        (each for each in limiting.bounds_of(label) if each.parallel), key=attrgetter("lock")
    )
    for bound in bounds:
        pulses.hold(bound.lock)
    return any(
        bound.parallel - limiting.calls_in_flight(bound.labels) < limiting.calls_at_once(label)
        for bound in bounds
    )
