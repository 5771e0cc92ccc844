"""The list of runs, the page of one run, and the actions on many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from autorun.admin.bulk_actions import ACTIONS, BulkAction
from autorun.admin.markup import as_json, prose, time_since
from autorun.admin.outputs_shown import as_lines
from autorun.admin.pages import PageAdmin, action, page, require, who
from autorun.admin.permissions import Permission
from autorun.admin.row_access import (
    MOST_NARROWED,
    Name,
    Reach,
    Seen,
    database_of,
    instance_of,
    seen_rows,
)
from autorun.admin.selections import asked_by
from autorun.admin.stories import other_runs, outcome_of, story_of
from autorun.control import interventions
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.declare.interruption import within
from autorun.models import Batch, Run
from autorun.observe.failures import exception_classes
from autorun.observe.group_runs import members_of
from autorun.observe.listing import RunFilter
from autorun.observe.paging import Cursor, Page
from autorun.observe.run_states import STATES, state_of
from autorun.state.managers import RETIRED
from autorun.state.masking import without_secrets
from autorun.state.origins import ORIGINS, name_of_batch, origin_of
from autorun.state.parameters import SINCE, read_number
from autorun.state.words import counted, duration, number

PAGE = 50
#: The order of the list that is not by time of planning.
SLOWEST = "slowest"
MOST_TICKED = 1_000
#: Characters of JSON that are shown without a click, and at all; the rest is a page of text.
FOLDED = 3_000
MOST_SHOWN = 200_000
#: The names of filters on the page of confirmation.
_FACTS = {
    "since": "finished within",
    "planned_from": "planned from",
    "planned_until": "planned until",
}
#: Runs that are counted one by one before an action on them.
MOST_COUNTED = 10_000
#: Up to this number, each ticked run has an entry in the admin's log.
FEW = 20
#: The filters that are folded away until one of them is in use.
MORE = frozenset(
    [
        *("trigger", "exception", "batch", "worker"),
        *("planned_from", "planned_until", "ended_from", "ended_until"),
    ]
)
#: Failed runs that are retried while the user waits; workers find the others.
MOST_AT_ONCE = 5_000


@dataclass(frozen=True)
class RunLine:
    """One run in the list: its columns. `runner` is '' if it is the filter's."""

    pk: int
    row: str
    is_deleted: bool
    state: str
    analysis: str
    runner: str
    trigger: str
    batch_id: int | None
    attempts: int
    seconds: str
    when: str

    @classmethod
    def of(cls, run: Run, name: Name, chosen: RunFilter) -> RunLine:
        chunk, origin = run.chunk, origin_of(run.chunk)
        word = ORIGINS[origin].word if origin else "—"
        if run.finished_at:
            when = time_since(run.finished_at)
        elif chunk.started_at:
            when = format_html("started {}", time_since(chunk.started_at))
        else:
            when = format_html("planned {}", time_since(chunk.created_at))
        return cls(
            pk=run.pk,
            row=str(name),
            is_deleted=name.is_gone,
            state=state_of(run),
            analysis=str(run.node),
            runner="" if chunk.runner == chosen.runner else chunk.runner,
            trigger=name_of_batch(chunk.batch) if chunk.batch else word,
            batch_id=chunk.batch_id,
            attempts=run.attempts,
            seconds=duration(run.seconds),
            when=when,
        )


@dataclass(frozen=True)
class Log:
    """The entries in the admin's log: one for each of `runs`, or one `about` all of them."""

    runs: Sequence[Run] = ()
    about: str = ""
    detail: str = ""


@admin.register(Run)
class RunAdmin(PageAdmin):
    """Runs, the newest first."""

    tab = "runs"

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        chosen = RunFilter.read(request.GET)
        problems = RunFilter.unknown(request.GET) + RunFilter.not_understood(request.GET)
        after = Cursor.read(request.GET.get("after", ""))
        is_by_time = request.GET.get("order") == SLOWEST
        is_all = False
        if problems:
            found = Page([], None)
        elif is_by_time:
            runs, is_all = chosen.slowest(size=PAGE)
            found, is_all = Page(runs, None), is_all and len(runs) < PAGE
        else:
            found = chosen.page(after, size=PAGE)
            is_all = after is None and found.after is None
        seen = seen_rows(request, self.admin_site, found.runs)
        classes = exception_classes() | ({chosen.exception} - {""})
        total = len(found.runs) if is_all else chosen.number()
        is_exact = is_all or not chosen.written()
        older = None
        if found.after is not None:
            older = urlencode({**chosen.written(), "after": str(found.after)})
        return self.render(
            request,
            "runs",
            "Runs",
            chosen=chosen,
            lines=[RunLine.of(run, seen[run.pk].name, chosen) for run in found.runs],
            problems=problems,
            lead=_lead(chosen, total, is_exact=is_exact, is_by_time=is_by_time),
            all_words=f"All {number(total)} matching" if total and is_exact else "All matching",
            query=urlencode(chosen.written()),
            slowest=urlencode({**chosen.written(), "order": SLOWEST}),
            is_by_time=is_by_time,
            older=older,
            is_first=after is None and not is_by_time,
            runners=[runner.label for runner in registry.runners()],
            states=list(STATES),
            triggers=list(ORIGINS),
            since=list(SINCE),
            exceptions=sorted(classes),
            has_more=not MORE.isdisjoint(chosen.written()),
            actions=_allowed(request),
        )

    @page("<int:run_id>/change/")
    def change(self, request: HttpRequest, run_id: int) -> HttpResponse:
        run = self._get(run_id)
        runner, seen, instance = self._row_of(request, run)
        may_see = seen.is_open and request.user.has_perm(Permission.SEE_PAYLOAD)
        others, is_hidden = other_runs(run), seen.is_hidden
        story = story_of(
            run, runner, instance, others=others, shows_messages=may_see, is_hidden=is_hidden
        )
        # The newest success, whose outputs stay while a re-run has none.
        of_row = (each for each in others if each.fingerprint != RETIRED)
        earlier = (each for each in of_row if each.status == Run.Status.SUCCEEDED)
        outputs = None
        if may_see and run.outputs is not None:
            outputs = as_json(run.outputs, most=MOST_SHOWN)
        return self.render(
            request,
            "run",
            f"{run.node} on {seen.name}",
            run=run,
            state=state_of(run),
            is_unfinished=run.status == Run.Status.PENDING,
            outcome=outcome_of(run),
            attempts=counted(run.attempts, "attempt") if run.attempts else "",
            seconds=duration(run.seconds),
            name=seen.name,
            key=run.key_text,
            batch="" if run.chunk.batch is None else name_of_batch(run.chunk.batch),
            story=story,
            now=prose(story.now),
            input=_input(runner, instance, most=MOST_SHOWN) if may_see else None,
            configuration=as_json(without_secrets(run.node.configuration)),
            outputs=outputs,
            output_lines=[] if outputs is None else as_lines(run.outputs),
            kept=None if run.status == Run.Status.SUCCEEDED else next(earlier, None),
            is_long=outputs is not None and len(outputs) > FOLDED,
            most_shown=MOST_SHOWN,
            may_see=may_see,
            others=[(other, state_of(other)) for other in others],
            is_registered=runner is not None,
            actions=[
                each for each in _allowed(request) if seen.is_open and state_of(run) in each.accepts
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
        found = as_json(run.outputs) if part == "outputs" else _input(runner, instance)
        headers = {"X-Content-Type-Options": "nosniff"}
        return HttpResponse(found or "", content_type="text/plain; charset=utf-8", headers=headers)

    @action("act/", Permission.VIEW)
    def act(self, request: HttpRequest) -> HttpResponse:
        """Retry, ignore or cancel: ask for confirmation, then act."""
        chosen_action = ACTIONS.get(request.POST.get("action", ""))
        if chosen_action is None:
            messages.error(request, "Choose an action first.")
            return self._back_to_list(request)
        require(request, chosen_action.permission)
        is_everything = request.POST.get("scope") == "everything"
        ticked = map(read_number, request.POST.getlist("ids")[:MOST_TICKED])
        ids = [each for each in ticked if each is not None]
        chosen = RunFilter.read(request.POST)
        if problems := RunFilter.not_understood(request.POST):
            problem = " ".join(problems)
        elif not is_everything and not ids:
            problem = "Select runs first, or choose all that match."
        else:
            problem = _misfit(chosen_action, chosen)
        if problem:
            messages.error(request, problem)
            return self._back_to_list(request)
        if "confirmed" not in request.POST:
            return self._ask(request, chosen_action, chosen, [] if is_everything else ids)
        reach = Reach(request, self.admin_site)
        if is_everything:
            self._act_on_all(request, chosen_action, chosen, reach)
        else:
            given = Run.objects.filter(pk__in=ids).select_related("chunk").defer("outputs")
            fit = [run for run in given.order_by("pk") if state_of(run) in chosen_action.accepts]
            runs = reach.among(fit)
            self._do(request, chosen_action, [runs], _log_of(runs))
        if reach.left_out:
            hidden = counted(reach.left_out, "run")
            messages.warning(request, f"You may not see the rows of {hidden}: left out.")
        return self._back_to_list(request)

    def _get(self, run_id: int) -> Run:
        found = Run.objects.select_related("node", "chunk", "chunk__batch")
        run = found.defer("chunk__batch__scope").filter(pk=run_id).first()
        if run is None:
            raise Http404(f"There is no run {run_id}. Superseded runs are pruned with time.")
        return run

    def _row_of(self, request: HttpRequest, run: Run) -> tuple[Runner | None, Seen, Any]:
        """The run's runner, what the user may see of its row, and the row unless it is hidden."""
        runner = registry.find(run.chunk.runner)
        database = None if runner is None else database_of(runner)
        seen = seen_rows(request, self.admin_site, [run], database)[run.pk]
        instance = seen.instance
        if instance is None and not seen.is_hidden and not seen.name.is_gone:
            instance = instance_of(run, database)
        return runner, seen, instance

    def _ask(
        self, request: HttpRequest, chosen_action: BulkAction, chosen: RunFilter, ids: list[int]
    ) -> HttpResponse:
        found = [len(ids)] if ids else [_number(each) for each in chosen_action.narrowed(chosen)]
        total = None if None in found else sum(filter(None, found))
        what = "all matching runs"
        if total is not None:
            about = "" if ids or total <= MOST_COUNTED else "about "
            what = f"{about}{counted(total, 'run')}"
        facts, _ = _words(chosen)
        return self.render(
            request,
            "confirm",
            f"{chosen_action.verb} {what}?",
            action=chosen_action,
            chosen=chosen,
            facts=[] if ids else [(_FACTS.get(name, name), value) for name, value in facts.items()],
            ids=ids,
            verb=f"{chosen_action.verb} {what}",
            refusal="Keep them" if chosen_action.name == "cancel" else "Cancel",
            next=self._back_to_list(request).url,
        )

    def _do(
        self, request: HttpRequest, chosen_action: BulkAction, found: Iterable[list[Run]], log: Log
    ) -> None:
        if chosen_action.change is None:
            self._retry(request, found, log)
            return
        changed = chosen_action.change(found)
        what = counted(changed, *chosen_action.done)
        if changed:
            self.note(request, what, *log.runs, about=log.about, detail=log.detail)
        else:
            messages.info(request, what)

    def _retry(self, request: HttpRequest, found: Iterable[list[Run]], log: Log) -> None:
        retried = interventions.retry_runs(
            found, requested_by=who(request), asked=self._asked(request)
        )
        if retried.runs:
            of = "run" if retried.ignored else "failed run"
            what = f"{counted(retried.runs, of)} queued for retry."
            runs = [run for run in log.runs if run.pk not in retried.outdated]
            links = self._links(retried.batches)
            self.note(request, what, *runs, *retried.batches, detail=log.detail, links=links)
        if retried.outdated:
            messages.warning(
                request,
                f"Skipped {counted(len(retried.outdated), 'run')} of an earlier version or "
                "configuration: no runner uses it any more.",
            )
        if not retried.runs and not retried.outdated:
            messages.info(request, "None of these runs is failed any more.")

    def _act_on_all(
        self, request: HttpRequest, chosen_action: BulkAction, chosen: RunFilter, reach: Reach
    ) -> None:
        log = _log_of_filter(chosen)
        parts = (each.each() for each in chosen_action.narrowed(chosen))
        found = map(reach.among, chain.from_iterable(parts))
        if chosen_action.change or chosen.group or chosen.state in chosen_action.named:
            self._do(request, chosen_action, found, log)
            return
        # More than these would keep the user waiting.
        first = _at_most(MOST_AT_ONCE, found)
        if first is not None:
            self._do(request, chosen_action, first, log)
            return
        # Too many for a request: workers find the failed runs and retry them.
        reach.left_out = 0
        begun = interventions.retry_matching(
            chosen,
            requested_by=who(request),
            asked=self._asked(request),
            narrowing=reach.narrowing,
        )
        if reach.is_cut:
            told = f"Only {number(MOST_NARROWED)} runs were looked at: ask again."
            messages.warning(request, told)
        what = f"All matching failed runs are retried in {counted(len(begun), 'batch', 'batches')}."
        links = self._links(begun)
        self.note(request, what, *begun, about=log.about, detail=log.detail, links=links)

    def _asked(self, request: HttpRequest) -> dict[str, Any]:
        return asked_by(request, self.admin_site, Permission.RETRY)

    def _links(self, batches: Sequence[Batch]) -> SafeString:
        """Links to the first few batches: ` Watch batch 5.`"""
        addresses = [(self.url("autorun_batch_change", each.pk), each.pk) for each in batches[:3]]
        links = format_html_join(", ", '<a href="{}">batch {}</a>', addresses)
        return format_html(" Watch {}.", links) if links else links

    def _back_to_list(self, request: HttpRequest) -> HttpResponseRedirect:
        query = urlencode(RunFilter.read(request.POST).written())
        return self.back(request, f"{self.url('autorun_run_changelist')}?{query}")


def _allowed(request: HttpRequest) -> list[BulkAction]:
    return [each for each in ACTIONS.values() if request.user.has_perm(each.permission)]


def _misfit(chosen_action: BulkAction, chosen: RunFilter) -> str:
    if not chosen.state or chosen.state in chosen_action.accepts:
        return ""
    accepted = " or ".join(chosen_action.accepts)
    return f"{chosen_action.verb} is for runs that are {accepted}; these are {chosen.state}."


def _log_of(runs: Sequence[Run]) -> Log:
    if len(runs) <= FEW:
        return Log(runs=runs)
    ids = ", ".join(str(run.pk) for run in runs)
    return Log(about=f"{len(runs)} ticked runs", detail=f"Of the runs {ids}.")


def _log_of_filter(chosen: RunFilter) -> Log:
    """One entry with the filter; the message pattern appears in the log only."""
    words, shape = _words(chosen)
    told = ", ".join(f"{name} {value}" for name, value in words.items()) or "no filter"
    detail = f"Of all runs: {told}" + (f"; {shape}" if shape else "")
    return Log(about=f"runs: {told}", detail=f"{detail}.")


def _words(chosen: RunFilter) -> tuple[dict[str, str], str]:
    """The filter in words, and the message pattern of its failure group, if it has one."""
    words, shape = chosen.written(), ""
    if chosen.group:
        words.pop("exception", None)
        words["group"] = "of failures that no longer exist"
        rounds = members_of(chosen.group, chosen.since, exception_class=chosen.exception)
        member = next(chain.from_iterable(members for members, _ in rounds), None)
        if member is not None:
            run = Run.objects.select_related("node", "chunk").get(pk=member.run_id)
            shape = member.shape
            words["group"] = f"{member.exception_class} of {run.chunk.runner} ({run.node})"
    return words, shape


def _number(chosen: RunFilter) -> int | None:
    """The number of matching runs, approximate beyond MOST_COUNTED; None if it is not known."""
    if not chosen.group:
        about = chosen.number()
        if about is None or about > MOST_COUNTED:
            return about
    found = 0
    for found in accumulate(map(len, chosen.each())):
        if found > MOST_COUNTED:
            return None
    return found


def _at_most(most: int, found: Iterable[list[Run]]) -> list[list[Run]] | None:
    """All runs found; None if they are more than `most`."""
    some: list[list[Run]] = []
    total = 0
    for runs in found:
        some.append(runs)
        total += len(runs)
        if total > most:
            return None
    return some


def _lead(chosen: RunFilter, total: int | None, *, is_exact: bool, is_by_time: bool) -> str:
    if is_by_time:
        return "Slowest of the newest runs first."
    if total is None:
        return "Newest first."
    noun = "run" if chosen.written() else "current run"
    matching = ("matches" if total == 1 else "match") if chosen.written() else ""
    about = "" if is_exact else "About "
    return f"{about}{counted(total, noun)} {matching}".rstrip() + ", newest first."


def _input(runner: Runner | None, instance: Any, *, most: int | None = None) -> str | None:
    if runner is None or instance is None:
        return None
    try:
        found = within(hooks.HOOK_SECONDS, lambda: runner.get_instance_representation(instance))
        if found is None or isinstance(found, Model):  # the row itself, which the page names
            return None
        return as_json(found, most=most)
    except Exception as error:  # noqa: BLE001  a project's own hook
        return f"It cannot be prepared: {type(error).__name__}: {error}"
