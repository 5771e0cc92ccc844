"""The limits in LIMITS: who has a share of each now, and what waits for one."""

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from django.db.models import Count, F, Min, Sum

from autorun.conf import settings
from autorun.declare.nodes import runners_by_node
from autorun.dispatch.limiting import Bound, shared
from autorun.models import Chunk, Node, Pulse
from autorun.state.clock import from_now
from autorun.state.managers import ChunkQuerySet
from autorun.state.words import counted, moment, number

#: Seconds over which calls are counted.
MINUTE = 60.0
#: Workers reserve no further ahead than so many seconds and one call: beyond that, it is held back.
AHEAD = 15.0


@dataclass(frozen=True)
class Holder:
    """Chunks of one runner that have shares of a limit; the worker is '' while they are queued."""

    runner: str
    worker: str
    chunks: int
    runs: int
    since: dt.datetime | None


@dataclass(frozen=True)
class LimitInUse:
    """One of LIMITS; `calls` of at most `calls_a_minute` have ended within the last minute."""

    name: str
    runners: tuple[str, ...]
    parallel: int
    in_use: int
    calls: int
    calls_a_minute: float
    waiting: int
    held_back_until: dt.datetime | None
    holders: tuple[Holder, ...]

    @property
    def is_full(self) -> bool:
        return 0 < self.parallel <= self.in_use

    def __str__(self) -> str:
        of_all = f" of {number(self.parallel)}" if self.parallel else ""
        parts = [f"{number(self.in_use)}{of_all} in use"]
        if self.calls_a_minute:
            most = number(max(1, round(self.calls_a_minute)))
            parts.append(f"{number(self.calls)} of {most} calls this minute")
        parts.append(counted(self.waiting, "run waits", "runs wait"))
        if self.held_back_until is not None:
            parts.append(f"held back until {moment(self.held_back_until)}")
        return f"{self.name}: {', '.join(parts)}"


def limits_in_use(names: Iterable[str] | None = None) -> list[LimitInUse]:
    """The limits of these names, by default all of LIMITS; four queries each."""
    chosen = settings.LIMITS if names is None else names
    return [_in_use(shared(name)) for name in sorted(chosen)]


def _in_use(bound: Bound) -> LimitInUse:
    labels = sorted(bound.labels)
    digests = [digest for digest, of in runners_by_node().labels.items() if bound.labels & {*of}]
    ids = list(Node.objects.filter(digest__in=digests).values_list("pk", flat=True))
    chunks: ChunkQuerySet[Chunk] = Chunk.objects.filter(runner__in=labels)
    of_nodes = chunks.filter(node__in=ids)
    holders = tuple(_holders(chunks))
    ended = of_nodes.unfolded().filter(finished_at__gt=from_now(-MINUTE))
    # Those of running chunks are recorded every second.
    calls = _total(ended, F("succeeded") + F("failed"))
    calls += _total(chunks.running(), F("succeeded") + F("failed"))
    return LimitInUse(
        name=bound.name,
        runners=tuple(labels),
        parallel=bound.parallel,
        in_use=sum(holder.chunks for holder in holders),
        calls=calls,
        calls_a_minute=bound.per_second * MINUTE,
        waiting=_total(of_nodes.waiting(), F("size")),
        held_back_until=_held_back_until(bound),
        holders=holders,
    )


def _holders(chunks: ChunkQuerySet[Chunk]) -> Iterable[Holder]:
    kinds: Any = chunks.in_flight().order_by("runner", "worker").values_list("runner", "worker")
    left: Any = Chunk.runs_left()
    counts = kinds.annotate(chunks=Count("pk"), runs=Sum(left), since=Min("started_at"))
    return [Holder(*found) for found in counts]


def _held_back_until(bound: Bound) -> dt.datetime | None:
    ahead = from_now(AHEAD + bound.seconds_for(1))
    pulse = Pulse.objects.filter(name=bound.clock, beat_at__gt=ahead).first()
    return None if pulse is None else pulse.beat_at


def _total(chunks: ChunkQuerySet[Chunk], expression: Any) -> int:
    return chunks.aggregate(total=Sum(expression))["total"] or 0
