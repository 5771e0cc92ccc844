"""Examines chunks, saved rows, nodes and batches that got stuck."""

from collections.abc import Iterator
from contextlib import suppress

from django.db.models import Count, Min, QuerySet, Sum

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.nodes import runners_by_node
from autorun.dispatch.messages import queue_name
from autorun.models import Batch, Chunk, Node, Run, SpilledTrigger, Written
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.held_up import held_up
from autorun.observe.limits_in_use import limits_in_use
from autorun.observe.new_versions import held
from autorun.planning.rows import about_unnameable
from autorun.state.clock import from_now
from autorun.state.words import because, counted, moment
from autorun.triggers import on_write
from autorun.upkeep.orphans import orphans
from autorun.upkeep.spilled import planned_here

#: Seconds after which upkeep should have planned a saved row.
SPILLED_SILENCE = 60.0
#: Leases that a queued chunk may wait for a worker without a warning.
QUEUED_LEASES = 10
RECENT_SECONDS = 86_400.0
NEWEST_RUNS = 500_000
MOST_SHOWN = 5


@examination("leases")
def examine_leases() -> Iterator[Finding]:
    """Chunks whose worker stopped and which upkeep has not rescued."""
    overdue = Chunk.objects.running().filter(expires_at__lte=from_now(-settings.LEASE))
    oldest = overdue.order_by("expires_at").first()
    if oldest is None:
        yield ok("None overdue.")
        return
    yield error(
        f"{counted(overdue.count(), 'lease')} overdue; the oldest was held by {oldest.worker}.",
        "Start a worker: its upkeep rescues the runs. If one is running, see its log for why "
        "upkeep fails.",
    )


@examination("orphans")
def examine_orphans() -> Iterator[Finding]:
    """Pending runs of ended chunks, among the newest runs: there may be a billion."""
    newest = Run.objects.order_by("-chunk_id").values_list("chunk_id", flat=True)
    first = newest[NEWEST_RUNS : NEWEST_RUNS + 1].first()
    number = orphans(least=first or 0).count()
    if not number:
        yield ok("None.")
        return
    yield error(
        f"{counted(number, 'run is', 'runs are')} pending, but their chunks have ended or are "
        "gone. The database has lost commits: a replica took over, or a backup was restored.",
        "Start a worker: its upkeep runs them. If one is running, wait a few minutes.",
    )


@examination("queued chunks")
def examine_queued() -> Iterator[Finding]:
    """Chunks in Celery's queues that no worker has started."""
    seconds = QUEUED_LEASES * settings.LEASE
    waiting = Chunk.objects.queued().filter(created_at__lte=from_now(-seconds))
    by_queue = waiting.values_list("queue").annotate(Sum("size")).order_by("queue")
    for queue, runs in by_queue:
        yield warning(
            f"{counted(runs, 'run has', 'runs have')} waited in queue {queue_name(queue)!r} for "
            f"more than {seconds:g} s.",
            "Start more workers for this queue. If workers are idle, check that they listen on it.",
        )


@examination("limits")
def examine_limits() -> Iterator[Finding]:
    """The limits in LIMITS, with what they keep waiting."""
    for limit in limits_in_use():
        if limit.held_back_until is None:
            yield ok(f"{limit}.")
        else:
            yield warning(
                f"{limit}.",
                "A body has raised RetryLater(limit=True). The runs continue at that time.",
            )


@examination("held up")
def examine_held_up() -> Iterator[Finding]:
    """Runs without their runner or analysis, unreadable rows, and rows that change themselves."""
    for found in held_up():
        bare = f"{found.runner}: {found.what} since {moment(found.since)}"
        message = f"{bare}: {found.reason}"
        if found.is_damped:
            yield warning(
                f"{message}.",
                "The body, or a runner that it triggers, seems to change a field in INPUT_FIELDS "
                "of its own row. Leave that field out, or write only if the value differs.",
                bare=f"{bare}.",
            )
        elif found.next_try is not None:
            then = f". Next try at {moment(found.next_try)}."
            yield error(
                message.rstrip(".") + then,
                "Correct the error; if a column or table is missing, run `manage.py migrate`. The "
                "rows are then processed, and the unsuccessful tries use no attempt.",
                bare=bare + then,
            )
        elif found.batch is not None:
            yield warning(
                message,
                f"See `manage.py autorun failures {found.runner}`. To resume it, run `manage.py "
                f"autorun resume {found.batch}`.",
                bare=f"{bare}.",
            )
        else:
            yield error(
                message,
                "Restore the runner and the analysis, and restart the workers: the runs then "
                "continue. If they were removed on purpose, run `manage.py autorun cancel "
                f"{found.runner}`.",
                bare=f"{bare}.",
            )


@examination("saved rows not yet planned")
def examine_spilled() -> Iterator[Finding]:
    """Saved rows in the database that upkeep has not planned yet."""
    late = SpilledTrigger.objects.filter(reason="", created_at__lte=from_now(-SPILLED_SILENCE))
    known = planned_here()
    refused = _spilled(
        late.filter(known),
        "the broker did not accept them.",
        "Fix the broker and start a worker: upkeep plans these rows.",
    )
    unknown = _spilled(
        late.exclude(known),
        "no runner here processes saved rows of their models.",
        "During a rollout, restart the processes that still run the old version. If the runners "
        "were removed, do nothing: these messages are deleted after a day.",
    )
    yield from [*refused, *unknown] or [ok("None overdue.")]


def _spilled(late: QuerySet[SpilledTrigger], why: str, hint: str) -> Iterator[Finding]:
    found = late.aggregate(number=Count("pk"), oldest=Min("created_at"))
    if found["number"]:
        yield warning(
            f"{counted(found['number'], 'message')} about saved rows, the oldest from "
            f"{moment(found['oldest'])}: {why}",
            hint,
        )


@examination("written rows not yet planned")
def examine_written() -> Iterator[Finding]:
    """Rows noted by triggers that upkeep has not taken yet."""
    late = Written.objects.filter(written_at__lte=from_now(-SPILLED_SILENCE)).order_by("source")
    numbers = late.values_list("source").annotate(number=Count("pk"), oldest=Min("written_at"))
    sources = list(numbers)
    known = on_write.tables()
    for source, number, oldest in sources:
        message = f"{counted(number, 'note')} of writes to {source} since {moment(oldest)}"
        if source in known:
            yield warning(
                f"{message} are waiting for a round of upkeep.",
                "Start a worker. If one is running, see its log for why upkeep fails.",
            )
        else:
            yield warning(
                f"{message}: no runner here with ON_WRITE reads that table.",
                "During a rollout, restart the processes that still run the old version. If the "
                "runner was removed, run `manage.py autorun triggers --install`; these notes are "
                "deleted after a day.",
            )
    if not sources:
        yield ok("None overdue.")


@examination("keys")
def examine_keys() -> Iterator[Finding]:
    """Rows that no runner processes because of their keys."""
    for runner in registry.runners():
        with suppress(Exception):  # the checks report what is wrong with it
            if skipped := about_unnameable(runner):
                yield warning(
                    skipped,
                    "Give these rows other keys: texts of valid UTF-8, and without NUL if autorun's"
                    " tables are in PostgreSQL, or numbers below 2^63.",
                    bare=f"{skipped.rpartition(', such as')[0]}.",
                )


@examination("paused")
def examine_paused() -> Iterator[Finding]:
    labels = runners_by_node().labels
    for node in Node.objects.exclude(paused_at=None).order_by("paused_at")[:MOST_SHOWN]:
        label, *_ = labels.get(node.digest, ["RUNNER"])
        bare = f"{node} is paused since {moment(node.paused_at)}"
        yield warning(
            f"{bare}{because(node.paused_because)}.",
            f"To resume it, run `manage.py autorun resume {label}`.",
            bare=f"{bare}.",
        )
    for node in Node.objects.exclude(held_at=None).order_by("held_at")[:MOST_SHOWN]:
        label, *_ = labels.get(node.digest, ["RUNNER"])
        yield warning(
            f"{node}: {held(node)}. Its new rows stay pending.",
            f"To have them planned, run `manage.py autorun resume {label}`.",
        )


@examination("batches")
def examine_batches() -> Iterator[Finding]:
    """Recent batches whose planning failed."""
    recent = Batch.objects.filter(finished_at__gt=from_now(-RECENT_SECONDS))
    for batch in recent.filter(state=Batch.State.FAILED).order_by("-pk")[:MOST_SHOWN]:
        yield warning(
            f"Planning of {batch} failed: {batch.reason}",
            "Fix the error. The next sweep plans the remaining rows, or run `manage.py autorun "
            f"sweep {batch.runner}` now.",
            bare=f"Planning of {batch} failed.",
        )
