"""Recent activity of nodes, in a few queries however many nodes there are."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db.models import Count, IntegerField, Q, QuerySet, Sum, Value
from django.db.models.functions import TruncHour
from django.utils import timezone

from autorun.models import Batch, Chunk, Node
from autorun.state.clock import DatabaseNow, from_now
from autorun.upkeep.folding import hour_of

HOURS = 24
#: The rate is measured over this time, and the time of a run over this many chunks.
RATE_SECONDS = 600.0
RECENT_CHUNKS = 1_000
#: Work that no worker has started or continued for this long counts as stuck.
STUCK_SECONDS = 30.0


@dataclass(frozen=True)
class Hour:
    """Runs that finished within one hour."""

    succeeded: int = 0
    failed: int = 0


#: The start and end of a chunk, and its number of runs.
Stretch = tuple[dt.datetime, dt.datetime, int]


@dataclass(frozen=True)
class Activity:
    """A node's last 24 hours, the oldest first.

    `median_seconds` is the time of a run. `per_second` is the recent rate over all the time,
    `per_second_at_work` the rate while at least one chunk was running.
    """

    hours: Sequence[Hour] = field(default_factory=lambda: (Hour(),) * HOURS)
    per_second: float = 0.0
    per_second_at_work: float = 0.0
    median_seconds: float | None = None

    def seconds_for(self, runs: int, *, run_seconds: float | None) -> float | None:
        """The time for `runs` runs at the recent rate; None if no run has been measured.

        At most the time they take one after the other, each in `run_seconds`.
        """
        seconds = [] if run_seconds is None else [run_seconds]
        if self.per_second_at_work:
            seconds.append(1 / self.per_second_at_work)
        return runs * min(seconds) if seconds else None


def stuck_nodes(node_ids: Iterable[int]) -> set[int]:
    """The nodes whose tasks have been queued for long while no worker is at work on them.

    That is, no worker runs a chunk of theirs, or none goes on planning a batch. One query.
    """
    ids = list(node_ids)
    long_ago = from_now(-STUCK_SECONDS)
    is_held = Q(state=Chunk.State.RUNNING, expires_at__gt=DatabaseNow())
    is_left = Q(state=Chunk.State.QUEUED, published_at__lte=long_ago)
    is_left |= Q(state=Chunk.State.RUNNING, expires_at__lte=long_ago)
    chunks: Any = Chunk.objects.filter(is_held | is_left, node__in=ids).order_by()
    batches: Any = Batch.objects.unplanned().filter(expires_at__lte=long_ago, node__in=ids)
    found = chunks.values_list("node_id").annotate(held=Count("pk", filter=is_held))
    left = batches.values_list("node_id", Value(0, IntegerField()))
    return {pk for pk, held in found.union(left, all=True) if not held}


def activity_by_node(nodes: Iterable[Node]) -> dict[int, Activity]:
    """The last day of each node, by primary key; two queries."""
    by_id = {node.pk: node for node in nodes}
    now = timezone.now()
    # Chunks that finished within RATE_SECONDS are not folded yet.
    ended = Chunk.objects.filter(node__in=by_id).unfolded().finished()
    hours = _hours(by_id.values(), ended, now)
    recent = _recent(ended, now)
    return {pk: Activity(hours=hours[pk], **recent.get(pk, {})) for pk in by_id}


def _hours(
    nodes: Iterable[Node], ended: QuerySet[Chunk], now: dt.datetime
) -> dict[int, Sequence[Hour]]:
    hours = range(hour_of(now) - HOURS + 1, hour_of(now) + 1)
    first = dt.datetime.fromtimestamp(hours[0] * 3600, tz=dt.UTC)
    sums: Any = (
        ended.filter(finished_at__gte=first)
        .values_list("node_id", TruncHour("finished_at", tzinfo=dt.UTC))
        .annotate(Sum("succeeded"), Sum("failed"))
        .order_by()
    )
    found = {(pk, hour_of(hour)): counts for pk, hour, *counts in sums}
    return {
        node.pk: tuple(
            Hour(succeeded + node.folded_hours.get(str(hour), 0), failed)
            for hour in hours
            for succeeded, failed in [found.get((node.pk, hour), (0, 0))]
        )
        for node in nodes
    }


def _recent(ended: QuerySet[Chunk], now: dt.datetime) -> dict[int, dict[str, float]]:
    chunks: Any = list(
        ended.filter(started_at__isnull=False, finished_at__isnull=False)
        .order_by("-finished_at")
        .values_list("node_id", "started_at", "finished_at", "succeeded", "failed")[:RECENT_CHUNKS]
    )
    since = now - dt.timedelta(seconds=RATE_SECONDS)
    recent: dict[int, list[Stretch]] = {}
    times: dict[int, list[tuple[float, int]]] = {}
    for node_id, started_at, finished_at, succeeded, failed in chunks:
        if not (runs := succeeded + failed):
            continue
        seconds = max(0.0, (finished_at - started_at).total_seconds())
        # Of older chunks only those with failures are kept, which are not representative.
        if finished_at >= since or not failed:
            times.setdefault(node_id, []).append((seconds / runs, runs))
        if finished_at >= since:
            recent.setdefault(node_id, []).append((min(started_at, finished_at), finished_at, runs))
    return {
        node_id: {
            "median_seconds": _median(weighted),
            **(_rates(recent[node_id], since=since, now=now) if node_id in recent else {}),
        }
        for node_id, weighted in times.items()
    }


def _rates(
    stretches: Sequence[Stretch], *, since: dt.datetime, now: dt.datetime
) -> dict[str, float]:
    """Runs per second, over all the time and over the time that at least one chunk was running."""
    runs = sum(number for *_, number in stretches)
    first = min(started for started, *_ in stretches)
    # If the oldest chunk started within RATE_SECONDS, measure over the shorter time.
    covered = (now - max(since, first)).total_seconds()
    at_work, up_to = dt.timedelta(), first
    for started, finished, _ in sorted(stretches):
        at_work += max(dt.timedelta(), finished - max(started, up_to))
        up_to = max(up_to, finished)
    return {
        "per_second": runs / max(1.0, covered),
        # Clocks are not exact below a millisecond.
        "per_second_at_work": runs / max(0.001, at_work.total_seconds()),
    }


def _median(weighted: list[tuple[float, int]]) -> float:
    half = sum(weight for _, weight in weighted) / 2
    passed = 0
    for value, weight in sorted(weighted):
        passed += weight
        if passed >= half:
            return value
    return 0.0
