"""Examines chunks, saved rows, nodes and batches that got stuck."""

from collections.abc import Iterator

from django.db import DatabaseError
from django.db.models import Count, Min, QuerySet, Sum
from django.utils.translation import gettext as _, ngettext
from django.utils.translation.trans_null import gettext_noop

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.nodes import runners_by_node
from autorun.dispatch.messages import queue_name
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node, Run, SpilledTrigger, Written
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.held_up import HeldUp, held_up, limits_in_use
from autorun.observe.new_versions import held
from autorun.planning.rows import unnameable
from autorun.state.clock import from_now
from autorun.state.origins import name_of_batch
from autorun.state.words import because, duration, moment, number
from autorun.triggers import on_write
from autorun.upkeep.rescue import orphans
from autorun.upkeep.spilled import planned_here

#: Seconds after which upkeep should have planned a saved row.
SPILLED_SILENCE = 60.0
#: Leases that a queued chunk may wait for a worker without a warning.
QUEUED_LEASES = 10
RECENT_SECONDS = 86_400.0
NEWEST_RUNS = 500_000
MOST_SHOWN = 5


@examination(gettext_noop("leases"))
def examine_leases() -> Iterator[Finding]:
    """Chunks whose worker stopped and which upkeep has not rescued."""
    overdue = Chunk.objects.running().filter(expires_at__lte=from_now(-settings.LEASE))
    oldest = overdue.order_by("expires_at").first()
    if oldest is None:
        yield ok(_("None overdue."))
        return
    many = overdue.count()
    words = ngettext(
        "%(number)s lease overdue; the oldest was held by %(worker)s.",
        "%(number)s leases overdue; the oldest was held by %(worker)s.",
        many,
    )
    yield error(
        words % {"number": number(many), "worker": oldest.worker},
        _(
            "Start a worker: its upkeep rescues the runs. If one is running, see its log for why "
            "upkeep fails."
        ),
    )


@examination(gettext_noop("orphans"))
def examine_orphans() -> Iterator[Finding]:
    """Pending runs of ended chunks, among the newest runs: there may be a billion."""
    newest = Run.objects.order_by("-chunk_id").values_list("chunk_id", flat=True)
    first = newest[NEWEST_RUNS : NEWEST_RUNS + 1].first()
    many = orphans(least=first or 0).count()
    if not many:
        yield ok(_("None."))
        return
    words = ngettext(
        "%s run is pending, but its chunk has ended or is gone. The database has lost commits: a "
        "replica took over, or a backup was restored.",
        "%s runs are pending, but their chunks have ended or are gone. The database has lost "
        "commits: a replica took over, or a backup was restored.",
        many,
    )
    yield error(
        words % number(many),
        _("Start a worker: its upkeep runs them. If one is running, wait a few minutes."),
    )


@examination(gettext_noop("queued chunks"))
def examine_queued() -> Iterator[Finding]:
    """Chunks in Celery's queues that no worker has started."""
    seconds = QUEUED_LEASES * settings.LEASE
    waiting = Chunk.objects.queued().filter(created_at__lte=from_now(-seconds))
    by_queue = waiting.values_list("queue").annotate(Sum("size")).order_by("queue")
    for queue, runs in by_queue:
        words = ngettext(
            "%(runs)s run has waited in queue %(queue)s for more than %(time)s.",
            "%(runs)s runs have waited in queue %(queue)s for more than %(time)s.",
            runs,
        )
        name = repr(queue_name(queue))
        yield warning(
            words % {"runs": number(runs), "queue": name, "time": duration(seconds)},
            _(
                "Start more workers for this queue. If workers are idle, check that they listen "
                "on it."
            ),
        )


@examination(gettext_noop("limits"))
def examine_limits() -> Iterator[Finding]:
    """The limits in LIMITS, with what they keep waiting."""
    for limit in limits_in_use():
        if limit.held_back_until is None:
            yield ok(f"{limit}.")
        else:
            yield warning(
                f"{limit}.",
                _("A body has raised RetryLater(limit=True). The runs continue at that time."),
            )


OF_DAMPED = gettext_noop(
    "The body, or a runner that it triggers, seems to change a field in INPUT_FIELDS of its own "
    "row. Leave that field out, or write only if the value differs. If something else changes the "
    "row that often, there is nothing to do: its last change is always processed."
)


@examination(gettext_noop("held up"))
def examine_held_up() -> Iterator[Finding]:
    """Runs without their runner or analysis, unreadable rows, and rows that change themselves."""
    yield from map(_held_up, held_up())


def _held_up(found: HeldUp) -> Finding:
    of = {"runner": found.runner, "what": found.what, "at": moment(found.since)}
    bare = _("%(runner)s: %(what)s since %(at)s") % of
    message = f"{bare}: {found.reason}"
    commands = {
        "failures": f"`manage.py autorun failures {found.runner}`",
        "resume": f"`manage.py autorun resume {found.batch}`",
        "cancel": f"`manage.py autorun cancel {found.runner}`",
    }
    if found.is_damped:
        return warning(f"{message}.", _(OF_DAMPED), bare=f"{bare}.")
    if found.next_try is not None:
        then = ". " + _("Next try at %s.") % moment(found.next_try)
        return error(
            message.rstrip(".") + then,
            _(
                "Correct the error; if a column or table is missing, run `manage.py migrate`. "
                "The rows are then processed, and the unsuccessful tries use no attempt."
            ),
            bare=bare + then,
        )
    if found.batch is not None:
        return warning(
            message,
            _("See %(failures)s. To resume it, run %(resume)s.") % commands,
            bare=f"{bare}.",
        )
    return error(
        message,
        _(
            "Restore the runner and the analysis, and restart the workers: the runs then "
            "continue. If they were removed on purpose, run %s."
        )
        % commands["cancel"],
        bare=f"{bare}.",
    )


@examination(gettext_noop("saved rows not yet planned"))
def examine_spilled() -> Iterator[Finding]:
    """Saved rows in the database that upkeep has not planned yet."""
    late = SpilledTrigger.objects.filter(reason="", created_at__lte=from_now(-SPILLED_SILENCE))
    known = planned_here()
    refused = _spilled(
        late.filter(known),
        _("the broker did not accept them."),
        _("Fix the broker and start a worker: upkeep plans these rows."),
    )
    unknown = _spilled(
        late.exclude(known),
        _("no runner here processes saved rows of their models."),
        _(
            "During a rollout, restart the processes that still run the old version. If the "
            "runners were removed, do nothing: these messages are deleted after a day."
        ),
    )
    yield from [*refused, *unknown] or [ok(_("None overdue."))]


def _spilled(late: QuerySet[SpilledTrigger], why: str, hint: str) -> Iterator[Finding]:
    found = late.aggregate(number=Count("pk"), oldest=Min("created_at"))
    if found["number"]:
        words = ngettext(
            "%(number)s message about saved rows, the oldest from %(at)s: %(why)s",
            "%(number)s messages about saved rows, the oldest from %(at)s: %(why)s",
            found["number"],
        )
        of = {"number": number(found["number"]), "at": moment(found["oldest"]), "why": why}
        yield warning(words % of, hint)


@examination(gettext_noop("written rows not yet planned"))
def examine_written() -> Iterator[Finding]:
    """Rows noted by triggers that upkeep has not taken yet."""
    late = Written.objects.filter(written_at__lte=from_now(-SPILLED_SILENCE)).order_by("source")
    numbers = late.values_list("source").annotate(number=Count("pk"), oldest=Min("written_at"))
    sources = list(numbers)
    known = on_write.tables()
    for source, many, oldest in sources:
        words = ngettext(
            "%(number)s note of writes to %(table)s since %(at)s",
            "%(number)s notes of writes to %(table)s since %(at)s",
            many,
        )
        message = words % {"number": number(many), "table": source, "at": moment(oldest)}
        if source in known:
            why = _("no round of upkeep has taken them.")
            hint = _("Start a worker. If one is running, see its log for why upkeep fails.")
        else:
            why = _("no runner here with ON_WRITE reads that table.")
            hint = _(
                "During a rollout, restart the processes that still run the old version. If the "
                "runner was removed, run `manage.py autorun triggers --install`; these notes are "
                "deleted after a day."
            )
        yield warning(f"{message}: {why}", hint)
    if not sources:
        yield ok(_("None overdue."))


@examination(gettext_noop("keys"))
def examine_keys() -> Iterator[Finding]:
    """Rows that no runner processes because of their keys."""
    for runner in registry.runners():
        try:
            keys = unnameable(runner)
        except AutorunError:  # of a wrong declaration, which the checks report
            continue
        except DatabaseError as problem:
            words = _("It could not be examined: %s") % type(problem).__name__
            bare = f"{runner.label}: {words}"
            hint = _("Fix the other findings, and check again.")
            yield error(f"{bare}: {problem}", hint, bare=f"{bare}.")
            continue
        if keys:
            words = _("%s: rows are skipped because their keys cannot be stored or read")
            words %= runner.label
            yield warning(
                words + _(", such as %s.") % keys,
                _(
                    "Give these rows other keys: texts of valid UTF-8, and without NUL if "
                    "autorun's tables are in PostgreSQL, or numbers below 2^63."
                ),
                bare=f"{words}.",
            )


@examination(gettext_noop("paused"))
def examine_paused() -> Iterator[Finding]:
    labels = runners_by_node().labels
    for node in Node.objects.exclude(paused_at=None).order_by("paused_at")[:MOST_SHOWN]:
        label = labels.get(node.digest, ["RUNNER"])[0]
        of = {"version": node, "at": moment(node.paused_at)}
        bare = _("%(version)s has been paused since %(at)s") % of
        yield warning(
            f"{bare}{because(node.paused_because)}.",
            _("To resume it, run %s.") % f"`manage.py autorun resume {label}`",
            bare=f"{bare}.",
        )
    for node in Node.objects.exclude(held_at=None).order_by("held_at")[:MOST_SHOWN]:
        label = labels.get(node.digest, ["RUNNER"])[0]
        yield warning(
            f"{node}: {held(node)}. " + _("Its new rows stay pending."),
            _("To have them planned, run %s.") % f"`manage.py autorun resume {label}`",
        )


@examination(gettext_noop("batches"))
def examine_batches() -> Iterator[Finding]:
    """Recent batches whose planning failed."""
    recent = Batch.objects.filter(finished_at__gt=from_now(-RECENT_SECONDS))
    for batch in recent.filter(state=Batch.State.FAILED).order_by("-pk")[:MOST_SHOWN]:
        of = {"batch": name_of_batch(batch), "runner": batch.runner}
        bare = _("Planning of %(batch)s of %(runner)s failed") % of
        yield warning(
            f"{bare}: {batch.reason}",
            _("Fix the error. The next sweep plans the remaining rows, or run %s now.")
            % f"`manage.py autorun sweep {batch.runner}`",
            bare=f"{bare}.",
        )
