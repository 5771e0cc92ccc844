"""Runs by filter, one run, and what can be done with many."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from autorun.admin.pages import PageAdmin, action, counted, page, require, who
from autorun.admin.permissions import Allowed, Permission
from autorun.admin.row_access import database_of, instance_of, key_text, seen_rows
from autorun.admin.stories import other_runs, story_of
from autorun.control import interventions
from autorun.declare import registry
from autorun.models import Run
from autorun.observe.failures import exception_classes
from autorun.observe.group_runs import members_of
from autorun.observe.listing import RunFilter
from autorun.observe.paging import Cursor, Page
from autorun.observe.run_states import STATES, state_of
from autorun.state.origins import ORIGINS
from autorun.state.parameters import SINCE, read_number

PAGE = 50
MOST_TICKED = 1_000
#: Runs that are counted one by one before something is done to them.
MOST_COUNTED = 10_000
#: Ticked runs up to this number have an entry each in the log of the admin.
FEW = 20
#: Failed runs that are retried while the user waits; more are found by workers.
MOST_AT_ONCE = 5_000


@dataclass(frozen=True)
class BulkAction:
    """Something to do with many runs: with those in `states`."""

    name: str
    verb: str
    permission: Permission
    states: tuple[str, ...]
    explanation: str
    #: States that it is for, too, where a filter or a tick names them.
    named: tuple[str, ...] = ()

    @property
    def accepts(self) -> tuple[str, ...]:
        return (*self.states, *self.named)


@dataclass(frozen=True)
class Log:
    """What the admin's log says of a deed: an entry for each of `runs`, or one `about` them all."""

    runs: Sequence[Run] = ()
    about: str = ""
    detail: str = ""


#: What came of an action on one run, and on many.
_DONE = {
    "ignore": (
        "failed run is ignored from now on.",
        "failed runs are ignored from now on.",
    ),
    "cancel": ("run cancelled before the start.", "runs cancelled before the start."),
}
ACTIONS: Mapping[str, BulkAction] = {
    each.name: each
    for each in (
        BulkAction(
            "retry",
            "Retry",
            Permission.RETRY,
            ("failed",),
            "Runs that failed for good run again, with all their attempts.",
            named=("ignored",),
        ),
        BulkAction(
            "ignore",
            "Ignore",
            Permission.CANCEL,
            ("failed",),
            "Runs that failed for good are left alone until their row's input changes.",
        ),
        BulkAction(
            "cancel",
            "Cancel",
            Permission.CANCEL,
            ("waiting", "queued", "parked"),
            "Runs that no worker has started are given up; a later sweep plans their rows again.",
        ),
    )
}


@admin.register(Run)
class RunAdmin(PageAdmin):
    """Runs, the newest first."""

    tab = "runs"

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("", self.listing, "changelist"),
            self.route("act/", self.act, "act"),
            self.route("<int:run_id>/change/", self.run_page, "change"),
        ]

    @page
    def listing(self, request: HttpRequest) -> HttpResponse:
        """A page of the runs that match; where it ends is where the next begins."""
        chosen = RunFilter.read(request.GET)
        problems = RunFilter.not_understood(request.GET)
        after = Cursor.read(request.GET.get("after", ""))
        found = Page([], None) if problems else chosen.page(after, size=PAGE)
        is_all = after is None and found.after is None
        seen = seen_rows(request, self.admin_site, found.runs)
        classes = exception_classes() | ({chosen.exception} - {""})
        allowed = Allowed(request.user)
        return self.render(
            request,
            "runs",
            "Runs",
            chosen=chosen,
            lines=[(run, state_of(run), seen[run.pk].name) for run in found.runs],
            problems=problems,
            total=len(found.runs) if is_all else chosen.number(),
            is_exact=is_all or not chosen.written(),
            query=urlencode(chosen.written()),
            older=None
            if found.after is None
            else urlencode({**chosen.written(), "after": str(found.after)}),
            is_first=after is None,
            runners=[runner.label for runner in registry.runners()],
            states=list(STATES),
            triggers=list(ORIGINS),
            since=list(SINCE),
            exceptions=sorted(classes),
            actions=[each for each in ACTIONS.values() if allowed.to(each.permission)],
        )

    @page
    def run_page(self, request: HttpRequest, run_id: int) -> HttpResponse:
        """One run: what went in, what came of it, when, and why."""
        found = Run.objects.select_related("node", "chunk", "chunk__batch")
        run = found.defer("chunk__batch__scope").filter(pk=run_id).first()
        if run is None:
            raise Http404(f"There is no run {run_id}. Superseded runs are pruned with time.")
        runner = registry.find(run.chunk.runner)
        database = None if runner is None else database_of(runner)
        seen = seen_rows(request, self.admin_site, [run], database)[run.pk]
        instance = seen.instance
        if instance is None and not seen.is_hidden and not seen.name.is_gone:
            instance = instance_of(run, database)
        may_see = seen.is_open and Allowed(request.user).to(Permission.SEE_PAYLOAD)
        others = other_runs(run)
        story = story_of(
            run,
            runner,
            instance,
            others=others,
            shows_messages=may_see,
            is_hidden=seen.is_hidden,
        )
        return self.render(
            request,
            "run",
            f"{run.node} on {seen.name}",
            run=run,
            state=state_of(run),
            is_unfinished=run.status == Run.Status.PENDING,
            name=seen.name,
            key=key_text(run),
            story=story,
            input=_input(runner, instance) if may_see else None,
            outputs=_pretty(run.outputs) if may_see else None,
            may_see=may_see,
            others=[(other, state_of(other)) for other in others],
            is_registered=runner is not None,
            accepted={each.name: state_of(run) in each.accepts for each in ACTIONS.values()},
        )

    @action(Permission.VIEW)
    def act(self, request: HttpRequest) -> HttpResponse:
        """Retry, ignore or cancel: first a question, then, confirmed, the deed."""
        chosen_action = ACTIONS.get(request.POST.get("action", ""))
        if chosen_action is None:
            messages.error(request, "Choose what to do with the runs.")
            return self._back_to_list(request)
        require(request, chosen_action.permission)
        is_everything = request.POST.get("scope") == "everything"
        given = map(read_number, request.POST.getlist("ids")[:MOST_TICKED])
        ids = [each for each in given if each is not None]
        chosen = RunFilter.read(request.POST)
        if problems := RunFilter.not_understood(request.POST):
            problem = " ".join(problems)
        elif not is_everything and not ids:
            problem = "Tick the runs that are meant, or choose all that match."
        else:
            problem = _misfit(chosen_action, chosen)
        if problem:
            messages.error(request, problem)
            return self._back_to_list(request)
        if "confirmed" not in request.POST:
            return self._ask(request, chosen_action, chosen, [] if is_everything else ids)
        if is_everything:
            log, found = _log_of_filter(chosen), _everything(chosen_action, chosen)
            if chosen_action.name == "retry" and _is_for_workers(chosen):
                first = _first(found)
                if first is None:
                    self._have_retried(request, chosen, log)
                    return self._back_to_list(request)
                found = iter(first)
            self._do(request, chosen_action, found, log)
        else:
            runs = _ticked(chosen_action, ids)
            self._do(request, chosen_action, [runs], _log_of(runs))
        return self._back_to_list(request)

    def _ask(
        self, request: HttpRequest, chosen_action: BulkAction, chosen: RunFilter, ids: list[int]
    ) -> HttpResponse:
        filters = _narrowed(chosen_action, chosen)
        numbers = [] if ids else [_number(each) for each in filters]
        facts, _ = _words(chosen)
        return self.render(
            request,
            "confirm",
            f"{chosen_action.verb} runs?",
            action=chosen_action,
            chosen=chosen,
            facts=facts,
            ids=ids,
            number=None if None in numbers else sum(filter(None, numbers)),
            is_exact=sum(filter(None, numbers)) <= MOST_COUNTED,
            next=self._back_to_list(request).url,
        )

    def _do(
        self,
        request: HttpRequest,
        chosen_action: BulkAction,
        found: Iterable[list[Run]],
        log: Log,
    ) -> None:
        if chosen_action.name == "retry":
            self._retry(request, found, log)
            return
        change = interventions.ignore if chosen_action.name == "ignore" else interventions.cancel
        number = change(found)
        what = counted(number, *_DONE[chosen_action.name])
        if number:
            self.note(request, what, *log.runs, about=log.about, detail=log.detail)
        else:
            messages.info(request, what)

    def _retry(self, request: HttpRequest, found: Iterable[list[Run]], log: Log) -> None:
        retried = interventions.retry(found, requested_by=who(request))
        if retried.runs:
            of = "failed or ignored" if retried.ignored else "failed"
            what = counted(retried.runs, f"{of} run starts again.", f"{of} runs start again.")
            runs = [run for run in log.runs if run.pk not in retried.outdated]
            self.note(request, what, *runs, *retried.batches, detail=log.detail)
        if retried.outdated:
            messages.warning(
                request,
                counted(len(retried.outdated), "run is", "runs are")
                + " of a version, configuration or runner that is no longer there: left as before.",
            )
        if not retried.runs and not retried.outdated:
            messages.info(request, "None of these runs has failed for good any more.")

    def _have_retried(self, request: HttpRequest, chosen: RunFilter, log: Log) -> None:
        """Have workers find so many failed runs, and run them again."""
        begun = interventions.retry_matching(chosen, requested_by=who(request))
        what = "All failed runs that match start again, as fast as workers find them: "
        what += counted(len(begun), "batch was begun.", "batches were begun.")
        self.note(request, what, *begun, about=log.about, detail=log.detail)

    def _back_to_list(self, request: HttpRequest) -> HttpResponseRedirect:
        query = urlencode(RunFilter.read(request.POST).written())
        return self.back(request, f"{self.url('autorun_run_changelist')}?{query}")


def _misfit(chosen_action: BulkAction, chosen: RunFilter) -> str:
    """What to say where the action is not for runs in the state of the filter; else ''."""
    if not chosen.state or chosen.state in chosen_action.accepts:
        return ""
    accepted = " or ".join(chosen_action.accepts)
    return f"{chosen_action.verb} is for runs that are {accepted}; these are {chosen.state}."


def _log_of(runs: Sequence[Run]) -> Log:
    """An entry for each of a few ticked runs; of many the ids."""
    if len(runs) <= FEW:
        return Log(runs=runs)
    ids = ", ".join(str(run.pk) for run in runs)
    return Log(about=f"{len(runs)} ticked runs", detail=f"Of the runs {ids}.")


def _log_of_filter(chosen: RunFilter) -> Log:
    """One entry, with the filter's words; the shape of messages is for the log alone."""
    words, shape = _words(chosen)
    told = ", ".join(f"{name} {value}" for name, value in words.items()) or "no filter"
    detail = f"Of all runs: {told}" + (f"; {shape}" if shape else "")
    return Log(about=f"runs: {told}", detail=f"{detail}.")


def _words(chosen: RunFilter) -> tuple[dict[str, str], str]:
    """The filter as it is told, and the shape of messages where it has a group of failures."""
    words, shape = chosen.written(), ""
    if chosen.group:
        words.pop("exception", None)
        words["group"], shape = _group_words(chosen)
    return words, shape


def _group_words(chosen: RunFilter) -> tuple[str, str]:
    """What failed in the filter's group, and the shape of its messages."""
    rounds = members_of(chosen.group, chosen.since, exception_class=chosen.exception)
    member = next((each for members, _ in rounds for each in members), None)
    if member is None:
        return "of failures that are no more", ""
    run = Run.objects.select_related("node", "chunk").get(pk=member.run_id)
    return f"{member.exception_class} of {run.chunk.runner} ({run.node})", member.shape


def _number(chosen: RunFilter) -> int | None:
    """How many runs match, where that is told in a moment; beyond MOST_COUNTED about how many."""
    if not chosen.group:
        about = chosen.number()
        if about is None or about > MOST_COUNTED:
            return about
    number = 0
    for runs in chosen.each():
        number += len(runs)
        if number > MOST_COUNTED:
            return None
    return number


def _narrowed(chosen_action: BulkAction, chosen: RunFilter) -> list[RunFilter]:
    """The filter for each state that the action is for."""
    states = [chosen.state] if chosen.state else chosen_action.states
    return [replace(chosen, state=state) for state in states]


def _everything(chosen_action: BulkAction, chosen: RunFilter) -> Iterator[list[Run]]:
    for each in _narrowed(chosen_action, chosen):
        yield from each.each()


def _ticked(chosen_action: BulkAction, ids: list[int]) -> list[Run]:
    """The ticked runs that are in a state that the action is for."""
    runs = Run.objects.filter(pk__in=ids).select_related("chunk").defer("outputs").order_by("pk")
    return [run for run in runs if state_of(run) in chosen_action.accepts]


def _is_for_workers(chosen: RunFilter) -> bool:
    """Whether workers can find the failed runs that match, should they be very many."""
    return not chosen.group and chosen.state != "ignored"


def _first(found: Iterable[list[Run]]) -> list[list[Run]] | None:
    """All that is found; None where that is more than a request should wait for."""
    some: list[list[Run]] = []
    number = 0
    for runs in found:
        some.append(runs)
        number += len(runs)
        if number > MOST_AT_ONCE:
            return None
    return some


def _input(runner: Any, instance: Any) -> str | None:
    """What the analysis would be given for the row as it is now."""
    if runner is None or instance is None:
        return None
    try:
        return _pretty(runner.get_instance_representation(instance))
    except Exception as error:  # noqa: BLE001  a project's own hook
        return f"It cannot be prepared: {type(error).__name__}: {error}"


def _pretty(value: Any) -> str | None:
    if value is None:
        return None
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)
