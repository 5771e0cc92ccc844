"""The limits that a release keeps: the node's window, a batch's window, a runner's MAX_PARALLEL."""

from collections import Counter
from collections.abc import Iterable, Set
from typing import Any, NamedTuple

from django.db.models import QuerySet

from autorun.conf import settings
from autorun.declare import registry
from autorun.models import Chunk
from autorun.state import pulses

#: A runner's chunks in the broker beyond one for each running; a saved row waits behind them.
SPARE_CHUNKS = 2


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

    A parked chunk among them has met an error that hits all rows of its runner: no other goes out.

    A chunk larger than a window goes out when nothing else in that window is in flight.

    A runner is *supplied* once its workers' next chunks are in the broker; then only its saved rows
    go out. When all runners of the node are full or supplied, no waiting chunk is read.
    """

    def __init__(
        self,
        in_flight: Iterable[InFlight],
        node_id: int,
        labels: Set[str],
    ) -> None:
        self._node_id = node_id
        self._labels = labels  # of the node's runners that this process knows
        self._runs = 0
        self._is_reached = False
        self._runs_of_batch: Counter[int | None] = Counter()
        self._chunks_of_runner: Counter[str] = Counter()
        self._full_batches: set[int] = set()
        self._full_runners: set[str] = set()
        self._spare_of_runner: Counter[str] = Counter()
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

    def open_to(self, chunks: QuerySet[Chunk]) -> QuerySet[Chunk]:
        """The `chunks` whose batch and runner may take another one."""
        supplied = self._supplied()
        if self._is_true_of_all(supplied):
            chunks = chunks.filter(priority=Chunk.Priority.LIVE)
        else:
            chunks = chunks.exclude(runner__in=supplied, priority__lt=Chunk.Priority.LIVE)
        return chunks.exclude(batch_id__in=self._full_batches).exclude(
            runner__in=self._full_runners
        )

    def takes(self, chunk: Any) -> bool:
        """Whether `chunk` fits; if it does, it is counted."""
        if chunk.runner in self._full_runners or chunk.batch_id in self._full_batches:
            return False
        if chunk.runner not in self._counted_elsewhere and most_parallel(chunk.runner):
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
        """Count the chunks of runners with MAX_PARALLEL that are in flight at other nodes.

        The lock keeps other processes that know the runner from releasing its chunks until the
        transaction ends. One order of locks prevents deadlocks between nodes that share runners.
        """
        limited = {each for each in self._labels if most_parallel(each)}
        if registry.find(label) is not None:
            limited.add(label)
        for each in sorted(limited - self._counted_elsewhere):
            pulses.hold(pulses.name_for("parallel", each))
        for each in {label, *limited} - self._counted_elsewhere:
            elsewhere = Chunk.objects.in_flight().filter(runner=each).exclude(node=self._node_id)
            self._chunks_of_runner[each] += elsewhere.count()
            self._counted_elsewhere.add(each)
            self._note_whether_full(each)

    def _note_whether_full(self, label: str) -> None:
        if 0 < most_parallel(label) <= self._chunks_of_runner[label]:
            self._full_runners.add(label)

    def _is_true_of_all(self, labels: Set[str]) -> bool:
        return bool(self._labels) and self._labels <= labels

    def _supplied(self) -> set[str]:
        return {label for label in self._spare_of_runner if self._is_supplied(label)}

    def _is_supplied(self, label: str) -> bool:
        return self._spare_of_runner[label] >= SPARE_CHUNKS

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
        self._chunks_of_runner[runner] += chunks
        self._note_whether_full(runner)
        if batch_id is not None and window:
            self._runs_of_batch[batch_id] += runs
            if self._runs_of_batch[batch_id] >= window:
                self._full_batches.add(batch_id)


def is_at_its_limit(label: str) -> bool:
    """Whether MAX_PARALLEL chunks of the runner are in flight, at all nodes; until the commit."""
    most = most_parallel(label)
    if most:
        pulses.hold(pulses.name_for("parallel", label))
    return 0 < most <= Chunk.objects.in_flight().filter(runner=label).count()


def most_parallel(label: str) -> int:
    """The runner's MAX_PARALLEL; 1 if this process does not know the runner, which may have one."""
    runner = registry.find(label)
    return 1 if runner is None else runner.MAX_PARALLEL
