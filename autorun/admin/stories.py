"""The timeline of a run, and the reasons why it ran or does not run."""

import datetime as dt
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_id_of
from autorun.declare.page_time import spent
from autorun.declare.registry import dependencies_of
from autorun.declare.sets import PK
from autorun.exceptions import AutorunError, bare_message
from autorun.models import UNPREPARED, Failure, Run
from autorun.observe.explanation import WORKER_LOST, Explanation, Quotes, explain
from autorun.observe.run_states import state_of
from autorun.state.keys import key_kind
from autorun.state.origins import ORIGINS, origin_of
from autorun.state.words import in_words, number


@dataclass(frozen=True)
class Event:
    """An event of the past, or one that is due; `state` gives its colour."""

    at: dt.datetime
    state: str
    words: str


MOST_OTHERS = 20
#: By origin: dependents of a row that was saved or written are planned with its priority.
_OR_DEPENDENT = {
    "save": gettext_noop("The row was saved, or a runner that this one depends on succeeded."),
    "write": gettext_noop("The row was written, or a runner that this one depends on succeeded."),
}


def other_runs(run: Run) -> list[Run]:
    """The newest other runs of the run's row, without their outputs."""
    return list(
        Run.objects.filter(node_id=run.node_id, object_id=run.object_id, object_key=run.object_key)
        .exclude(pk=run.pk)
        .select_related("chunk")
        .defer("outputs")
        .order_by("-pk")[:MOST_OTHERS]
    )


@dataclass(frozen=True)
class Story:
    """A run `with_context` and the `others` of its row; `instance` is None if the row is gone."""

    run: Run
    runner: Runner | None
    instance: Any
    others: Sequence[Run]
    quotes: Quotes

    @cached_property
    def failures(self) -> Sequence[Failure]:
        return sorted(self.run.failures.all(), key=lambda each: each.attempt)

    @property
    def why(self) -> str:
        """Why the run exists."""
        run, runner = self.run, self.runner
        if run.fingerprint == UNPREPARED:
            return _("Its input could not be prepared, so it failed without being started.")
        origin, batch = origin_of(run.chunk), run.chunk.batch
        if not origin and not run.attempts:
            if run.status == Run.Status.SUCCEEDED:
                return _("The row was adopted: recorded as done without running it.")
            if run.status == Run.Status.CANCELLED:
                return _("The row is ignored until its input changes.")
        sentence = ORIGINS[origin or "dependency"].sentence
        if origin == "write" and batch is not None:
            sentence = gettext_noop("Started by batch {batch} of written rows ({rows}).")
        elif runner is None or runner.depends_on:
            sentence = _OR_DEPENDENT.get(origin, sentence)
        sentence = _(sentence).format(
            batch=batch and batch.pk,
            rows=batch and _(batch.description),
            upstream=_upstream(runner),
            related=_related(runner, of_many=origin in ("added", "removed")),
        )
        return f"{sentence} {self._what_was_new()}".rstrip()

    def _what_was_new(self) -> str:
        run, others = self.run, self.others
        # A run that was cancelled without an attempt says nothing about its row.
        begun = [each for each in others if each.status != Run.Status.CANCELLED or each.attempts]
        earlier = [each for each in begun if each.pk < run.pk]
        if not earlier:
            is_known = len(others) < MOST_OTHERS
            return _("First recorded run of this row.") if is_known else ""
        before = max(earlier, key=lambda each: each.pk)
        if before.fingerprint == UNPREPARED:
            return _("In run %s the input of the row could not be prepared.") % before.pk
        if before.fingerprint != run.fingerprint:
            is_alone = self.runner is not None and not self.runner.depends_on
            reason = _("The row, or a result that it depends on, had changed since run %s.")
            return (_("The row had changed since run %s.") if is_alone else reason) % before.pk
        sentence = {
            Run.Status.SUCCEEDED: _("It was forced: run %s had succeeded on the same input."),
            Run.Status.FAILED: _("It was retried: run %s had failed on the same input."),
            Run.Status.CANCELLED: _("Run %s on the same input had been cancelled."),
            Run.Status.NOT_APPLICABLE: _("Run %s on the same input was not applicable."),
        }.get(Run.Status(before.status), _("It replaced run %s."))
        return sentence % before.pk

    @property
    def now(self) -> str:
        """The present state of the row."""
        run, runner, quotes = self.run, self.runner, self.quotes
        if runner is None:
            return _("The runner %s is no longer registered.") % run.chunk.runner
        if self.instance is None:
            return _("The row has been deleted.")
        if not run.is_current:
            return self._superseded()
        try:
            node_id = node_id_of(runner)
        except AutorunError as error:
            reason = str(error) if quotes.reasons else bare_message(error)
            return _("%(label)s cannot run: %(reason)s") % {"label": runner.label, "reason": reason}
        if node_id == run.node_id:
            return explanation_of(runner, self.instance, quotes, run=run).reason
        sentence = _("%(runner)s now runs %(version)s; this run is of an earlier version.")
        return sentence % {"runner": runner.label, "version": runner.get_analysis()}

    def _superseded(self) -> str:
        run = self.run
        if state_of(run) == "cancelled":
            return _("It was cancelled. The row may have a later run.")
        how = {
            Run.Status.SUCCEEDED: _("It succeeded"),
            Run.Status.FAILED: _("It failed, no attempts left"),
            Run.Status.NOT_APPLICABLE: _("It was not applicable"),
        }.get(Run.Status(run.status), _("It had not finished"))
        current = next((each for each in self.others if each.is_current), None)
        if current is None:
            return f"{how}. {_('A later run has replaced it.')}"
        sentence = _("Run %s on a newer input has replaced it.")
        if current.fingerprint == run.fingerprint:
            sentence = _("Run %s on the same input has replaced it.")
        return f"{how}. {sentence % current.pk}"

    @property
    def events(self) -> list[Event]:
        """The events in order. Only how they failed is kept of attempts before the last one."""
        run, failures, chunk = self.run, self.failures, self.run.chunk
        is_finished = run.status != Run.Status.PENDING
        attempt = run.attempts + (not is_finished)
        is_retry = any(each.attempt and each.attempt < attempt for each in failures)
        planned = _("queued for attempt %s (earlier queue times are not kept)") % attempt
        events = [Event(chunk.created_at, "waiting", planned if is_retry else _("planned"))]
        if chunk.published_at:
            events.append(Event(chunk.published_at, "queued", _("queued")))
        if chunk.started_at:
            others = chunk.size - 1
            together = ngettext("(with %s other row)", "(with %s other rows)", others) % number(
                others
            )
            started = _("started on %s") % chunk.worker
            started = f"{started} {together}" if others else started
            events.append(Event(chunk.started_at, "running", started))
        events += [Event(each.failed_at, "failed", _how_it_failed(each)) for each in failures]
        if chunk.not_before:
            events.append(Event(chunk.not_before, "waiting", _("next attempt due")))
        events.sort(key=lambda each: each.at)
        # A run finishes within the same moment as its last attempt fails, and after it.
        if run.finished_at and run.status == Run.Status.FAILED:
            events.append(Event(run.finished_at, "failed", _("failed, no attempts left")))
        elif run.finished_at:
            word = in_words(Run.Status(run.status).name.lower())
            events.append(Event(run.finished_at, state_of(run), word))
        return events


def state_in_words(run: Run) -> str:
    """The run's state, with the outcome of a superseded run."""
    outcome = outcome_of(run)
    return _("%s, superseded") % in_words(outcome) if outcome else in_words(state_of(run))


def outcome_of(run: Run) -> str:
    """How a superseded run finished; '' for other runs, whose state says so."""
    is_superseded = state_of(run) == "superseded" and run.status != Run.Status.PENDING
    return in_words(Run.Status(run.status).name.lower()) if is_superseded else ""


def runs_behind(runner: Runner, instance: Any) -> list[Run]:
    """The current runs that the row's explanation is about: those upstream, and the runner's."""
    kind = key_kind(runner.get_model())
    try:
        nodes = [node_id_of(each) for each in (*dependencies_of(runner), runner)]
        key = instance.pk
        if not kind.is_integer:  # the key as the database writes it
            key = kind.values(every_row(runner).filter(pk=key)).first()
    except AutorunError:  # the explanation says what is wrong
        return []
    if key is None:
        return []
    runs = Run.objects.current().filter(node_id__in=nodes).of_row(kind, key)
    return list(runs.select_related("node", "chunk").defer("outputs").order_by("pk"))


def explanation_of(
    runner: Runner, instance: Any, quotes: Quotes, *, run: Run | None = None
) -> Explanation:
    """Why the row is pending or not; the code is "unknown" if the project's own hooks raise."""
    try:
        with spent(f"The query for the row of {runner.label}"):
            return explain(runner, instance, quotes=quotes, run=run)
    except Exception as error:  # noqa: BLE001  a project's own hooks
        return Explanation(False, "unknown", _("It cannot be explained: %s") % bare_message(error))


def _upstream(runner: Runner | None) -> str:
    labels: list[str] = []
    with suppress(AutorunError):  # a system check says what is wrong with it
        labels = [each.label for each in dependencies_of(runner)] if runner else []
    return _(" and ").join(labels) or _("another runner")


def _related(runner: Runner | None, *, of_many: bool) -> str:
    """The relations that the runner reads; `of_many`, those of which rows refer to its rows."""
    names: list[str] = []
    with suppress(AutorunError):
        every = runner.related() if runner else ()
        names = [each.relation for each in every if not of_many or each.attname != PK]
    return ", ".join(dict.fromkeys(names)) or _("by one of its relations")


def _how_it_failed(failure: Failure) -> str:
    # The loss of a worker is reported by another one.
    is_own = bool(failure.worker) and failure.exception_class != WORKER_LOST
    attempt = _("before its first attempt it failed: %(error)s")
    if failure.attempt and is_own:
        attempt = _("attempt %(attempt)s failed on %(worker)s: %(error)s")
    elif failure.attempt:
        attempt = _("attempt %(attempt)s failed: %(error)s")
    return attempt % {
        "attempt": failure.attempt,
        "worker": failure.worker,
        "error": failure.exception_class,
    }
