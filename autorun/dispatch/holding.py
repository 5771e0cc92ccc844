"""Runners that are held up: an error affects all of their rows, so one chunk at a time tries again.

Their parked chunks with a time are the mark. No other chunk of the runner is released until one
that started later has a success. So an outage costs a few attempts, and no run fails because of it.
"""

import datetime as dt
from typing import Any

from django.db.models import Max, Min, Q, QuerySet

from autorun.dispatch.room import is_at_its_limit
from autorun.models import Chunk
from autorun.state import pulses
from autorun.state.clock import DatabaseNow, from_now

#: Seconds until the next try: as long as the runner has been held up, within these.
FIRST_PAUSE, LONGEST_PAUSE = 10.0, 60.0
#: Seconds during which failing rows cannot hold up the runner again: after a success, and after
#: unsuccessful tries.
EXEMPT_AFTER_SUCCESS, EXEMPT_IN_VAIN = 300.0, 3600.0


def seconds_held_up(chunk: Chunk) -> float:
    """How long the runner had been held up when this try was sent; 0 if it is not a try."""
    if not chunk.reason or chunk.published_at is None:
        return 0.0
    return (chunk.published_at - chunk.created_at).total_seconds()


def pause_after(chunk: Chunk) -> float:
    """The seconds until the next try, after that of `chunk` or after the failures in it."""
    return min(max(FIRST_PAUSE, seconds_held_up(chunk)), LONGEST_PAUSE)


def has_succeeded(node_id: int, label: str, *, since: Any) -> bool:
    """Whether a row that the runner executed after `since` has succeeded.

    A chunk that started before may have met the error half-way, unless it has only successes.
    """
    is_later = Q(started_at__gte=since) | Q(finished_at__gte=since, moved=0, failed=0)
    of_runner = Chunk.objects.unfolded().of(node_id).filter(runner=label, succeeded__gt=0)
    return of_runner.filter(is_later).exists()


def exempt(label: str, seconds: float) -> None:
    """Count the runner's failures for that long, however many there are."""
    pulses.note(pulses.name_for("exempt", label), from_now(seconds))


def is_exempt(label: str) -> bool:
    return pulses.is_ahead(pulses.name_for("exempt", label))


def next_try(node_id: int, label: str, waiting: QuerySet[Any]) -> Chunk | None:
    """The chunk that tries again for a runner that is held up, if it is time.

    It is the last of those `waiting`, or else a parked one: all rows of one chunk may be bad. If a
    row has succeeded since, the parked chunks wait to be released like others. The caller holds the
    node's lock.
    """
    held = Chunk.objects.held_up().of(node_id).filter(runner=label)
    # The node may have been paused since the chunk that has just ended was started.
    found = held.filter(node__paused_at=None).aggregate(
        since=Min("created_at"), reason=Max("reason")
    )
    since: dt.datetime | None = found["since"]
    if since is None:  # or cancelled meanwhile
        return None
    if has_succeeded(node_id, label, since=since):
        exempt(label, EXEMPT_AFTER_SUCCESS)
    elif is_exempt(label):  # an error that no row's failure is waits all the same
        held = held.filter(not_before__lte=DatabaseNow())
    if is_exempt(label):
        held.update(state=Chunk.State.WAITING, reason="", not_before=None, publications=0)
        return None
    tries = Chunk.objects.in_flight().of(node_id).filter(runner=label).exclude(reason="")
    is_early = held.filter(not_before__gt=DatabaseNow()).exists() or tries.exists()
    if is_early or is_at_its_limit(label):
        return None
    chunk = waiting.filter(runner=label).reverse().first() or held.order_by("?").first()
    if chunk is not None:
        known = {"reason": found["reason"], "created_at": since}
        Chunk.objects.filter(pk=chunk.pk).update(state=Chunk.State.WAITING, **known)
    return chunk
