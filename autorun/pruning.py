"""Old history: superseded and cancelled runs, and batches that planned nothing."""

from __future__ import annotations

from django.db.models import QuerySet

from autorun.clock import from_now
from autorun.conf import settings
from autorun.models import Batch, Failure, Run

#: Runs deleted in one transaction.
AT_ONCE = 2_000


def prune(*, at_most: int = 50 * AT_ONCE) -> int:
    """Delete what is older than RETENTION and no longer current; how many runs.

    Current runs are the record of what is done, and stay whatever their age.
    """
    if settings.RETENTION is None:
        return 0
    cutoff = from_now(-settings.RETENTION.total_seconds())
    Batch.objects.filter(finished_at__lt=cutoff, planned=0).delete()
    deleted = 0
    while deleted < at_most:
        number = _delete_some(
            Run.objects.filter(is_current=None, finished_at__lt=cutoff).exclude(
                status=Run.Status.PENDING
            )
        )
        deleted += number
        if number < AT_ONCE:
            break
    return deleted


def _delete_some(runs: QuerySet[Run]) -> int:
    ids = list(runs.values_list("pk", flat=True)[:AT_ONCE])
    Failure.objects.filter(run_id__in=ids).delete()
    # Nothing refers to a run but its failures: a raw delete spares looking for what might.
    Run.objects.filter(pk__in=ids)._raw_delete(settings.DATABASE)
    return len(ids)
