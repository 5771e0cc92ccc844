"""Reasons why work waits: all rows fail, STOP_AFTER paused it, it is damped, a limit is in use."""

import datetime as dt
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, DateTimeField, F, Max, Min, Q, Sum, Value
from django.utils import timezone
from django.utils.translation import gettext as _, ngettext

from autorun.conf import settings
from autorun.declare.nodes import labels_by_id
from autorun.dispatch.limiting import Bound, calls_of, shared
from autorun.models import Batch, Chunk, Pulse, SpilledTrigger
from autorun.planning.damping import DAMPED
from autorun.state.clock import DatabaseNow, first_chunk_id_at, from_now
from autorun.state.managers import ChunkQuerySet
from autorun.state.words import moment, number, some_of

MOST_SHOWN = 20
#: The age of the chunks among which damped ones are found.
DAMPED_WITHIN = dt.timedelta(minutes=10)
#: Seconds over which calls are counted.
MINUTE = 60.0
#: Workers reserve at most this many seconds and one call ahead. Beyond that, the limit is held
#: back.
AHEAD = 15.0
CALLS = F("succeeded") + F("failed") + F("not_applicable")
NOW = DatabaseNow()


@dataclass(frozen=True)
class HeldUp:
    """Runs or saved rows of one runner that wait for the same reason.

    Without a `next_try`, they wait for a worker that has the runner and the analysis, or for the
    `batch` that STOP_AFTER has paused to be resumed.
    """

    runner: str
    what: str
    reason: str
    since: dt.datetime
    next_try: dt.datetime | None = None
    batch: int | None = None

    @property
    def is_damped(self) -> bool:
        """Whether its rows seem to change their own input."""
        return self.reason == DAMPED


def held_up(label: str | None = None) -> list[HeldUp]:
    """The runs and saved rows that wait so, of all runners or of one; one query."""
    of_runner = {} if label is None else {"runner": label}
    columns = ("runner", "reason")
    parked = Chunk.objects.parked().filter(**of_runner).values_list(*columns)
    spilled = SpilledTrigger.objects.exclude(reason="").filter(**of_runner).values_list(*columns)
    stopped = Batch.objects.filter(state=Batch.State.PAUSED, **of_runner).exclude(reason="")
    since, none = Min("created_at"), {"batch": Value(0)}
    never = Value(None, output_field=DateTimeField())
    found = parked.annotate(number=Sum("size"), since=since, next_try=Max("not_before"), **none)
    # A damped row waits for a minute: the older ones of very many chunks are not read.
    recent = Q(pk__gte=first_chunk_id_at(timezone.now() - DAMPED_WITHIN))
    damped = Chunk.objects.unfinished().filter(recent, postponed_by=DAMPED, **of_runner)
    found = found.union(
        damped.values_list("runner", "postponed_by").annotate(
            number=Sum("size"), since=since, next_try=Max("not_before"), **none
        ),
        spilled.annotate(number=Value(0), since=since, next_try=Max("expires_at"), **none),
        stopped.values_list(*columns).annotate(
            number=Value(0), since=F("created_at"), next_try=never, batch=F("pk")
        ),
        all=True,
    )
    return [
        HeldUp(runner, _what(runs, batch, reason), reason, began_at, next_try, batch or None)
        for runner, reason, runs, began_at, next_try, batch in found.order_by(*columns)[:MOST_SHOWN]
    ]


def _what(runs: int, batch: int, reason: str) -> str:
    if batch:
        return _("batch %s paused") % batch
    words = ngettext("%s run parked", "%s runs parked", runs)
    if reason == DAMPED:
        words = ngettext("%s run damped", "%s runs damped", runs)
    return words % number(runs) if runs else _("saved rows not planned")


@dataclass(frozen=True)
class Holder:
    """Chunks of one runner that have `calls` of a limit; the worker is '' while they are queued."""

    runner: str
    worker: str
    calls: int
    runs: int
    since: dt.datetime | None

    def __str__(self) -> str:
        runs = ngettext("%s run", "%s runs", self.runs) % number(self.runs)
        where = _("on %s") % self.worker if self.worker else _("in the queue")
        return f"{self.runner} {where}: {runs}"


@dataclass(frozen=True)
class LimitInUse:
    """One of LIMITS; `calls` of at most `calls_a_minute` have ended within the last minute."""

    name: str
    runners: tuple[str, ...]
    parallel: int
    calls: int
    calls_a_minute: float
    waiting: int
    held_back_until: dt.datetime | None
    holders: tuple[Holder, ...]

    @property
    def in_use(self) -> int:
        """The calls in progress and those of queued chunks, which count as well."""
        return sum(holder.calls for holder in self.holders)

    @property
    def in_use_in_words(self) -> str:
        return some_of(self.in_use, self.parallel)

    @property
    def calls_in_words(self) -> str:
        return some_of(self.calls, self.calls_a_minute and max(1, round(self.calls_a_minute)))

    @property
    def waiting_in_words(self) -> str:
        return number(self.waiting)

    def __str__(self) -> str:
        parts = [_("%s in use") % self.in_use_in_words]
        if self.calls_a_minute:
            parts.append(_("%s calls this minute") % self.calls_in_words)
        if self.waiting:
            waiting = ngettext("%s run waits", "%s runs wait", self.waiting)
            parts.append(waiting % number(self.waiting))
        if self.held_back_until is not None:
            parts.append(_("held back until %s") % moment(self.held_back_until))
        return f"{self.name}: {', '.join(parts)}"


def limits_in_use(names: Iterable[str] | None = None) -> list[LimitInUse]:
    """The limits of these names, by default all of LIMITS, in their order; five queries for all."""
    bounds = [shared(name) for name in sorted(settings.LIMITS if names is None else names)]
    labels = {label for bound in bounds for label in bound.labels}
    if not bounds:
        return []
    ids = [node_id for node_id, of in labels_by_id().items() if labels & {*of}]
    chunks: ChunkQuerySet[Chunk] = Chunk.objects.filter(runner__in=labels)
    of_nodes = chunks.filter(node__in=ids)
    ended = of_nodes.unfolded().filter(finished_at__gt=from_now(-MINUTE))
    # Those of running chunks are recorded every second.
    calls = _by_runner(ended, CALLS) + _by_runner(chunks.running(), CALLS)
    waiting = _by_runner(of_nodes.waiting(), F("size"))
    holders = list(_holders(chunks))
    clocks = Pulse.objects.filter(name__in=[bound.clock for bound in bounds])
    reserved = {name: times for name, *times in clocks.values_list("name", "beat_at", NOW)}
    return [
        LimitInUse(
            name=bound.name,
            runners=tuple(sorted(bound.labels)),
            parallel=bound.parallel,
            calls=sum(calls[label] for label in bound.labels),
            calls_a_minute=bound.per_second * MINUTE,
            waiting=sum(waiting[label] for label in bound.labels),
            held_back_until=_held_back_until(bound, *reserved.get(bound.clock, ())),
            holders=tuple(holder for holder in holders if holder.runner in bound.labels),
        )
        for bound in bounds
    ]


def _holders(chunks: ChunkQuerySet[Chunk]) -> Iterator[Holder]:
    kinds: Any = chunks.in_flight().order_by("runner", "worker").values_list("runner", "worker")
    left: Any = Chunk.RUNS_LEFT
    found = kinds.annotate(chunks=Count("pk"), runs=Sum(left), since=Min("started_at"))
    for runner, worker, number_of, runs, since in found:
        yield Holder(runner, worker, calls_of(runner, number_of, runs), runs, since)


def _held_back_until(
    bound: Bound, until: dt.datetime | None = None, now: dt.datetime | None = None
) -> dt.datetime | None:
    if until is None or now is None:
        return None
    ahead = (until - now).total_seconds()
    return until if ahead > AHEAD + bound.seconds_for(1) else None


def _by_runner(chunks: ChunkQuerySet[Chunk], expression: Any) -> Counter[str]:
    by_runner: Any = chunks.order_by().values_list("runner")
    return Counter(dict(by_runner.annotate(total=Sum(expression))))
