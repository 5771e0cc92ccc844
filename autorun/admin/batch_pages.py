"""Batches: what was planned, how far it is, and new backfills."""

from __future__ import annotations

import datetime as dt
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern
from django.utils import timezone

from autorun.admin.backfills import LOST, ONLY, Preview, Request, preview
from autorun.admin.cards import Card, card_of, cards
from autorun.admin.pages import (
    PageAdmin,
    action,
    counted,
    find_runner,
    is_fetched,
    page,
    require,
    who,
)
from autorun.admin.permissions import Allowed, Permission
from autorun.admin.tables import batch_lines
from autorun.declare import registry
from autorun.exceptions import AutorunError
from autorun.models import Batch
from autorun.observe.activity import STUCK_SECONDS, Activity, activity_by_node, stuck_nodes
from autorun.observe.listing import EMPTY_SWEEP
from autorun.planning import batches
from autorun.planning.counting import Count, count_rows
from autorun.state.parameters import read_number, read_one_of, read_text

PAGE = 50
NOT_COUNTED = "Nothing is counted, and nothing would start, while a field of the form is wrong."
SAMPLES = 3
#: What a part of the preview may take to be counted.
COUNTING_SECONDS = 0.8


@admin.register(Batch)
class BatchAdmin(PageAdmin):
    """Batches, newest first."""

    tab = "batches"

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("", self.listing, "changelist"),
            self.route("backfill/", self.choose, "choose"),
            self.route("backfill/<str:label>/", self.prepare, "prepare"),
            self.route("backfill/<str:label>/count/", self.count, "count"),
            self.route("backfill/<str:label>/start/", self.start, "start"),
            self.route("<int:batch_id>/change/", self.batch_page, "change"),
            self.route("<int:batch_id>/pause/", self.pause, "pause"),
            self.route("<int:batch_id>/resume/", self.resume, "resume"),
            self.route("<int:batch_id>/cancel/", self.cancel, "cancel"),
        ]

    @page
    def listing(self, request: HttpRequest) -> HttpResponse:
        """Batches by id, so that no page counts those before it."""
        given = request.GET
        chosen = {
            "runner": read_text(given, "runner"),
            "state": read_one_of(Batch.State.values, given.get("state")),
            "trigger": read_one_of(Batch.Trigger.values, given.get("trigger")),
        }
        narrowed = {name: value for name, value in chosen.items() if value}
        found = Batch.objects.filter(**narrowed).defer("scope").order_by("-pk")
        before = read_number(given.get("before"))
        if before is not None:
            found = found.filter(pk__lt=before)
        if given.get("all") == "1":
            chosen["all"] = narrowed["all"] = "1"
        else:
            found = found.exclude(EMPTY_SWEEP)
        some = list(found[: PAGE + 1])
        is_last = len(some) <= PAGE
        return self.render(
            request,
            "batches",
            "Batches",
            lines=batch_lines(some[:PAGE]),
            older="" if is_last else urlencode({**narrowed, "before": some[PAGE - 1].pk}),
            chosen=chosen,
            states=Batch.State.values,
            triggers=Batch.Trigger.values,
            runners=[runner.label for runner in registry.runners()],
        )

    @page
    def batch_page(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        """One batch with its live progress."""
        batch = self._get(batch_id)
        (line,) = batch_lines([batch])
        activity, is_stuck = Activity(), False
        if line.is_unfinished:
            activity = activity_by_node([batch.node])[batch.node_id]
            is_stuck = _is_left(batch) or bool(stuck_nodes([batch.node_id]))
        return self.render(
            request,
            "batch",
            str(batch),
            batch=batch,
            line=line,
            rate=activity.per_second_at_work,
            seconds_left=_seconds_left(batch, line.counts.left, activity),
            is_stuck=is_stuck,
            is_held=line.is_unfinished and batch.node.paused_at is not None,
            is_not_begun=line.is_unfinished and not batch.cursor and not batch.candidates,
            is_registered=find_runner(batch.runner) is not None,
        )

    @page
    def choose(self, request: HttpRequest) -> HttpResponse:
        """The runners a backfill may be for."""
        require(request, Permission.BACKFILL)
        return self.render(request, "choose", "New backfill", cards=cards())

    @page
    def prepare(self, request: HttpRequest, label: str) -> HttpResponse:
        """The scope of a backfill, and what it would do."""
        card, asked = self._card(label), Request.read(request.GET)
        if asked.is_lost(request):
            return self._start_over(request)
        require(request, asked.needs(request))
        return self.render(
            request,
            "prepare",
            f"Backfill {card.name}",
            card=card,
            asked=asked,
            chosen=asked.chosen(request),
            choices=_choices(request),
            filters=sorted(card.runner.FILTERS or {}),
            typed=request.GET,
            problem=NOT_COUNTED if asked.problems else "",
            query=asked.query(),
        )

    @page
    def count(self, request: HttpRequest, label: str) -> HttpResponse:
        """The preview alone, counted on for a moment."""
        card, asked = self._card(label), Request.read(request.GET)
        if asked.is_lost(request):
            if is_fetched(request):
                return self.fragment(request, "preview", card=card, asked=asked, problem=LOST)
            return self._start_over(request)
        require(request, asked.needs(request))
        begun = Count.read(request.GET.get("begun", ""))
        found, problem = None, NOT_COUNTED
        if not asked.problems:
            found, problem = self._counted(request, card, asked, begun)
        context = {
            "card": card,
            "asked": asked,
            "preview": found,
            "problem": problem,
            "query": asked.query(),
        }
        if is_fetched(request):
            return self.fragment(request, "preview", **context)
        return self.render(
            request,
            "prepare",
            f"Backfill {card.name}",
            **context,
            chosen=asked.chosen(request),
            choices=_choices(request),
            filters=sorted(card.runner.FILTERS or {}),
            typed=request.GET,
        )

    @action(Permission.VIEW)
    def start(self, request: HttpRequest, label: str) -> HttpResponse:
        """Begin the backfill that was previewed."""
        card, asked = self._card(label), Request.read(request.POST)
        if asked.is_lost(request):
            return self._start_over(request)
        require(request, asked.needs(request))
        try:
            if asked.problems:
                raise ValueError(" ".join(asked.problems.values()))
            batch = asked.start(request, self.admin_site, card.runner)
        except (AutorunError, ValueError, TypeError) as error:
            messages.error(request, f"The backfill was not started: {error}")
            return HttpResponseRedirect(self.url("autorun_batch_prepare", label))
        self.note(request, f"Backfill of {label} started: {batch.description}.", batch)
        return HttpResponseRedirect(self.url("autorun_batch_change", batch.pk))

    @action(Permission.PAUSE)
    def pause(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        if batches.pause(batch):
            self.note(request, f"{batch} paused. What is running goes on to its end.", batch)
        return self.back(request, self.url("autorun_batch_change", batch_id))

    @action(Permission.PAUSE)
    def resume(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        if batches.resume(batch):
            self.note(request, f"{batch} resumed.", batch)
        return self.back(request, self.url("autorun_batch_change", batch_id))

    @action(Permission.CANCEL)
    def cancel(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        if batch.state in (Batch.State.RUNNING, Batch.State.PAUSED):
            number = batches.cancel(batch, reason=f"Cancelled by {who(request)}.")
            self.note(
                request,
                f"{batch} cancelled: {counted(number, 'run was', 'runs were')} not started. "
                "What was not processed is pending again.",
                batch,
            )
        return self.back(request, self.url("autorun_batch_change", batch_id))

    def _start_over(self, request: HttpRequest) -> HttpResponse:
        """To where rows can be chosen, for those whose choice is no longer known."""
        messages.error(request, LOST)
        may_choose = Allowed(request.user).to(Permission.BACKFILL)
        return HttpResponseRedirect(
            self.url("autorun_batch_choose" if may_choose else "autorun_node_changelist")
        )

    def _counted(
        self, request: HttpRequest, card: Card, asked: Request, begun: Count | None
    ) -> tuple[Preview | None, str]:
        """The preview, counted on; or None and what keeps it from being counted."""
        try:
            count = count_rows(
                card.runner,
                asked.queryset(request, self.admin_site, card.runner),
                begun=begun,
                seconds=COUNTING_SECONDS,
                samples=SAMPLES,
            )
        except (AutorunError, ValueError, TypeError) as error:
            return None, str(error)
        return preview(request, self.admin_site, card, asked, count), ""

    def _card(self, label: str) -> Card:
        runner = find_runner(label)
        if runner is None:
            raise Http404(f"No runner is registered as {label!r}.")
        return card_of(runner)

    def _get(self, batch_id: int) -> Any:
        batch = Batch.objects.defer("scope").select_related("node").filter(pk=batch_id).first()
        if batch is None:
            raise Http404(f"There is no batch {batch_id}.")
        return batch


def _choices(request: HttpRequest) -> dict[str, str]:
    """What `only` may be for who asks: to run again what has succeeded is a backfill."""
    may_backfill = Allowed(request.user).to(Permission.BACKFILL)
    return {name: words for name, words in ONLY.items() if may_backfill or name != "again"}


def _is_left(batch: Batch) -> bool:
    """Whether nobody has taken up its planning, or gone on with it, for long."""
    return (
        batch.state == Batch.State.RUNNING
        and batch.planned_at is None
        and batch.expires_at is not None
        and batch.expires_at <= timezone.now() - dt.timedelta(seconds=STUCK_SECONDS)
    )


def _seconds_left(batch: Batch, runs: int, activity: Activity) -> float | None:
    """Until so many runs have ended; None while nothing is done."""
    if not activity.per_second or not runs:
        return None
    run_seconds = activity.median_seconds or batch.node.run_seconds
    return activity.seconds_for(runs, run_seconds=run_seconds)
