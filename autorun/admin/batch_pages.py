"""Batches: their runs and progress, and new backfills."""

from collections.abc import Collection
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.db.models import Exists, OuterRef
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.text import capfirst
from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.admin.backfills import (
    LOST,
    ONLY,
    RUN_AGAIN,
    BackfillRequest,
    preview_shown,
)
from autorun.admin.cards import Card, begun, card_of, cards_of
from autorun.admin.markup import time_since
from autorun.admin.pages import (
    PageAdmin,
    Permission,
    action,
    get_runner,
    is_fetched,
    page,
    require,
    who,
)
from autorun.admin.row_access import message_for, open_runs, runners_of, sees_texts
from autorun.admin.selections import find
from autorun.admin.tables import (
    BATCH_STATES,
    Figure,
    batch_lines,
    counts_of,
    named_options,
    parts_of,
    runner_name,
    runner_options,
    stacked,
    state_of_batch,
    time_left,
)
from autorun.conf import settings
from autorun.control.interventions import stop_running
from autorun.declare import registry
from autorun.declare.page_time import spent
from autorun.exceptions import AutorunError
from autorun.models import Batch, Chunk, Node
from autorun.observe.activity import activity_of
from autorun.observe.explanation import words_of_chunk
from autorun.observe.failures import FailureGroup, group_failures
from autorun.observe.glance import digest_or_problem, progresses_and_tally, take_tally
from autorun.observe.listing import EMPTY_SWEEP
from autorun.planning import batches
from autorun.planning.counting import count_rows
from autorun.state.origins import (
    CANCELLED,
    name_of_batch,
    reason_in_words,
    requester,
    title_of_batch,
)
from autorun.state.parameters import read_number, read_one_of, read_text
from autorun.state.words import duration, number, rate, some_of

PAGE = 50
NOT_COUNTED = gettext_noop(
    "Correct the fields of the form first: nothing has been counted or started."
)
HIDDEN = gettext_noop("You do not have permission to see the reason.")
SAMPLES = 3
RUNNING_SHOWN = 10
CAUSES = 5
#: Seconds that counting a part of the preview may take.
COUNTING_SECONDS = 0.8


@admin.register(Batch)
class BatchAdmin(PageAdmin):
    tab = "batches"

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        """List batches by id, so that no page counts those before it."""
        given = request.GET
        states, triggers = Batch.State.values, Batch.Trigger.values
        chosen = {
            "runner": read_text(given, "runner"),
            "state": read_one_of(states, given.get("state")),
            "trigger": read_one_of(triggers, given.get("trigger")),
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
        some, tally = list(found[: PAGE + 1]), take_tally()
        is_last = len(some) <= PAGE
        return self.render(
            request,
            "batches",
            _("Batches"),
            tally=tally,
            is_live=before is None,
            lines=batch_lines(some[:PAGE], tally),
            older="" if is_last else urlencode({**narrowed, "before": some[PAGE - 1].pk}),
            chosen=chosen,
            states=list(BATCH_STATES.items()),
            triggers=named_options(triggers),
            runners=runner_options(),
        )

    @page("<int:batch_id>/change/")
    def change(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        tally = take_tally()
        counts = counts_of([batch], tally)[batch.pk]
        parts = parts_of(batch, counts, tally)
        is_stuck = batch.is_unfinished and batch.node_id in tally.stuck
        is_held = batch.is_unfinished and batch.node.paused_at is not None
        shows = sees_texts(request, self.admin_site, batch.node)
        return self.render(
            request,
            "batch",
            title_of_batch(batch),
            batch=batch,
            runner=runner_name(batch.runner),
            tally=tally,
            progress=f"{100 * counts.finished // counts.total} %"
            if batch.is_unfinished and counts.total
            else "",
            state=state_of_batch(batch, counts, is_stuck=is_stuck),
            reason=reason_in_words(batch.reason) if shows else batch.reason and _(HIDDEN),
            requested_by=batch.requested_by
            and " · " + _("requested by %s") % requester(batch.requested_by),
            started=time_since(batch.created_at),
            is_held=is_held,
            is_stuck=is_stuck,
            is_registered=registry.find(batch.runner) is not None,
            parts=parts,
            bar=stacked(parts, empty=_("Nothing planned yet")),
            figures=_figures(batch, counts.left, is_held=is_held, is_stuck=is_stuck),
            **self._parts_of(request, batch, has_failed=counts.failed > 0),
        )

    @page("backfill/")
    def choose(self, request: HttpRequest) -> HttpResponse:
        """List all runners, or those of the rows that were selected on their model's own page."""
        token = read_text(request.GET, "selection")
        require(request, Permission.START if token else Permission.BACKFILL)
        runners, query = registry.runners(), ""
        if token:
            if (chosen := find(request, token)) is None:
                return self._start_over(request)
            runners = runners_of(chosen.get_model())
            query = "?" + urlencode({"selection": token, "only": "all"})
        progresses, tally = progresses_and_tally()
        found, title = cards_of(runners, progresses, is_brief=True), _("New backfill")
        return self.render(request, "choose", title, tally=tally, cards=found, query=query)

    @page("backfill/<str:label>/")
    def prepare(self, request: HttpRequest, label: str) -> HttpResponse:
        """Show the scope of a backfill; the page's script fetches the preview."""
        return self._prepared(request, label)

    @page("backfill/<str:label>/count/")
    def count(self, request: HttpRequest, label: str) -> HttpResponse:
        """Show the same with more rows counted; the script fetches the preview alone."""
        return self._prepared(request, label, is_counting=True)

    @action("backfill/<str:label>/start/", Permission.VIEW)
    def start(self, request: HttpRequest, label: str) -> HttpResponse:
        runner = get_runner(label)
        asked = BackfillRequest.read(request, runner)
        if asked.is_lost:
            return self._start_over(request)
        require(request, asked.needs)
        try:
            if asked.problems:
                raise AutorunError(" ".join(asked.problems.values()))
            with spent(f"The query for the chosen rows of {label}"):
                batch = asked.start(request, self.admin_site, runner)
        except (AutorunError, ValueError, TypeError) as error:
            reason = message_for(request, self.admin_site, error, runner)
            messages.error(request, _("The backfill was not started: %s") % reason)
            return self.redirect("autorun_batch_prepare", label)
        of = {"label": label, "rows": _(batch.description)}
        self.note(request, _("Backfill of %(label)s started: %(rows)s.") % of, batch)
        if hidden := asked.left_out(batch):
            message = ngettext(
                "Left out %s selected row that you may not see.",
                "Left out %s selected rows that you may not see.",
                hidden,
            )
            messages.warning(request, message % number(hidden))
        return self.redirect("autorun_batch_change", batch.pk)

    @action("<int:batch_id>/pause/", Permission.PAUSE)
    def pause(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        is_paused = batches.pause(batch)
        message = _("%s paused. Runs in progress will finish.") % _name(batch)
        return self._changed(request, batch, message if is_paused else "")

    @action("<int:batch_id>/resume/", Permission.PAUSE)
    def resume(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        message = _("%s resumed.") % _name(batch)
        return self._changed(request, batch, message if batches.resume(batch) else "")

    @action("<int:batch_id>/cancel/", Permission.CANCEL)
    def cancel(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        batch = self._get(batch_id)
        return self._changed(request, batch, _cancel(request, batch))

    @action("<int:batch_id>/stop/", Permission.CANCEL)
    def stop(self, request: HttpRequest, batch_id: int) -> HttpResponse:
        """Cancel what is running, too."""
        batch = self._get(batch_id)
        message = _cancel(request, batch)
        if runs := stop_running(Chunk.objects.filter(batch=batch)):
            stopping = ngettext(
                "%(runs)s run in progress will stop within %(time)s.",
                "%(runs)s runs in progress will stop within %(time)s.",
                runs,
            ) % {"runs": number(runs), "time": duration(settings.HEARTBEAT)}
            message = f"{message} {stopping}".lstrip()
        return self._changed(request, batch, message)

    def _changed(self, request: HttpRequest, batch: Batch, message: str) -> HttpResponse:
        if message:
            self.note(request, message, batch)
        return self.back(request, self.url("autorun_batch_change", batch.pk))

    def _start_over(self, request: HttpRequest) -> HttpResponse:
        messages.error(request, _(LOST))
        may_choose = request.user.has_perm(Permission.BACKFILL)
        return self.redirect("autorun_batch_choose" if may_choose else "autorun_node_changelist")

    def _prepared(
        self, request: HttpRequest, label: str, *, is_counting: bool = False
    ) -> HttpResponse:
        runner = get_runner(label)
        nodes = Node.objects.filter(digest=digest_or_problem(runner)[0])
        progresses, tally = progresses_and_tally(nodes)
        card = card_of(runner, progresses)
        asked = BackfillRequest.read(request, runner)
        is_part = is_counting and is_fetched(request)
        if asked.is_lost:
            if is_part:
                return self.fragment(request, "preview", card=card, problem=_(LOST))
            return self._start_over(request)
        require(request, asked.needs)
        found, problem = None, _(NOT_COUNTED) if asked.problems else ""
        if is_counting and not problem:
            found, problem = self._counted(request, card, asked)
        context = {"card": card, "asked": asked, "preview": found, "problem": problem}
        context["query"] = asked.query()
        if is_part:
            return self.fragment(request, "preview", **context)
        may_backfill = request.user.has_perm(Permission.BACKFILL)
        return self.render(
            request,
            "prepare",
            _("Backfill %s") % card.name,
            tally=tally,
            **context,
            rows=asked.rows_in_words(card.model_name),
            choices={name: _(ONLY[name]) for name in ONLY if may_backfill or name not in RUN_AGAIN},
            filters=sorted(card.runner.FILTERS or {}),
            typed=request.GET,
            default_window=_("default %s") % number(settings.WINDOW),
        )

    def _counted(
        self, request: HttpRequest, card: Card, asked: BackfillRequest
    ) -> tuple[dict[str, Any] | None, str]:
        """The preview, or None and the reason why nothing can be counted."""
        try:
            with spent(f"The query for the rows of {card.runner.label} or for the chosen ones"):
                count = count_rows(
                    card.runner,
                    asked.queryset(request, self.admin_site, card.runner),
                    begun=begun(request, card.runner, asked.query()),
                    seconds=COUNTING_SECONDS,
                    samples=SAMPLES,
                )
        except (AutorunError, ValueError, TypeError) as error:
            return None, message_for(request, self.admin_site, error, card.runner)
        return preview_shown(request, self.admin_site, card, asked, count), ""

    def _parts_of(self, request: HttpRequest, batch: Batch, *, has_failed: bool) -> dict[str, Any]:
        """The running chunks and, once it has finished, causes of failures and how many more."""
        running = Chunk.objects.running().filter(batch=batch).annotate(left=Chunk.RUNS_LEFT)
        chunks: list[Any] = list(running.order_by("started_at")[:RUNNING_SHOWN])
        has_causes = has_failed and not batch.is_unfinished
        every = group_failures(batch_id=batch.pk) if has_causes else []
        groups = every[:CAUSES]
        runs = [chunk.doing["run"] for chunk in chunks if chunk.doing]
        may_read = open_runs(request, self.admin_site, [*runs, *(each.run_id for each in groups)])
        return {
            "running": [_running(chunk, may_read) for chunk in chunks],
            "causes": [_cause(batch, each, is_open=each.run_id in may_read) for each in groups],
            "more": len(every) - len(groups),
        }

    def _get(self, batch_id: int) -> Any:
        of_analysis = {name: OuterRef(f"node__{name}") for name in ("title", "content_type")}
        others = Node.objects.filter(**of_analysis).exclude(version=OuterRef("node__version"))
        found = Batch.objects.defer("scope").annotate(has_versions=Exists(others))
        batch = found.select_related("node").filter(pk=batch_id).first()
        if batch is None:
            raise Http404(f"There is no batch {batch_id}.")
        return batch


def _name(batch: Batch) -> str:
    of = {"batch": capfirst(name_of_batch(batch)), "runner": batch.runner}
    return _("%(batch)s of %(runner)s") % of


def _cancel(request: HttpRequest, batch: Batch) -> str:
    """Cancel the runs that have not started. Return the message for the user."""
    if not batch.is_unfinished:
        return ""
    reason = CANCELLED % who(request)
    runs = batches.cancel(batch, reason=reason, within=batches.CANCEL_WITHIN)
    cancelled = ngettext(
        "%(batch)s cancelled: %(runs)s run was not started.",
        "%(batch)s cancelled: %(runs)s runs were not started.",
        runs,
    ) % {"batch": _name(batch), "runs": number(runs)}
    then = _("Each row gets its last result for the same input back, or is pending.")
    return f"{cancelled} {then}"


def _running(chunk: Any, may_read: Collection[int]) -> dict[str, str]:
    """The columns of a chunk that a worker has; its body's words are payload of the row."""
    return {
        "worker": chunk.worker,
        "since": time_since(chunk.started_at),
        "done": some_of(chunk.size - chunk.left, chunk.size),
        "doing": words_of_chunk(chunk) if chunk.doing and chunk.doing["run"] in may_read else "",
    }


def _cause(batch: Batch, group: FailureGroup, *, is_open: bool) -> dict[str, str]:
    """The columns of a group; the exception stands for a message that the user may not see."""
    words, name = group.heading if is_open else "", group.exception_class
    query = {"batch": batch.pk, "state": "failed", "group": group.key, "exception": name}
    return {
        "words": words or name,
        "exception_class": name if words else "",
        "runs": number(group.runs),
        "query": urlencode(query),
    }


def _figures(batch: Batch, left: int, *, is_held: bool, is_stuck: bool) -> list[Figure]:
    if batch.planned_at:
        planning = _("complete")
    elif batch.is_unfinished:
        planning = _("in progress") if batch.cursor or batch.candidates else _("not started")
    else:
        planning = _("interrupted")
    limit = "" if batch.limit is None else _("of at most %s") % number(batch.limit)
    figures = [
        Figure(_("Planning"), planning),
        Figure(_("Rows checked"), number(batch.candidates)),
        Figure(_("Runs planned"), number(batch.planned), limit),
    ]
    if batch.existing:
        note = _("(up to date or already queued)")
        figures.append(Figure(_("Skipped"), number(batch.existing), note))
    if batch.unprepared:
        figures.append(Figure(_("Input not prepared"), number(batch.unprepared)))
    if batch.is_unfinished:
        activity = activity_of(batch)
        figures += [
            Figure(_("Rate"), rate(activity.per_second), otherwise=_("idle")),
            time_left(
                activity.seconds_left(left),
                is_paused=is_held or batch.state == Batch.State.PAUSED,
                is_stuck=is_stuck,
            ),
        ]
    if batch.finished_at:
        figures.append(Figure(_("Finished"), time_since(batch.finished_at)))
    return figures
