"""The list of runs, the page of one run, and the actions on many."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.translation import gettext as _, ngettext

from autorun.admin import markup, row_access
from autorun.admin.bulk_actions import ActingOnRuns, allowed
from autorun.admin.pages import Permission, page
from autorun.admin.stories import Story, other_runs, outcome_of, state_in_words
from autorun.admin.tables import as_options, name_of_run, named_options, runner_name, runner_options
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.declare.page_time import spent
from autorun.models import Run
from autorun.observe.explanation import with_context
from autorun.observe.failures import exception_classes
from autorun.observe.glance import take_tally
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import STATES, Cursor, Page, stale_among, state_of
from autorun.state.managers import RETIRED
from autorun.state.masking import without_secrets
from autorun.state.origins import ORIGINS, name_of_batch, origin_of
from autorun.state.parameters import SINCE
from autorun.state.words import duration, harmless, number

PAGE = 50
#: The order of the list that is not by time of planning.
SLOWEST = "slowest"
#: Characters of JSON that are shown without a click.
FOLDED = 3_000
#: The filters that are folded away until one of them is in use.
MORE = frozenset(["trigger", "exception", "batch", "worker", "ended_from", "ended_until"])


def _line(run: Run, name: row_access.Name, *, is_stale: bool) -> dict[str, Any]:
    """The columns of a run in the list; `analysis` is '' if it is named like the runner."""
    chunk, origin = run.chunk, origin_of(run.chunk)
    word = _(ORIGINS[origin].word) if origin else "—"
    if run.finished_at:
        when = markup.time_since(run.finished_at)
    elif chunk.started_at:
        when = format_html(_("started {}"), markup.time_since(chunk.started_at))
    else:
        when = format_html(_("planned {}"), markup.time_since(chunk.created_at))
    return {
        "pk": run.pk,
        "row": str(name),
        "is_deleted": name.is_gone,
        "state": state_of(run),
        "state_words": state_in_words(run),
        "is_stale": is_stale,
        "runner": name_of_run(run),
        "analysis": "" if run.node.title == runner_name(chunk.runner) else run.node.title,
        "trigger": name_of_batch(chunk.batch) if chunk.batch else word,
        "batch_id": chunk.batch_id,
        "attempts": run.attempts,
        "seconds": duration(run.seconds),
        "when": when,
    }


@admin.register(Run)
class RunAdmin(ActingOnRuns):
    tab = "runs"

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        chosen = RunFilter.read(request.GET)
        problems = RunFilter.unknown(request.GET) + RunFilter.not_understood(request.GET)
        after = Cursor.read(request.GET.get("after", ""))
        is_by_time = request.GET.get("order") == SLOWEST
        found, is_all = Page([], None), False
        if not problems:
            found, is_all = _page_of(chosen, after, is_by_time=is_by_time)
        written = chosen.written()
        tally, stale = take_tally(), stale_among(found.runs)
        seen = row_access.seen_rows(request, self.admin_site, found.runs)
        total = len(found.runs) if is_all else chosen.number()
        is_exact = is_all or not written
        older = None if found.after is None else urlencode({**written, "after": str(found.after)})
        return self.render(
            request,
            "runs",
            _("Runs"),
            tally=tally,
            chosen=chosen,
            lines=[_line(run, seen[run.pk].name, is_stale=run.pk in stale) for run in found.runs],
            problems=problems,
            lead=_lead(chosen, total, is_exact=is_exact, is_by_time=is_by_time),
            all_words=_all_matching(total if is_exact else 0),
            query=urlencode(written),
            slowest=urlencode({**written, "order": SLOWEST}),
            is_by_time=is_by_time,
            is_live=after is None and not is_by_time,
            older=older,
            is_first=after is None and not is_by_time,
            runners=runner_options(),
            states=named_options(STATES),
            triggers=named_options(ORIGINS),
            since=named_options(SINCE),
            exceptions=as_options(sorted(exception_classes() | ({chosen.exception} - {""}))),
            has_more=not MORE.isdisjoint(written),
            actions=allowed(request),
        )

    @page("<int:run_id>/change/")
    def change(self, request: HttpRequest, run_id: int) -> HttpResponse:
        run = self._get(run_id)
        runner, seen, instance = self._row_of(request, run)
        quotes = row_access.quotes_for(request, self.admin_site, run.node, is_open=seen.is_open)
        may_see = quotes.messages
        others = other_runs(run)
        story = Story(run, runner, instance, others, quotes)
        hidden = _("You do not have permission to see this row, so its details are hidden.")
        # The newest success, whose outputs stay while a re-run has none.
        of_row = (each for each in others if each.fingerprint != RETIRED)
        earlier = (each for each in of_row if each.status == Run.Status.SUCCEEDED)
        return self.render(
            request,
            "run",
            _("%(version)s on %(row)s") % {"version": name_of_run(run), "row": seen.name},
            run=run,
            state=state_of(run),
            is_unfinished=run.status == Run.Status.PENDING,
            outcome=outcome_of(run),
            attempts=_attempts(run.attempts, run.seconds),
            name=seen.name,
            key=run.key_text,
            runner=runner_name(run.chunk.runner),
            batch="" if run.chunk.batch is None else name_of_batch(run.chunk.batch),
            story=story,
            now=markup.prose(hidden if seen.is_hidden else story.now),
            configuration=markup.as_json(without_secrets(run.node.configuration)),
            kept=None if run.status == Run.Status.SUCCEEDED else next(earlier, None),
            most_shown=markup.MOST_SHOWN,
            may_see=may_see,
            **(_payload(run, runner, instance) if may_see else {}),
            others=[(other, state_of(other), state_in_words(other)) for other in others],
            is_registered=runner is not None,
            actions=[
                each for each in allowed(request) if seen.is_open and state_of(run) in each.accepts
            ],
        )

    @page("<int:run_id>/text/<str:part>/", Permission.SEE_PAYLOAD)
    def text(self, request: HttpRequest, run_id: int, part: str) -> HttpResponse:
        """The outputs or the present input of a run, in full, as text."""
        run = self._get(run_id)
        runner, seen, instance = self._row_of(request, run)
        if not seen.is_open:
            raise PermissionDenied
        if part not in ("outputs", "input"):
            raise Http404(f"A run has no {part}.")
        found = markup.as_json(run.outputs) if part == "outputs" else _input(runner, instance)
        headers = {"X-Content-Type-Options": "nosniff"}
        text = harmless(found or "")
        return HttpResponse(text, content_type="text/plain; charset=utf-8", headers=headers)

    def _get(self, run_id: int) -> Run:
        found = with_context(Run.objects.filter(pk=run_id)).prefetch_related("failures")
        run: Run | None = found.first()
        if run is None:
            raise Http404(f"There is no run {run_id}. Superseded runs are pruned with time.")
        return run

    def _row_of(self, request: HttpRequest, run: Run) -> tuple[Runner | None, row_access.Seen, Any]:
        """The run's runner, what the user may see of its row, and the row unless it is hidden."""
        runner = registry.find(run.chunk.runner)
        database = None if runner is None else row_access.database_of(runner)
        seen = row_access.seen_rows(request, self.admin_site, [run], database)[run.pk]
        instance = seen.instance
        if instance is None and not seen.is_hidden and not seen.name.is_gone:
            instance = row_access.instance_of(run, database)
        return runner, seen, instance


def _page_of(chosen: RunFilter, after: Cursor | None, *, is_by_time: bool) -> tuple[Page, bool]:
    """A page of the list, and whether it has all runs that match."""
    if is_by_time:
        runs, is_all = chosen.slowest(size=PAGE)
        return Page(runs, None), is_all and len(runs) < PAGE
    found = chosen.page(after, size=PAGE)
    return found, after is None and found.after is None


def _lead(chosen: RunFilter, total: int | None, *, is_exact: bool, is_by_time: bool) -> str:
    if is_by_time:
        return _("Slowest of the newest runs first.")
    if total is None:
        return _("Newest first.")
    words = ngettext("%s current run, newest first.", "%s current runs, newest first.", total)
    if chosen.written():
        words = ngettext("%s run matches, newest first.", "%s runs match, newest first.", total)
    return words % (number(total) if is_exact else _("About %s") % number(total))


def _all_matching(total: int | None) -> str:
    """The words for all runs of the filter; `total` is 0 if their number is not known."""
    return _("All %s matching") % number(total) if total else _("All matching")


def _attempts(count: int, seconds: float | None) -> str:
    words = ngettext("%s attempt", "%s attempts", count) % number(count) if count else ""
    if not words or seconds is None:
        return words
    took = ngettext("took %s", "the last took %s", count) % duration(seconds)
    return f"{words}, {took}"


def _payload(run: Run, runner: Runner | None, instance: Any) -> dict[str, Any]:
    """The present input and the outputs, as far as the page shows them."""
    has_outputs = run.outputs is not None
    outputs = markup.as_json(run.outputs, most=markup.MOST_SHOWN) if has_outputs else None
    return {
        "input": _input(runner, instance, most=markup.MOST_SHOWN),
        "outputs": outputs,
        "output_lines": markup.as_lines(run.outputs) if has_outputs else [],
        "is_long": len(outputs or "") > FOLDED,
    }


def _input(runner: Runner | None, instance: Any, *, most: int | None = None) -> str | None:
    if runner is None or instance is None:
        return None
    try:
        hook = "get_instance_representation"
        with spent(f"{runner.label}.{hook}()"):
            found = hooks.call(runner, hook, instance)
        if found is None or isinstance(found, Model):  # the row itself, which the page names
            return None
        return markup.as_json(found, most=most)
    except Exception as error:  # noqa: BLE001  a project's own hook
        return _("It cannot be prepared: %s") % f"{type(error).__name__}: {error}"
