"""Runs and saved rows that wait because of an error that hits all rows of their runner."""

import datetime as dt
from dataclasses import dataclass

from django.db.models import Max, Min, Sum, Value

from autorun.models import Chunk, SpilledTrigger
from autorun.state.words import counted

MOST_SHOWN = 20


@dataclass(frozen=True)
class HeldUp:
    """Runs or saved rows of one runner that wait for the same reason.

    Without a `next_try`, they wait for a worker that has the runner and the analysis.
    """

    runner: str
    what: str
    reason: str
    since: dt.datetime
    next_try: dt.datetime | None = None


def held_up(label: str | None = None) -> list[HeldUp]:
    """The runs and saved rows that errors hold up, of all runners or of one; one query."""
    of_runner = {} if label is None else {"runner": label}
    columns = ("runner", "reason")
    parked = Chunk.objects.parked().filter(**of_runner).values_list(*columns)
    spilled = SpilledTrigger.objects.exclude(reason="").filter(**of_runner).values_list(*columns)
    since = Min("created_at")
    found = parked.annotate(number=Sum("size"), since=since, next_try=Max("not_before")).union(
        spilled.annotate(number=Value(0), since=since, next_try=Max("expires_at")), all=True
    )
    return [
        HeldUp(runner, _what(runs), reason, *times)
        for runner, reason, runs, *times in found.order_by(*columns)[:MOST_SHOWN]
    ]


def _what(runs: int) -> str:
    return f"{counted(runs, 'run')} parked" if runs else "saved rows not planned"
