"""Rows whose input changes again and again, each time soon after their own run.

A body that changes its own input, directly or through another runner, would otherwise run for
ever without a pause. From the eleventh run of a row within an hour on, the next one waits: a second
after the last run at first, then twice as long each time, up to a minute.
"""

import datetime as dt
from collections.abc import Sequence
from itertools import islice

from django.db.models import Count, Max, Q
from django.db.models.functions import Coalesce

from autorun.declare.base import Runner
from autorun.models import Chunk, Run
from autorun.planning.statements import Redo
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.keys import Key, key_kind

#: Runs of a row within the period after which the next one does not wait.
FREE = 10
PERIOD = 3_600
FIRST_PAUSE = 1
#: The minute in which a finished run is recent for `Redo`.
LONGEST_PAUSE = 60
#: Rows looked up at once.
_AT_ONCE = 1_000
DAMPED = (
    f"The row's input has changed more than {FREE - 1} times within an hour, each time during its "
    "own run or soon after it"
)


def pauses(runner: Runner, node_id: int, redo: Sequence[Redo]) -> dict[Key, dt.datetime]:
    """The keys whose next run has to wait, and until when."""
    # The time counts from the last run, so further changes do not delay the next one.
    kind = key_kind(runner.get_model())
    is_executed = Q(finished_at__gt=from_now(-PERIOD), attempts__gt=0)
    is_running = Q(status=Run.Status.PENDING, chunk__state=Chunk.State.RUNNING)
    recent = Run.objects.of(node_id).filter(is_executed | is_running)
    suspects = iter([each.key for each in redo if each.is_recent and each.seen is None])
    found = {}
    while keys := list(islice(suspects, _AT_ONCE)):
        rows = recent.of_rows(kind, keys).order_by().values_list(kind.column)
        for key, number, last, now in rows.annotate(
            number=Count("pk"),
            last=Max(Coalesce("finished_at", DatabaseNow())),
            now=Max(DatabaseNow()),
        ):
            if number >= FREE:
                pause = min(FIRST_PAUSE * 2 ** min(number - FREE, 10), LONGEST_PAUSE)
                until = last + dt.timedelta(seconds=pause)
                if until > now:
                    found[key] = until
    return found
