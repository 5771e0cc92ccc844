"""Runs and saved rows that wait because all rows fail, because of STOP_AFTER, or damped."""

import datetime as dt
from dataclasses import dataclass

from django.db.models import DateTimeField, F, Max, Min, Q, Sum, Value
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from autorun.models import Batch, Chunk, SpilledTrigger
from autorun.planning.damping import DAMPED
from autorun.state.clock import first_chunk_id_at
from autorun.state.words import number

MOST_SHOWN = 20
#: The age of the chunks among which damped ones are found.
DAMPED_WITHIN = dt.timedelta(minutes=10)


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
