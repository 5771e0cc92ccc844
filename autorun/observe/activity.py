"""Recent activity of nodes, in a few queries however many nodes there are."""

import datetime as dt
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from django.db.models import Q, QuerySet, Sum
from django.db.models.functions import Coalesce, TruncHour
from django.utils import timezone

from autorun.models import Batch, Chunk, Node
from autorun.state.clock import DatabaseNow
from autorun.upkeep.folding import hour_of

HOURS = 24
STARTED = (Chunk.State.RUNNING, Chunk.State.FINISHED)
#: The time of a run is measured over the last seconds, so that it follows bodies that have just
#: changed, and the rate over the last minute; both over a longer period if little was done, and
#: over at most so many chunks.
LATEST_SECONDS = 10.0
LAST_SECONDS = 60.0
RATE_SECONDS = 600.0
RECENT_CHUNKS = 1_000
#: A period counts if so many runs finished in it; the last minute also if half of it was spent at
#: work.
ENOUGH_RUNS = 10
SHORTEST = 0.001


@dataclass(frozen=True)
class Hour:
    """Runs that finished within one hour."""

    succeeded: int = 0
    failed: int = 0


#: The start and end of a chunk or of a part of it, and its number of runs.
Stretch = tuple[dt.datetime, dt.datetime, float]


@dataclass(frozen=True)
class Activity:
    """A node's last 24 hours, the oldest first.

    `median_seconds` is the time of a run. `per_second` is the recent rate over all the time, and
    that of the work in progress in particular; `per_second_at_work` is the rate while at least one
    chunk was running.
    """

    hours: Sequence[Hour] = field(default_factory=lambda: (Hour(),) * HOURS)
    per_second: float = 0.0
    per_second_at_work: float = 0.0
    median_seconds: float | None = None

    def seconds_for(self, runs: int, *, run_seconds: float | None) -> float | None:
        """The time for `runs` new runs at the recent rate; None if no run has been measured.

        At most the time they take one after the other, each in `run_seconds`.
        """
        seconds = [] if run_seconds is None else [run_seconds]
        if self.per_second_at_work:
            seconds.append(1 / self.per_second_at_work)
        return runs * min(seconds) if seconds else None

    def seconds_left(self, runs: int) -> float | None:
        """The time until `runs` runs in progress have finished; None while none finishes."""
        return runs / self.per_second if runs and self.per_second else None


def activity_by_node(nodes: Iterable[Node]) -> dict[int, Activity]:
    """The last day of each node, by primary key; two queries."""
    by_id = {node.pk: node for node in nodes}
    now = timezone.now()
    # Chunks that finished within RATE_SECONDS are not folded yet.
    started = Chunk.objects.filter(node__in=by_id, state__in=STARTED).unfolded()
    hours = _hours(by_id.values(), started.finished(), now)
    recent = _recent(started, now, by="node_id")
    return {pk: Activity(hours=hours[pk], **recent.get(pk, {})) for pk in by_id}


def activity_of(batch: Batch) -> Activity:
    """The recent activity of the batch itself, without hours; if it has none, of its node."""
    started = Chunk.objects.filter(batch=batch, state__in=STARTED).unfolded()
    own = _recent(started, timezone.now(), by="batch_id").get(batch.pk)
    return replace(Activity(), **own) if own else activity_by_node([batch.node])[batch.node_id]


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


def _recent(chunks: QuerySet[Chunk], now: dt.datetime, *, by: str) -> dict[int, dict[str, Any]]:
    """The rates and the median of each node, from its newest chunks; those running count so far."""
    is_running = Q(state=Chunk.State.RUNNING)
    newest: Any = (
        chunks.filter(is_running | Q(finished_at__isnull=False), started_at__isnull=False)
        .annotate(until=Coalesce("finished_at", DatabaseNow()))
        .order_by("-until")
        .values_list(by, "started_at", "until", "succeeded", "failed", "state")[:RECENT_CHUNKS]
    )
    since = now - dt.timedelta(seconds=RATE_SECONDS)
    found: dict[int, list[Stretch]] = {}
    for pk, started_at, until, succeeded, failed, state in newest:
        runs = succeeded + failed
        # Of older chunks only those with failures are kept, which are not representative.
        if (runs or state == Chunk.State.RUNNING) and (until >= since or not failed):
            found.setdefault(pk, []).append((min(started_at, until), until, runs))
    measured = {pk: _measured(stretches, now=now) for pk, stretches in found.items()}
    return {pk: each for pk, each in measured.items() if each}


def _measured(stretches: Sequence[Stretch], *, now: dt.datetime) -> dict[str, float]:
    """The median of a run and the rates, over the shortest period in which enough was done."""
    done = [each for each in stretches if each[2]]
    latest, minute, all_recent = (
        _clipped(stretches, since=now - dt.timedelta(seconds=seconds))
        for seconds in (LATEST_SECONDS, LAST_SECONDS, RATE_SECONDS)
    )
    is_busy = _seconds_at_work(minute) >= LAST_SECONDS / 2 or _runs(minute) >= ENOUGH_RUNS
    parts = minute if is_busy and _runs(minute) else all_recent
    if not _runs(parts):
        return {"median_seconds": _median(done)} if done else {}
    recent = latest if _runs(latest) >= ENOUGH_RUNS else parts
    finished = done if recent is all_recent else [each for each in recent if each[2]]
    run_seconds = _seconds(each for each in recent if each[2]) / _runs(recent)
    unfinished = [each for each in latest if not each[2]]
    if 2 * _seconds(unfinished) > _seconds(latest):
        # Bodies may just have become slower: a run now takes at least that long.
        longer = [each for each in parts if not each[2]]
        run_seconds = max(run_seconds, _seconds(longer) / len(longer))
    return {"median_seconds": _median(finished), **_rates(parts, recent, run_seconds, now=now)}


def _clipped(stretches: Iterable[Stretch], *, since: dt.datetime) -> list[Stretch]:
    """The parts of the stretches after `since`, each with its share of the runs."""
    found = []
    for started, until, runs in stretches:
        if until > since:
            begin = max(started, since)
            share = (until - begin) / (until - started) if until > started else 1.0
            found.append((begin, until, runs * share))
    return found


def _rates(
    parts: Sequence[Stretch], recent: Sequence[Stretch], run_seconds: float, *, now: dt.datetime
) -> dict[str, float]:
    """Runs per second, over all the time and over the time that at least one chunk was running."""
    # If the oldest chunk started later, measure over the shorter time.
    covered = (now - min(started for started, *_ in parts)).total_seconds()
    return {
        "per_second": _seconds(parts) / max(1.0, covered) / max(SHORTEST, run_seconds),
        # Clocks are not exact below a millisecond.
        "per_second_at_work": _runs(recent) / max(SHORTEST, _seconds_at_work(recent)),
    }


def _runs(stretches: Iterable[Stretch]) -> float:
    return sum(number for *_, number in stretches)


def _seconds(stretches: Iterable[Stretch]) -> float:
    """The time of all chunks together."""
    return sum((until - started).total_seconds() for started, until, _ in stretches)


def _seconds_at_work(stretches: Iterable[Stretch]) -> float:
    """The time in which at least one of the stretches was running."""
    at_work, up_to = dt.timedelta(), None
    for started, finished, _ in sorted(stretches):
        begin = started if up_to is None else max(started, up_to)
        at_work += max(dt.timedelta(), finished - begin)
        up_to = finished if up_to is None else max(up_to, finished)
    return at_work.total_seconds()


def _median(stretches: Iterable[Stretch]) -> float:
    """The median of the time of a run, in seconds."""
    weighted = [
        ((until - started).total_seconds() / runs, runs) for started, until, runs in stretches
    ]
    half = sum(weight for _, weight in weighted) / 2
    passed = 0.0
    for value, weight in sorted(weighted):
        passed += weight
        if passed >= half:
            return value
    return 0.0
