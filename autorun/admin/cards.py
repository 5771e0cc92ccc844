"""The card of each runner on the overview, gathered for all of them at once.

An unfinished count of its rows goes to the client and comes back, so that it can be continued. It
is signed: anyone who may see a page could otherwise send numbers that everybody is then shown. The
signature binds it to its rows, the runner's version, its user and a few minutes. Within these the
user can still send an earlier part of their own count again: it then covers rows as they were up to
so long ago, as does the count of a long table.
"""

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self
from urllib.parse import urlencode

from django.apps import apps
from django.core import signing
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.text import capfirst
from django.utils.translation import gettext as _

from autorun.admin.markup import time_since
from autorun.admin.tables import (
    BATCH_STATES,
    Figure,
    Part,
    columns,
    runner_name,
    stacked,
    time_left,
)
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.declare.nodes import node_of
from autorun.exceptions import AutorunError, bare_message
from autorun.models import Batch, Node
from autorun.observe.glance import Standing, digest_or_problem, standings_of
from autorun.planning.counting import Count
from autorun.planning.pending import stale
from autorun.state import words
from autorun.state.counts import Progress
from autorun.state.origins import name_of_batch
from autorun.state.words import duration, in_words, number, number_in, rate
from autorun.triggers.on_schedule import SWEEP_NAME

#: How long a finished count of a runner's rows is shown.
COUNT_AGE = dt.timedelta(hours=1)
#: The marks of a card's state, the worst first.
SEVERITY = ("error", "stuck", "failed", "parked", "paused", "running", "pending", "idle", "ok")
SALT = "autorun.admin.cards:"
#: Seconds after which a count starts again.
MOST_AGE = 600


@dataclass(frozen=True)
class Counted:
    """The rows of a runner as last counted, without those planned since.

    `left_out` are rows excluded by its filter or waiting for another runner; `stale` are results
    of rows that wait.
    """

    rows: str
    pending: int
    left_out: int
    at: str
    stale: int = 0

    @classmethod
    def read(cls, known: dict[str, Any], progress: Progress) -> Self | None:
        """The count that `with_count` stored with a node, unless there is none or it is old."""
        if not known or timezone.now() - (at := dt.datetime.fromisoformat(known["at"])) > COUNT_AGE:
            return None
        count = Count(known["rows"])
        planned = max(0, progress.total - known["runs"])
        left_out = known["left_out"] - max(0, planned - count.pending)
        pending = max(0, count.pending - planned)
        found = number(count.total), pending, max(0, left_out), time_since(at)
        return cls(*found, stale=known.get("stale", 0))


@dataclass(frozen=True)
class NextSweep:
    """The time of a runner's next sweep; without one, `words` says why.

    `is_off`: there is none until it is scheduled.
    """

    at: dt.datetime | None = None
    words: str = ""
    entry_id: int | None = None
    schedule: str = ""
    is_off: bool = False


@dataclass(frozen=True, kw_only=True)
class Card(Standing):
    """One runner as the overview shows it."""

    next_sweep: NextSweep
    batches: Sequence[Batch] = ()
    counted: Counted | None = None
    #: A count that has not reached all rows yet.
    counting: Count | None = None
    #: The same as text, from which the user's next request continues.
    continued: str = ""

    @property
    def name(self) -> str:
        return runner_name(self.runner.label)

    @property
    def state(self) -> tuple[str, str]:
        """The mark, one of SEVERITY, and the words of what matters most about the runner."""
        found = self.progress
        for mark, text in (
            ("error", _("cannot run") * bool(self.error)),
            ("stuck", _("no worker") * self.is_stuck),
            ("paused", _("paused") * bool(self.paused_since)),
            ("parked", number_in("parked", found.parked)),
            ("failed", number_in("failed", found.failed)),
            ("running", number_in("in progress", found.unfinished, is_about=self.is_about)),
            ("paused", _("sweeps held") * bool(self.held_since)),
            ("pending", number_in("pending", self.counted.pending if self.counted else 0)),
            ("pending", number_in("stale", self.counted.stale if self.counted else 0)),
        ):
            if text:
                return mark, text
        return ("ok", _("up to date")) if self.counted else ("idle", _("idle"))

    @property
    def title(self) -> str:
        """The analysis and its version; the version alone if the runner has the same name."""
        title = title_of_runner(self.runner) if self.node is None else str(self.node)
        return title.removeprefix(f"{self.name} ")

    @property
    def is_about(self) -> bool:
        """Whether the number of its waiting runs is an estimate."""
        return getattr(self.node, "is_crowded", False)

    @property
    def model_name(self) -> str:
        try:
            return str(self.runner.get_model()._meta.verbose_name_plural)
        except AutorunError:  # `error` says what is wrong
            return str(self.runner.DATA_MODEL)

    @property
    def paused_since(self) -> str:
        return time_since(self.paused_at)

    @property
    def held_since(self) -> str:
        return time_since(self.held_at)

    @property
    def bar(self) -> dict[str, Any]:
        return stacked(self.parts)

    @property
    def parts(self) -> list[Part]:
        """The states in the order of the bar, without those that no row is in."""
        parts = self._parts_in("succeeded", "running", "queued", "waiting", "postponed")
        if self.counted is not None and self.counted.pending:
            parts.append(Part("pending", _("pending"), self.counted.pending))
        parts += self._parts_in("parked", "failed", "not_applicable", "ignored")
        if self.counted is not None and self.counted.left_out:
            waits = _("filtered out, or waiting for another runner")
            title = waits if self.runner.depends_on else _("filtered out")
            parts.append(Part("filtered", title, self.counted.left_out))
        return parts

    def _parts_in(self, *states: str) -> list[Part]:
        return [
            Part(
                state,
                in_words(state, value),
                value,
                urlencode({"runner": self.runner.label, "state": state}),
                is_about=state == "waiting" and self.is_about,
            )
            for state in states
            if (value := getattr(self.progress, state))
        ]

    @property
    def is_uncounted(self) -> bool:
        return self.counting is not None or (self.counted is None and not self.error)

    @property
    def counting_words(self) -> str:
        if self.counting is None:
            return ""
        found = {"pending": number(self.counting.pending), "all": number(self.counting.total)}
        return _("%(pending)s pending of %(all)s rows so far") % found

    @property
    def count_query(self) -> str:
        return "?" + urlencode({"begun": self.continued}) if self.continued else ""

    @property
    def figures(self) -> list[Figure]:
        sweep, is_paused = self.next_sweep, bool(self.paused_since)
        left = time_left(self.seconds_left, is_paused=is_paused, is_stuck=self.is_stuck)
        under_way = [Figure(_("Rate"), self.rate, otherwise=_("idle")), left]
        return [
            *(under_way if self.progress.unfinished else ()),
            Figure(_("Median run"), duration(self.run_seconds), otherwise=_("not measured")),
            Figure(_("Next sweep"), time_since(sweep.at), otherwise=sweep.words),
        ]

    @property
    def rate(self) -> str:
        """The recent rate; '' if nothing is in progress, for the rate of minutes ago misleads."""
        return rate(self.activity.per_second) if self.progress.unfinished else ""

    @property
    def day(self) -> str:
        good = sum(each.succeeded for each in self.activity.hours)
        bad = sum(each.failed for each in self.activity.hours)
        sentence = _("Last 24 hours: %s") % _results(good, bad)
        return sentence if good or bad else _("No runs finished in the last 24 hours")

    @property
    def results(self) -> str:
        return _results(self.progress.succeeded, self.progress.failed)

    @property
    def trend(self) -> list[tuple[str, str]]:
        """The results of each of the last 24 hours as columns; none if all are of one hour."""
        hours = [(hour.succeeded, hour.failed) for hour in self.activity.hours]
        return columns(hours) if sum(map(any, hours)) > 1 else []

    @property
    def recent_batches(self) -> list[tuple[int, str, str]]:
        """The id, name and state of the newest unfinished batches."""
        found = []
        for batch in self.batches[:3]:
            planning = ", " + _("still planning") if batch.planned_at is None else ""
            state = f"{BATCH_STATES[batch.state]}{planning}"
            found.append((batch.pk, capfirst(name_of_batch(batch)), state))
        return found

    @property
    def sweeps(self) -> str:
        sweep = self.next_sweep
        schedule = f"{sweep.schedule}, " if sweep.schedule else ""
        next_one = format_html(_("next {}"), time_since(sweep.at))
        return format_html("{}{}", schedule, next_one) if sweep.at else sweep.words


def cards(progresses: Mapping[Node, Progress] | None = None) -> list[Card]:
    """A card for each registered runner, by label; six queries, or four with `progresses`."""
    batches: dict[str, list[Batch]] = {}
    for batch in Batch.objects.unfinished().defer("scope").order_by("-pk")[:100]:
        batches.setdefault(batch.runner, []).append(batch)
    found = cards_of(registry.runners(), progresses)
    return [replace(card, batches=batches.get(card.runner.label, ())) for card in found]


def card_of(runner: Runner, progresses: Mapping[Node, Progress] | None = None) -> Card:
    """One runner's card, without its batches; `progresses` if they have been loaded already."""
    return cards_of([runner], progresses)[0]


def title_of_runner(runner: Runner) -> str:
    """The runner's analysis and its version, or its declaration of them if that is wrong."""
    try:
        return str(hooks.call(runner, "get_analysis"))
    except Exception:  # noqa: BLE001  any fault of a declaration
        return str(runner.ANALYSIS)


def with_count(card: Card, count: Count, *, left_out: int, is_stored: bool) -> Card:
    """The card with a finished count; stored, pages need not count again."""
    counted = {
        "rows": dict(count.rows),
        "left_out": max(0, left_out),
        "stale": stale(card.runner).count() if card.runner.depends_on else 0,
        "runs": card.progress.total,
        "at": timezone.now().isoformat(),
    }
    if is_stored:  # not in a cache: each process may have its own
        Node.objects.filter(pk=node_of(card.runner).pk).update(counted=counted)
    return replace(card, counted=Counted.read(counted, card.progress))


def next_sweeps(runners: Sequence[Runner]) -> dict[str, NextSweep]:
    """The next sweep of each runner, by label; one query of beat's tables."""
    entries: Mapping[str, Any] = {}
    if apps.is_installed("django_celery_beat"):
        from django_celery_beat.models import PeriodicTask

        names = [f"{SWEEP_NAME}{runner.label}" for runner in runners]
        rows = PeriodicTask.objects.filter(name__in=names).select_related(
            "interval", "crontab", "solar", "clocked"
        )
        entries = {row.name.removeprefix(SWEEP_NAME): row for row in rows}
    return {runner.label: _next_sweep(runner, entries.get(runner.label)) for runner in runners}


def cards_of(
    runners: Sequence[Runner],
    progresses: Mapping[Node, Progress] | None = None,
    *,
    is_brief: bool = False,
) -> list[Card]:
    """Cards without batches; if it `is_brief`, also without activity and the next sweep."""
    sweeps = {} if is_brief else next_sweeps(runners)
    return [
        Card(
            **vars(each),
            next_sweep=sweeps.get(each.runner.label, NextSweep()),
            counted=Counted.read(each.node.counted, each.progress) if each.node else None,
        )
        for each in standings_of(runners, progresses, is_brief=is_brief)
    ]


def worst_first(found: Iterable[Card]) -> list[Card]:
    return sorted(found, key=lambda each: SEVERITY.index(each.state[0]))


def _results(succeeded: int, failed: int) -> str:
    counts = number_in("succeeded", succeeded), number_in("failed", failed)
    return ", ".join(filter(None, counts))


def _next_sweep(runner: Runner, entry: Any) -> NextSweep:
    if entry is None:
        return _without_entry(runner)
    if not entry.enabled:
        return NextSweep(words=_("switched off"), entry_id=entry.pk, is_off=True)
    try:
        schedule = entry.schedule
        in_prose = words.schedule(entry.solar or entry.clocked or schedule)
        since = entry.last_run_at or schedule.now()
        left = schedule.remaining_estimate(schedule.maybe_make_aware(since))
    except Exception:  # noqa: BLE001  a schedule that was edited into nonsense
        return NextSweep(words=str(entry.schedule), entry_id=entry.pk)
    at = timezone.now() + max(left, dt.timedelta())
    return NextSweep(at, entry_id=entry.pk, schedule=in_prose)


def _without_entry(runner: Runner) -> NextSweep:
    try:
        schedule = hooks.call(runner, "get_schedule")
    except AutorunError as error:  # the others are shown
        return NextSweep(words=bare_message(error))
    if schedule is None:
        return NextSweep(words=_("on no schedule"), is_off=True)
    if apps.is_installed("django_celery_beat"):
        return NextSweep(words=_("once beat has started"))
    return NextSweep(words=_("django-celery-beat is not installed"), is_off=True)


def signed(request: HttpRequest, count: Count, runner: Runner, query: str = "") -> str:
    """The count as text, from which only that user's count of the same rows can continue.

    They are those of the runner, or of the `query` of a backfill.
    """
    return signing.dumps(count.written(), salt=_salt(request, runner, query), compress=True)


def begun(request: HttpRequest, runner: Runner, query: str = "") -> Count | None:
    """The count of these rows that the request continues; None if it begins one."""
    try:
        salt = _salt(request, runner, query)
        written = signing.loads(request.GET.get("begun", ""), salt=salt, max_age=MOST_AGE)
    except signing.BadSignature:
        return None
    return Count.read(written)


def _salt(request: HttpRequest, runner: Runner, query: str) -> str:
    digest = digest_or_problem(runner)[0]
    return SALT + repr((str(request.user.pk), runner.label, digest, query))
