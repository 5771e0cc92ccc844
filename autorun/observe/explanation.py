"""Why one row is pending for a runner, or why it is not."""

import datetime as dt
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Max, OuterRef, Q, Subquery
from django.utils.text import capfirst
from django.utils.translation import gettext as _, ngettext
from django.utils.translation.trans_null import gettext_noop  # the usual one reads the settings

from autorun.declare import hooks, page_time
from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.nodes import node_id_of, nodes_over
from autorun.declare.registry import dependencies_of, sets_before
from autorun.declare.sets import PK
from autorun.dispatch.messages import queue_name, queue_of
from autorun.exceptions import RunTimeout, WorkerLost
from autorun.models import Batch, Chunk, Failure, Node, Run, Written
from autorun.observe.held_up import held_up, limits_in_use
from autorun.observe.new_versions import held
from autorun.planning.rows import Row, current_successes, load, members_of
from autorun.state.keys import Key, concrete, key_kind
from autorun.state.words import because, moment, number, some_of, spoken
from autorun.triggers import on_write
from autorun.upkeep.writes import by_origin, rows_reading

LONGEST_MESSAGE = 200
#: By the origin of the runs that it leads to, a write that upkeep has yet to take.
_NOTED = {
    "write": gettext_noop("it was written"),
    "related_write": gettext_noop("a row that it reads was written (%(relation)s)"),
    "added": gettext_noop("a row that it reads was added (%(relation)s)"),
    "removed": gettext_noop("a row that it read was removed (%(relation)s)"),
}
WORKER_LOST = f"{WorkerLost.__module__}.{WorkerLost.__qualname__}"


class Quotes(NamedTuple):
    """Which words of people and of the project's code an explanation quotes.

    `messages` are about the row; `reasons` are about many rows, and may contain data of any.
    """

    messages: bool
    reasons: bool


ALL, NONE = Quotes(messages=True, reasons=True), Quotes(messages=False, reasons=False)
_quotes: ContextVar[Quotes] = ContextVar("autorun_quotes", default=ALL)


@dataclass(frozen=True)
class Explanation:
    """The state of one row for a runner, as a stable code and as a sentence.

    `is_pending` agrees with `runner.pending()`. Pending rows: "never_ran", "changed" (since the
    last run), "unprepared" (preparing the input raises). In progress: "waiting", "queued",
    "running", "retrying", "postponed" (by a RetryLater), "parked", "paused". Finished: "succeeded",
    "failed", "not_applicable", "ignored". Not processed: "unsaved", "deleted", "unnameable",
    "not_in_base_query", "filtered_out", "dependency". `run` is the row's current run, if it has
    one.
    """

    is_pending: bool
    code: str
    reason: str
    run: Run | None = None

    def __str__(self) -> str:
        return self.reason


def explain(
    runner: Runner, instance: Any, *, quotes: Quotes = ALL, run: Run | None = None
) -> Explanation:
    """Why `instance` is pending or not; with those `quotes`.

    `run` is its current run, of `with_context`, if the caller has it. Raises TypeError for an
    instance of another model.
    """
    token = _quotes.set(quotes)
    try:
        return _explained(runner, instance, run)
    finally:
        _quotes.reset(token)


def with_context(runs: Any) -> Any:
    """The runs with all that an explanation says of them but their failures; one query."""
    runs = runs.select_related("chunk", "chunk__batch", "node")
    return runs.annotate(kept_at=_last_success_at()).defer("chunk__batch__scope")


def _explained(runner: Runner, instance: Any, run: Any) -> Explanation:
    model = runner.get_model()
    if not isinstance(instance, concrete(runner.get_model())):
        raise TypeError(
            f"{runner.label} processes rows of {model._meta.label}, not {instance!r}. Give the "
            "instance itself, not its primary key or a collection."
        )
    if instance.pk is None:
        return Explanation(False, "unsaved", _("The row has not been saved, so it has no key yet."))
    key = key_kind(model).values(hooks.every_row(runner).filter(pk=instance.pk)).first()
    if key is None:
        sentences = {
            "unsaved": _("The row has not been saved."),
            "unnameable": _("The row is skipped because its key cannot be stored or read."),
            "deleted": _("The row has been deleted."),
        }
        code = "unsaved" if instance._state.adding else "deleted"
        if model._base_manager.using(hooks.database_of(runner)).filter(pk=instance.pk).exists():
            code = "unnameable"
        return Explanation(False, code, sentences[code])
    run = run or with_context(_runs(runner, key).current()).first()
    if run is None or run.status != Run.Status.PENDING:
        row = _loaded(runner, key, within_base=True)
    else:
        is_chosen = run.chunk.batch is not None and run.chunk.batch.is_beyond_base
        row = _loaded(runner, key, within_base=not is_chosen)
        if row is None or row.fingerprint == run.fingerprint or is_chosen:
            return _unfinished(runner, run, is_eligible=row is not None)
    if row is None:
        return _not_eligible(runner, instance, key, run)
    if run is None or run.fingerprint != row.fingerprint:
        return _pending(runner, row, run)
    return _finished(runner, run)


def _loaded(runner: Runner, key: Key, *, within_base: bool) -> Row | None:
    what = f"{runner.label}.get_instance_representation() or the query for the row"

    def loaded() -> Row | None:
        row = load(runner, [key], within_base=within_base).get(key)
        if row is not None and isinstance(row.error, RunTimeout) and page_time.is_over():
            raise row.error  # which names the hook
        return row

    return page_time.limited(what, loaded)


def explain_missing(runner: Runner, pk: Any) -> Explanation | None:
    """The explanation for a key without a row; None if no runner has processed such a row."""
    kind = key_kind(runner.get_model())
    stored = kind.field.get_db_prep_value(pk, connections[hooks.database_of(runner)])
    key = stored if kind.is_integer else str(stored)
    runs = Run.objects.of_row(kind, key).order_by("-pk")
    if not runs.filter(node__in=nodes_over(runner.get_model())).exists():
        return None
    run = runs.of(node_id_of(runner)).first()
    history = f"; {_outcome(_title(runner), run)}" if run and run.finished_at else ""
    return Explanation(False, "deleted", f"{_('The row has been deleted')}{history}.", run)


def _pending(runner: Runner, row: Row, run: Any) -> Explanation:
    if row.error is not None:
        error = _short(type(row.error).__name__, str(row.error))
        code = "unprepared"
        reason = _("The input cannot be prepared: %s. Planning will record that") % error
    elif run is None:
        code, reason = "never_ran", _without_run(runner, row)
    elif run.status == Run.Status.PENDING:
        code, reason = "changed", _("The row has changed since its run in progress was planned")
    else:
        code = "changed"
        reason = _("The row or the code has changed since %s")
        reason = _("The row has changed since %s") if runner.ON_CODE_CHANGE == "warn" else reason
        reason = reason % _outcome(_title(runner), run)
    node_id = node_id_of(runner) if run is None else run.node_id
    node = Node.objects.filter(pk=node_id).first()
    then = (node and (_paused(node) or _held(node, runner))) or next_step(runner, row.key)
    return Explanation(True, code, f"{reason}; {then}.", run)


def _without_run(runner: Runner, row: Row) -> str:
    runs = _runs(runner, row.key).order_by("-pk")
    last = runs.first()
    if last is None or last.status != Run.Status.CANCELLED:
        return _("%s has not run on this row") % _title(runner)
    reason = _("%s was cancelled before it was done on this row") % _title(runner)
    ended = (Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.NOT_APPLICABLE)
    previous = runs.filter(status__in=ended).first()
    if previous is None:
        return reason
    return f"{reason} ({_('previous result: %s') % _outcome('', previous).strip()})"


def next_step(runner: Runner, key: Key | None = None) -> str:
    """The next step to get a pending row planned, unless the runner is paused."""
    if key is not None and runner.ON_WRITE and (noted := _noted(runner, key)):
        return _("%s, and the next round of upkeep plans it") % noted
    command = f"`manage.py autorun sweep {runner.label}`"
    if not hooks.is_scheduled(runner):
        return _("the runner has no schedule, so run %s to plan it") % command
    return _("the next sweep will plan it, or run %s now") % command


def _noted(runner: Runner, key: Key) -> str:
    """That the row, or one that it reads, was written, if upkeep has yet to plan it; else ''."""
    kind = key_kind(runner.get_model())
    is_noted = Q(**kind.lookup(key))
    if kind.is_integer:
        is_noted |= Q(object_id__lte=key, last_id__gte=key)
    for table in on_write.tables().values():
        notes = Written.objects.filter(source=table.source)
        for reader in table.readers if notes.exists() else ():
            if reader.runner.label != runner.label:
                continue
            for origin, some in by_origin(reader, notes):
                found: Any = some.filter(is_noted)
                if reader.path != PK:
                    found = rows_reading(reader, table.source, some).filter(pk=kind.to_pk(key))
                if found.exists():
                    return _(_NOTED[origin]) % {"relation": spoken(reader.relation)}
    return ""


def _unfinished(runner: Runner, run: Any, *, is_eligible: bool) -> Explanation:
    code, reason = _stage(runner, run)
    if run.attempts:
        reason += ", " + _("for attempt %s") % some_of(run.attempts + 1, runner.MAX_ATTEMPTS)
    if not is_eligible:
        reason += "; " + _("it will be cancelled, because the row is no longer processed")
    failure = last_failure(run) if run.attempts else None
    if failure is not None:
        reason += ". " + _("Attempt %s failed") % failure.attempt + _cause(failure)
    return Explanation(False, code, f"{reason}.{kept_result(run)}", run)


def _stage(runner: Runner, run: Any) -> tuple[str, str]:
    chunk = run.chunk
    if chunk.state == Chunk.State.RUNNING:
        said = words_of(run) if _quotes.get().messages else ""
        running = _("Running on worker %s") % chunk.worker + _since(chunk.started_at)
        return "running", f"{running}, {said}" if said else running
    if chunk.state == Chunk.State.QUEUED:
        name = queue_name(queue_of(runner))
        sentence = _("Waiting for a worker in queue %r") % name
        return "queued", sentence + _since(chunk.published_at)
    if chunk.state == Chunk.State.PARKED:
        sentence = _("Parked until %s") if chunk.not_before else _("Parked")
        sentence = sentence % moment(chunk.not_before) if chunk.not_before else sentence
        return "parked", sentence + _because(chunk.reason)
    return _waiting(runner, run)


def words_of(run: Any) -> str:
    """The progress that the body of a running run reports; '' if it reports none."""
    is_told = (run.chunk.doing or {}).get("run") == run.pk
    return words_of_chunk(run.chunk) if is_told else ""


def words_of_chunk(chunk: Chunk) -> str:
    """The same for the run of the chunk that reported last."""
    doing = chunk.doing
    if not doing or chunk.state != Chunk.State.RUNNING:
        return ""
    note = f": {doing['note']}" if doing["note"] else ""
    return _("%s %% done") % f"{doing['done'] * 100:.0f}" + note


def _waiting(runner: Runner, run: Any) -> tuple[str, str]:
    batch, not_before = run.chunk.batch, run.chunk.not_before
    if run.node.paused_at is not None:
        return "paused", capfirst(_paused(run.node))
    if batch is not None and batch.state == Batch.State.PAUSED:
        return "paused", _("Its batch %s is paused") % batch.pk + _because(batch.reason)
    for found in held_up(runner.label):
        if found.next_try is not None and not found.is_damped:
            sentence = _("Held up until %s") % moment(found.next_try)
            return "waiting", sentence + _because(found.reason)
    if not_before is not None:
        why = run.chunk.postponed_by
        sentence = _("Waiting until %s") % moment(not_before)
        return "postponed" if why else "retrying", sentence + _because(why)
    if runner.LIMIT is not None:
        (limit,) = limits_in_use([runner.LIMIT])
        return "waiting", _("Waiting for the limit %s") % limit
    sentence = _("Planned, and waiting until fewer runs of %s are in flight")
    if run.chunk.priority == Chunk.Priority.LIVE:
        sentence = _(
            "Planned ahead of sweeps and backfills, "
            "and waiting until fewer runs of %s are in flight"
        )
    return "waiting", sentence % _title(runner)


def _finished(runner: Runner, run: Any) -> Explanation:
    at = moment(run.finished_at)
    if run.status == Run.Status.SUCCEEDED:
        sentence = _("Up to date: %s, and the row has not changed since.")
        return Explanation(False, "succeeded", sentence % _outcome(_title(runner), run), run)
    if run.status == Run.Status.CANCELLED:
        sentence = _("Ignored since %s, until the row changes.")
        return Explanation(False, "ignored", sentence % at, run)
    if run.status == Run.Status.NOT_APPLICABLE:
        reason = _("Not applicable since %s, until the row changes") % at
        said = run.outputs if _quotes.get().messages else ""
        return Explanation(False, "not_applicable", f"{reason}{because(said or '')}.", run)
    failure = last_failure(run)
    sentence = _("Failed (no attempts left) at %(at)s")
    if run.attempts:
        sentence = ngettext(
            "Failed after %(n)s attempt (no attempts left) at %(at)s",
            "Failed after %(n)s attempts (no attempts left) at %(at)s",
            run.attempts,
        )
    sentence = sentence % {"n": number(run.attempts), "at": at}
    cause = "" if failure is None else _cause(failure)
    # The exception ends its sentence, so that nothing else reads as part of its message.
    then = _("To retry it, run `manage.py autorun retry %s` or change the row.") % runner.label
    reason = f"{sentence}{cause}. {then}{kept_result(run)}"
    return Explanation(False, "failed", reason, run)


def _not_eligible(runner: Runner, instance: Any, key: Key, run: Any) -> Explanation:
    history = ""
    if run is not None and run.finished_at is not None:
        history = f"; {_outcome(_title(runner), run)}"
    excluded = _excluding(runner, instance.pk)
    if excluded:
        code = "filtered_out" if excluded.startswith("filter") else "not_in_base_query"
        sentence = _("The %(queryset)s of %(runner)s excludes the row")
        reason = sentence % {"queryset": excluded, "runner": runner.label}
    else:
        unmet = _(" and ").join(_unmet(runner, instance.pk, key)) or _("the runners in DEPENDS_ON")
        code, reason = "dependency", _("Waiting for %s") % unmet
        history = history and history + ", " + _("and that result is stale")
    return Explanation(False, code, f"{reason}{history}.", run)


def _excluding(runner: Runner, pk: Any) -> str:
    """The name of the queryset that excludes the row from the runner's; '' if none does."""
    base = hooks.base_queryset(runner).filter(pk=pk)
    if not base.exists():
        return _("base queryset")
    passes = hooks.filtered(runner, base, log_level=SILENT).exists()
    return "" if passes else "filter_queryset()"


def _unmet(runner: Runner, pk: Any, key: Key) -> Iterator[str]:
    dependencies = {node_id_of(each): each for each in dependencies_of(runner)}
    runs = Run.objects.filter(node_id__in=dependencies).current()
    of_row = runs.of_row(key_kind(runner.get_model()), key)
    statuses = dict(of_row.values_list("node_id", "status"))
    states: dict[int | None, str] = {
        None: _("%s, which has not run on the row"),
        Run.Status.PENDING: _("%s, which is in progress"),
        Run.Status.FAILED: _("%s, which failed on the row"),
        Run.Status.CANCELLED: _("%s, which ignores the row"),
        Run.Status.NOT_APPLICABLE: _("%s, which is not applicable to it"),
    }
    for node_id, dependency in dependencies.items():
        status = statuses.get(node_id)
        if status == Run.Status.SUCCEEDED:
            continue
        if status is None and (excluded := _excluding(dependency, pk)):
            phrase = _("%(runner)s, whose %(queryset)s excludes the row")
            yield phrase % {"runner": dependency.label, "queryset": excluded}
        else:
            yield states[status] % dependency.label
    for each, upstream in sets_before(runner):
        members = members_of(runner, each, [key])[key]
        lacking = len(members - current_successes(upstream, members).keys())
        if lacking:
            phrase = ngettext(
                "%(runner)s: %(some)s %(rows)s still lacks a success",
                "%(runner)s: %(some)s %(rows)s still lack a success",
                lacking,
            )
            some, rows = some_of(lacking, len(members)), spoken(each.relation)
            yield phrase % {"runner": upstream.label, "some": some, "rows": rows}


def _last_success_at() -> Any:
    """When the outer query's run's row last succeeded in an earlier run."""
    row = {name: OuterRef(name) for name in ("node", "object_id", "object_key")}
    earlier: Any = Run.objects.succeeded().unretired().filter(**row, is_current=None).order_by()
    return Subquery(earlier.values("node").annotate(at=Max("finished_at")).values("at"))


def kept_result(run: Any) -> str:
    """The sentence about the result that stays while a re-run is not done, or has failed."""
    return " " + _("The result of %s is kept.") % moment(run.kept_at) if run.kept_at else ""


def last_failure(run: Run) -> Failure | None:
    return max(run.failures.all(), key=lambda each: each.attempt, default=None)


def _runs(runner: Runner, key: Key) -> Any:
    return Run.objects.of(node_id_of(runner)).of_row(key_kind(runner.get_model()), key)


def _title(runner: Runner) -> str:
    return str(runner.get_analysis())


def _outcome(title: str, run: Run) -> str:
    if run.status == Run.Status.SUCCEEDED:
        adopted = _("%(version)s was adopted at %(at)s")
        phrase = _("%(version)s succeeded at %(at)s") if run.attempts else adopted
    else:
        others: dict[int, str] = {
            Run.Status.FAILED: _("%(version)s failed at %(at)s"),
            Run.Status.NOT_APPLICABLE: _("%(version)s was not applicable at %(at)s"),
        }
        phrase = others.get(run.status, _("%(version)s was told to ignore it at %(at)s"))
    return phrase % {"version": title, "at": moment(run.finished_at)}


def _paused(node: Node) -> str:
    if node.paused_at is None:
        return ""
    phrase = _("the runner has been paused")
    return f"{phrase}{_since(node.paused_at)}{_because(node.paused_because)}"


def _because(words: str | None) -> str:
    return because(words) if words and _quotes.get().reasons else ""


def _held(node: Node, runner: Runner) -> str:
    if node.held_at is None:
        return ""
    phrase = _("%(held)s, so run `manage.py autorun resume %(runner)s` to have it planned")
    return phrase % {"held": held(node), "runner": runner.label}


def _since(time: dt.datetime | None) -> str:
    return " " + _("since %s") % moment(time) if time else ""


def _cause(failure: Failure) -> str:
    # The worker that reports a lost one is not its own: the message names the lost worker.
    is_named = failure.worker and failure.exception_class != WORKER_LOST
    worker = " " + _("on %s") % failure.worker if is_named else ""
    return f"{worker}: {_short(failure.exception_class, failure.message)}"


def _short(name: str, message: str) -> str:
    first = message.strip().partition("\n")[0] if _quotes.get().messages else ""
    if len(first) > LONGEST_MESSAGE:
        first = f"{first[:LONGEST_MESSAGE]}..."
    return f"{name}: {first.rstrip('.')}" if first else name
