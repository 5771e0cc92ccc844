"""What lies about and should not."""

from __future__ import annotations

from collections.abc import Iterator

from django.db.models import Count, Min, QuerySet, Sum

from autorun.conf import settings
from autorun.models import Batch, Chunk, Node, SpilledTrigger
from autorun.observe.doctor.finding import Finding, number_of, ok
from autorun.state.clock import from_now
from autorun.upkeep.rounds import planned_here

#: A spilled trigger that waits this long, in seconds, is no longer on its way.
SPILLED_SILENCE = 60.0
#: Leases that a queued chunk may wait for a worker before that is worth a word.
QUEUED_LEASES = 10
RECENT = 86_400.0  # seconds
MOST_SHOWN = 5


def examine_leases() -> Iterator[Finding]:
    """Chunks whose worker has gone and which nobody has rescued."""
    overdue = Chunk.objects.running().filter(expires_at__lte=from_now(-settings.LEASE))
    number = overdue.count()
    if not number:
        yield ok("leases", "None is overdue.")
        return
    first = overdue.order_by("expires_at").first()
    worker = "" if first is None else f", the oldest of {first.worker}"
    yield Finding(
        "error",
        "leases",
        f"{number_of(number, 'chunk has', 'chunks have')} a lease that ran out long ago{worker}.",
        "Upkeep rescues them: start a worker, or see its log for what keeps upkeep from it.",
    )


def examine_queued() -> Iterator[Finding]:
    """Chunks that were handed to Celery and that no worker has started."""
    long = from_now(-QUEUED_LEASES * settings.LEASE)
    waiting = Chunk.objects.queued().filter(created_at__lte=long)
    by_queue = waiting.values_list("queue").annotate(Sum("size")).order_by("queue")
    for queue, runs in by_queue:
        name = f"queue {queue!r}" if queue else "Celery's default queue"
        yield Finding(
            "warning",
            "queued chunks",
            f"{number_of(runs, 'run has', 'runs have')} waited in {name} for more than "
            f"{QUEUED_LEASES * settings.LEASE:g} s.",
            "Start more workers for it; if workers are idle, see whether they listen on it.",
        )


def examine_parked() -> Iterator[Finding]:
    """Chunks whose runner or analysis is not there."""
    parked = Chunk.objects.parked()
    groups = parked.values_list("runner", "reason").annotate(Sum("size")).order_by("runner")
    for runner, reason, runs in groups[:MOST_SHOWN]:
        yield Finding(
            "error",
            "parked chunks",
            f"{number_of(runs, 'run', 'runs')} of {runner} parked: {reason}",
            "Put the runner and the analysis back, and restart the workers: then they go on. If "
            f"they are gone for good: `manage.py autorun cancel {runner}`.",
        )


def examine_spilled() -> Iterator[Finding]:
    """Saved rows in the database that upkeep has not planned yet."""
    late = SpilledTrigger.objects.filter(created_at__lte=from_now(-SPILLED_SILENCE))
    known = planned_here()
    refused = _spilled(
        late.filter(known),
        "the broker did not take them.",
        "See to the broker and start a worker: upkeep plans those rows.",
    )
    unknown = _spilled(
        late.exclude(known),
        "no runner here looks at saved rows of their models.",
        "If a new version is being rolled out, restart what still runs the old one. If their "
        "runners are gone, nothing is to be done: after a day they are forgotten.",
    )
    yield from [*refused, *unknown] or [ok("spilled triggers", "None is waiting.")]


def _spilled(late: QuerySet[SpilledTrigger], why: str, hint: str) -> Iterator[Finding]:
    found = late.aggregate(number=Count("pk"), oldest=Min("created_at"))
    if found["number"]:
        yield Finding(
            "warning",
            "spilled triggers",
            f"{number_of(found['number'], 'message', 'messages')} about saved rows in the database "
            f"since {found['oldest']:%Y-%m-%d %H:%M:%S}: {why}",
            hint,
        )


def examine_paused() -> Iterator[Finding]:
    """Nodes that somebody paused."""
    for node in Node.objects.exclude(paused_at=None).order_by("paused_at")[:MOST_SHOWN]:
        label = node.batches.order_by("-pk").values_list("runner", flat=True).first()
        yield Finding(
            "warning",
            "paused",
            f"{node} has been paused since {node.paused_at:%Y-%m-%d %H:%M:%S}.",
            f"`manage.py autorun resume {label or 'RUNNER'}` lets it go on.",
        )


def examine_batches() -> Iterator[Finding]:
    """Batches whose planning broke off."""
    failed = Batch.objects.filter(state=Batch.State.FAILED, finished_at__gt=from_now(-RECENT))
    for batch in failed.order_by("-pk")[:MOST_SHOWN]:
        yield Finding(
            "warning",
            "batches",
            f"{batch} failed while it was planned: {batch.reason}",
            f"Correct that; the next sweep takes the rest, or `manage.py autorun sweep "
            f"{batch.runner}` now.",
        )
