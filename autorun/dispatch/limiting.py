"""The limits of a runner: LIMIT, which it may share with others, and MAX_PARALLEL, its own.

Calls at once are counted by chunks in flight, so the share of a lost worker comes back with its
lease. A chunk makes one at a time, or as many as the analysis's `concurrency`.

A rate is one time in the database, up to which calls are reserved. A worker moves it on by as long
as some calls of its chunk take at that rate, and makes them within the time that it has reserved.
So no worker's clock matters. `RetryLater(limit=True)` moves it on as well.

The database keeps no limit: the settings of the process that releases or starts a chunk count.
"""

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Subquery, Sum

from autorun.conf import settings
from autorun.declare import nodes, registry
from autorun.declare.base import Runner
from autorun.exceptions import AutorunError
from autorun.limits import Limit
from autorun.models import Chunk, Node, Pulse
from autorun.state import pulses
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.transactions import repeated_while_away

#: Seconds of a rate that a worker reserves at once, so that the others get their turn soon. They
#: are at most this part of the rate's unit: a call that starts late falls into the next unit.
SLICE, SLICE_OF_UNIT = 1.0, 1 / 60
#: Seconds of a rate that are made up for if no worker was ready, and the part of the unit.
SLACK, SLACK_OF_UNIT = 0.5, 0.01
#: The kind of the pulses up to whose times calls are reserved.
CLOCK = "rate"
#: Seconds that a worker waits at most until the limit of a runner lets a run start.
LONGEST_WAIT = 10.0
_is_paced = True


@dataclass(frozen=True)
class Bound:
    """A limit and its runners' labels; `kind` is "limit", or "parallel" for MAX_PARALLEL."""

    kind: str
    name: str
    labels: frozenset[str]
    parallel: int = 0
    per_second: float = 0.0
    unit_seconds: float = 0.0

    @property
    def lock(self) -> str:
        """The pulse that is held while chunks of the runners are released."""
        return pulses.name_for(self.kind, self.name)

    @property
    def clock(self) -> str:
        """The pulse with the time up to which calls are reserved or held back."""
        return pulses.name_for(CLOCK, self.name)

    @property
    def is_locked(self) -> bool:
        return self.parallel > 0 and self.kind != ""

    @property
    def is_counted(self) -> bool:
        """Whether chunks of other nodes count."""
        return self.parallel > 0 or len(self.labels) > 1

    @property
    def most_calls(self) -> int | None:
        """The most calls of a chunk; None for any number."""
        return max(1, round(self.per_second * SLICE)) if self.per_second else None

    def reserved_at_once(self, calls: int) -> int:
        """How many of so many calls a worker reserves at once."""
        seconds = min(SLICE, self.unit_seconds * SLICE_OF_UNIT)
        return min(calls, max(1, int(self.per_second * seconds))) if self.per_second else calls

    def seconds_ahead(self, chunk: Any, queued: int) -> float:
        """The seconds until the first call of a chunk that is started after `queued` calls."""
        reserved = getattr(chunk, _attribute(self), None)
        ahead = 0.0 if reserved is None else (reserved - chunk.now).total_seconds()
        return max(ahead, 0.0) + self.seconds_for(queued)

    def seconds_for(self, calls: int) -> float:
        return calls / self.per_second if self.per_second else 0.0


class Pace:
    """The times at which a chunk may call its body, reserved some calls at a time.

    Between two calls lies at least the interval of the rate; a late call is not made up for.
    """

    def __init__(self, bound: Bound) -> None:
        self._bound = bound
        self._interval = bound.seconds_for(1)
        self._reserved = 0
        self._next_at = 0.0

    def take_turn(self, calls: int) -> float:
        """The seconds until the next call may start; `calls` are left, with this one.

        If none is left, the time that was reserved for more is given back.
        """
        if not calls:
            self.leave()
            return 0.0
        if not self._reserved:
            self._reserved = self._bound.reserved_at_once(calls)
            due_at = time.monotonic() + reserve(self._bound, self._reserved)
            self._next_at = max(self._next_at, due_at)
        self._reserved -= 1
        seconds = max(0.0, self._next_at - time.monotonic())
        self._next_at = time.monotonic() + seconds + self._interval
        return seconds

    def leave(self, taken: int = 0) -> None:
        """Leave to others what was reserved, and so many turns that were taken in vain."""
        if (calls := self._reserved + taken) and self._interval:
            reserve(self._bound, -calls)
        self._reserved = 0


def bounds_of(label: str) -> list[Bound]:
    """The limits of a runner. One run at a time if this process does not know the runner."""
    runner = registry.find(label)
    if runner is None:
        return [Bound("", label, frozenset({label}), parallel=1)]
    found = []
    if runner.MAX_PARALLEL:
        found.append(Bound("parallel", label, frozenset({label}), runner.MAX_PARALLEL))
    if runner.LIMIT is not None:
        found.append(shared(runner.LIMIT))
    return found


def calls_at_once(label: str) -> int:
    """The calls that a chunk of the runner makes at a time, as its limits allow."""
    runner = registry.find(label)
    try:
        most = 1 if runner is None else runner.get_analysis().calls_at_once
    except AutorunError:  # in an old worker, or a check reports it
        most = 1
    return min([most, *(bound.parallel for bound in bounds_of(label) if bound.parallel)])


def calls_of(label: str, chunks: int, runs: int) -> int:
    """The calls that so many chunks of the runner, with so many runs in all, make at a time."""
    return min(chunks * calls_at_once(label), max(runs, chunks))


def calls_in_flight(labels: Iterable[str]) -> int:
    """The calls that chunks of these runners, in flight at all nodes, make at a time."""
    kinds: Any = Chunk.objects.in_flight().filter(runner__in=labels).order_by()
    counted = kinds.values_list("runner").annotate(Count("pk"), n_runs=Sum(Chunk.RUNS_LEFT))
    return sum(calls_of(*kind) for kind in counted)


def shared(name: str) -> Bound:
    """The limit of that name in LIMITS; if there is none, a check says so, and one run goes out."""
    limit = settings.LIMITS.get(name, Limit(parallel=1))
    per_second = limit.per_second if _is_paced else 0.0
    labels = frozenset(each.label for each in registry.runners() if name == each.LIMIT)
    return Bound("limit", name, labels, limit.parallel or 0, per_second, limit.unit_seconds)


@contextmanager
def unpaced() -> Iterator[None]:
    """Ignore rates, in a test."""
    global _is_paced  # noqa: PLW0603
    before, _is_paced = _is_paced, False
    try:
        yield
    finally:
        _is_paced = before


def forget_clocks() -> None:
    """Forget what is reserved and held back."""
    Pulse.objects.filter(name__startswith=f"{CLOCK}:").delete()


def reserve(bound: Bound, calls: int) -> float:
    """Reserve time for so many calls; the seconds until the first of them.

    Fewer than none give back what was reserved last.
    """
    seconds = bound.seconds_for(calls)
    slack = min(SLACK, bound.unit_seconds * SLACK_OF_UNIT) if seconds else 0.0
    move_on = partial(pulses.move_on, bound.clock, seconds, slack=slack)
    return repeated_while_away(move_on) - seconds


def hold_back(runner: Runner, seconds: float) -> None:
    """For so many seconds, start no call of a runner that shares this one's limit."""
    if runner.LIMIT is not None:
        clock = shared(runner.LIMIT).clock
        repeated_while_away(lambda: pulses.note_at_least(clock, from_now(seconds)))


def with_clocks(chunks: QuerySet[Any], bounds: Iterable[Bound]) -> QuerySet[Any]:
    """The `chunks`, each with the database's time, and that up to which each limit is reserved."""
    times: dict[str, Any] = {
        _attribute(each): Subquery(Pulse.objects.filter(name=each.clock).values("beat_at"))
        for each in bounds
        if each.kind == "limit"
    }
    return chunks.annotate(now=DatabaseNow(), **times) if times else chunks


def nodes_sharing(label: str, node_id: int) -> list[int]:
    """The runner's node, and others that have chunks waiting for its limit, in order of release.

    Those with saved rows come first, the others at random, so that each gets its share.
    """
    found = [node_id]
    for bound in bounds_of(label):
        if bound.kind == "limit" and len(bound.labels) > 1:
            others = _waiting(bound, node_id).values_list("pk", "is_urgent")
            urgent = dict(others)
            found = [node_id, *urgent]
            random.shuffle(found)
            found.sort(key=lambda pk: urgent.get(pk, False), reverse=True)
    return found


def is_wanted_elsewhere(bound: Bound, node_id: int) -> bool:
    """Whether a saved row of another node is waiting for the limit."""
    if bound.kind != "limit" or len(bound.labels) < 2:
        return False
    return _waiting(bound, node_id).filter(is_urgent=True).exists()


def _waiting(bound: Bound, node_id: int) -> QuerySet[Any]:
    """The other nodes with chunks that only the limit keeps waiting."""
    digests = [
        digest
        for digest, labels in nodes.runners_by_node().labels.items()
        if bound.labels & set(labels)
    ]
    chunks = Chunk.objects.of(OuterRef("pk"))
    is_due = Q(not_before=None) | Q(not_before__lte=DatabaseNow())
    due = chunks.waiting().filter(is_due, runner__in=bound.labels)
    found: Any = Node.objects.filter(digest__in=digests, paused_at=None).exclude(pk=node_id)
    found = found.filter(Exists(due), ~Exists(chunks.held_up()))
    is_urgent = Exists(due.filter(priority=Chunk.Priority.LIVE))
    waiting: QuerySet[Any] = found.annotate(is_urgent=is_urgent)
    return waiting


def _attribute(bound: Bound) -> str:
    return bound.clock.replace(":", "_")
