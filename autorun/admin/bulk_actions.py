"""The actions on many runs, which the list and the page of a run offer."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import (
    gettext as _,
    gettext_lazy,
    gettext_noop,
    ngettext,
    ngettext_lazy,
)

from autorun.admin.pages import PageAdmin, Permission, action, require, who
from autorun.admin.row_access import MOST_NARROWED, Reach, message_for, open_runs
from autorun.admin.selections import asked_by
from autorun.admin.tables import name_of_run, runner_name
from autorun.control import interventions
from autorun.declare import registry
from autorun.exceptions import bare_message
from autorun.models import Batch, Run
from autorun.observe.group_runs import Member, members_of
from autorun.observe.listing import RunFilter
from autorun.observe.run_states import state_of
from autorun.state.parameters import read_number
from autorun.state.words import in_words, number

#: The most runs that can be selected on one page.
MOST_TICKED = 1_000
#: The names of filters on the page of confirmation.
_FACTS = {
    "runner": gettext_noop("Runner"),
    "state": gettext_noop("State"),
    "trigger": gettext_noop("Trigger"),
    "exception": gettext_noop("Error"),
    "since": gettext_noop("Finished within"),
    "ended_from": gettext_noop("Finished from"),
    "ended_until": gettext_noop("Finished until"),
    "row": gettext_noop("Row key"),
    "batch": gettext_noop("Batch"),
    "worker": gettext_noop("Worker"),
    "group": gettext_noop("Failures"),
    "message": gettext_noop("Message pattern"),
}
#: The group of failures in words if there are none any more.
GONE = gettext_noop("of failures that no longer exist")
#: The filters whose values are words, and not data.
WORDS = ("state", "trigger", "since", "group")
#: Runs that are counted one by one before an action on them.
MOST_COUNTED = 10_000
#: Up to this number, each selected run has an entry in the admin's log.
FEW = 20
#: Failed runs that are retried while the user waits; workers find the others. As many as are
#: checked, so that no run is checked twice.
MOST_AT_ONCE = MOST_NARROWED


@dataclass(frozen=True)
class BulkAction:
    """An action on the runs in `states`; `choice` names it in the list's menu."""

    name: str
    choice: Any
    permission: Permission
    states: tuple[str, ...]
    explanation: Any
    #: Changes the runs and returns how many; None for retries, which create batches.
    change: Callable[[Iterable[list[Run]]], int] | None = None
    #: The result, with the number of runs.
    done: Any = ""
    #: States that it also accepts if a filter names them or such a run is selected.
    named: tuple[str, ...] = ()

    @property
    def verb(self) -> str:
        return _(VERBS[self.name])

    @property
    def accepts(self) -> tuple[str, ...]:
        return (*self.states, *self.named)

    def narrowed(self, chosen: RunFilter) -> list[RunFilter]:
        states = [chosen.state] if chosen.state else self.states
        return [replace(chosen, state=state) for state in states]


VERBS = {
    "retry": gettext_noop("Retry"),
    "ignore": gettext_noop("Ignore"),
    "cancel": gettext_noop("Cancel"),
}
ACTIONS: Mapping[str, BulkAction] = {
    each.name: each
    for each in (
        BulkAction(
            "retry",
            gettext_lazy("Retry failed and ignored runs"),
            Permission.RETRY,
            ("failed",),
            gettext_lazy("They start again with a fresh set of attempts."),
            named=("ignored", "not_applicable"),
        ),
        BulkAction(
            "ignore",
            gettext_lazy("Ignore failed runs"),
            Permission.CANCEL,
            ("failed",),
            gettext_lazy("They are left alone until the input of their row changes."),
            interventions.ignore_runs,
            ngettext_lazy(
                "%(n)s failed run is ignored from now on.",
                "%(n)s failed runs are ignored from now on.",
                "count",
            ),
        ),
        BulkAction(
            "cancel",
            gettext_lazy("Cancel unfinished runs"),
            Permission.CANCEL,
            ("waiting", "postponed", "queued", "parked"),
            gettext_lazy(
                "They do not start, and those that are running are stopped within seconds. A later "
                "sweep plans their rows again."
            ),
            interventions.cancel_runs,
            ngettext_lazy("%(n)s run cancelled.", "%(n)s runs cancelled.", "count"),
            named=("running",),
        ),
    )
}


def allowed(request: HttpRequest) -> list[BulkAction]:
    return [each for each in ACTIONS.values() if request.user.has_perm(each.permission)]


@dataclass(frozen=True)
class Log:
    """The entries in the admin's log: one for each of `runs`, or one `about` all of them."""

    runs: Sequence[Run] = ()
    about: str = ""
    detail: str = ""


class ActingOnRuns(PageAdmin):
    """The view that acts on selected runs, or on all runs that match a filter."""

    @action("act/", Permission.VIEW)
    def act(self, request: HttpRequest) -> HttpResponse:
        """Retry, ignore or cancel: ask for confirmation, then act."""
        chosen_action = ACTIONS.get(request.POST.get("action", ""))
        if chosen_action is None:
            messages.error(request, _("Choose an action first."))
            return self._back_to_list(request)
        require(request, chosen_action.permission)
        is_everything = request.POST.get("scope") == "everything"
        ticked = map(read_number, request.POST.getlist("ids")[:MOST_TICKED])
        ids = [each for each in ticked if each is not None]
        chosen = RunFilter.read(request.POST)
        if problems := RunFilter.not_understood(request.POST):
            problem = " ".join(problems)
        elif not is_everything and not ids:
            problem = _("Select runs first, or choose all that match.")
        else:
            problem = _misfit(chosen_action, chosen)
        if problem:
            messages.error(request, problem)
            return self._back_to_list(request)
        if "confirmed" not in request.POST:
            return self._ask(request, chosen_action, chosen, [] if is_everything else ids)
        reach = Reach(request, self.admin_site)
        if is_everything:
            following = self._act_on_all(request, chosen_action, chosen, reach)
        else:
            given = Run.objects.filter(pk__in=ids).select_related("chunk").defer("outputs")
            fit = [run for run in given.order_by("pk") if state_of(run) in chosen_action.accepts]
            runs = reach.among(fit)
            following = self._do(request, chosen_action, [runs], _log_of(runs), reach)
        _tell_of_limits(request, reach)
        return following

    def _ask(
        self, request: HttpRequest, chosen_action: BulkAction, chosen: RunFilter, ids: list[int]
    ) -> HttpResponse:
        found = [len(ids)] if ids else [_number(each) for each in chosen_action.narrowed(chosen)]
        total = None if None in found else sum(filter(None, found))
        what = _("all matching runs")
        if total is not None:
            what = ngettext("%s run", "%s runs", total) % number(total)
            what = what if ids or total <= MOST_COUNTED else _("about %s") % what
        verb = _("%(verb)s %(runs)s") % {"verb": chosen_action.verb, "runs": what}
        facts, member = _words(chosen)
        if member is not None and open_runs(request, self.admin_site, [member.run_id]):
            facts["message"] = member.shape
        return self.render(
            request,
            "confirm",
            _("%s?") % verb,
            action=chosen_action,
            chosen=chosen,
            facts=[]
            if ids
            else [(_(_FACTS[name]), _fact(name, value)) for name, value in facts.items()],
            ids=ids,
            verb=verb,
            refusal=_("Keep them") if chosen_action.name == "cancel" else _("Cancel"),
            next=self._back_to_list(request).url,
        )

    def _do(
        self,
        request: HttpRequest,
        chosen_action: BulkAction,
        found: Iterable[list[Run]],
        log: Log,
        reach: Reach,
    ) -> HttpResponse:
        if chosen_action.change is None:
            return self._retry(request, found, log, reach)
        changed = chosen_action.change(found)
        what = chosen_action.done % {"count": changed, "n": number(changed)}
        if changed:
            self.note(request, what, *log.runs, about=log.about, detail=log.detail)
        else:
            messages.info(request, what)
        return self._back_to_list(request)

    def _retry(
        self, request: HttpRequest, found: Iterable[list[Run]], log: Log, reach: Reach
    ) -> HttpResponse:
        retried = interventions.retry_runs(
            found, requested_by=who(request), asked=self._asked(request)
        )
        following, links = self._following(request, retried, reach)
        if retried.runs:
            what = ngettext(
                "%s failed run queued for retry.", "%s failed runs queued for retry.", retried.runs
            )
            if retried.ignored:
                what = ngettext(
                    "%s run queued for retry.", "%s runs queued for retry.", retried.runs
                )
            what %= number(retried.runs)
            runs = [run for run in log.runs if run.pk not in retried.outdated]
            self.note(request, what, *runs, *retried.batches, detail=log.detail, links=links)
        self._tell_of_left(request, retried)
        if retried.outdated:
            outdated = ngettext(
                "Skipped %s run of an earlier version or configuration: no runner uses it any "
                "more.",
                "Skipped %s runs of an earlier version or configuration: no runner uses it any "
                "more.",
                len(retried.outdated),
            )
            messages.warning(request, outdated % number(len(retried.outdated)))
        if not (retried.runs or retried.outdated or retried.left):
            messages.info(request, _("None of these runs is still failed."))
        return following

    def _act_on_all(
        self, request: HttpRequest, chosen_action: BulkAction, chosen: RunFilter, reach: Reach
    ) -> HttpResponse:
        log = _log_of_filter(chosen)
        found = reach.matching(chosen_action.name, *chosen_action.narrowed(chosen))
        if chosen_action.change or chosen.group or chosen.state in chosen_action.named:
            return self._do(request, chosen_action, found, log, reach)
        # More than these would keep the user waiting.
        first = _at_most(MOST_AT_ONCE, found)
        if first is not None:
            return self._do(request, chosen_action, first, log, reach)
        # Too many for a request: workers find the failed runs and retry them.
        reach.start_over()
        retried = interventions.retry_matching(
            chosen,
            requested_by=who(request),
            asked=self._asked(request),
            narrowing=reach.narrowing(chosen_action.name),
        )
        following, links = self._following(request, retried, reach)
        begun = retried.batches
        what = ngettext(
            "All matching failed runs are retried in %s batch.",
            "All matching failed runs are retried in %s batches.",
            len(begun),
        ) % number(len(begun))
        if begun or not retried.left:
            self.note(request, what, *begun, about=log.about, detail=log.detail, links=links)
        self._tell_of_left(request, retried)
        return following

    def _tell_of_left(self, request: HttpRequest, retried: interventions.Retried) -> None:
        for label, error in retried.left.items():
            reason = message_for(request, self.admin_site, error, registry.find(label))
            of = {"label": label, "reason": reason}
            message = _("The runs of %(label)s were not retried: %(reason)s")
            messages.warning(request, message % of)

    def _asked(self, request: HttpRequest) -> dict[str, Any]:
        return asked_by(request, self.admin_site, Permission.RETRY)

    def _following(
        self, request: HttpRequest, retried: interventions.Retried, reach: Reach
    ) -> tuple[HttpResponse, SafeString]:
        """The page after a retry, and the links in its message."""
        # It is that of the batch if there is one batch and no run was left out.
        back = self._back_to_list(request)
        has_left_some = retried.left or retried.outdated or reach.left_out or reach.is_cut
        if len(retried.batches) != 1 or has_left_some:
            return back, self._links(retried.batches)
        link = format_html(' <a href="{}">{}</a>', back.url, _("Go back"))
        return self.redirect("autorun_batch_change", retried.batches[0].pk), link

    def _links(self, batches: Sequence[Batch]) -> SafeString:
        """Links to the first few batches: ` Watch batch 5.`"""
        addresses = [
            (self.url("autorun_batch_change", each.pk), _("batch %s") % each.pk)
            for each in batches[:3]
        ]
        links = format_html_join(", ", '<a href="{}">{}</a>', addresses)
        return format_html(" " + _("Watch {}."), links) if links else links

    def _back_to_list(self, request: HttpRequest) -> HttpResponseRedirect:
        query = urlencode(RunFilter.read(request.POST).written())
        return self.back(request, f"{self.url('autorun_run_changelist')}?{query}")


def _tell_of_limits(request: HttpRequest, reach: Reach) -> None:
    """Say which runs an action left out, and whether it checked all of them."""
    if reach.left_out:
        hidden = ngettext(
            "Left out %s run whose row you may not see.",
            "Left out %s runs whose rows you may not see.",
            reach.left_out,
        )
        messages.warning(request, hidden % number(reach.left_out))
    if reach.is_cut:
        checked = ngettext(
            "Only %s run was checked. Repeat the action for the next ones.",
            "Only %s runs were checked. Repeat the action for the next ones.",
            reach.examined,
        )
        messages.warning(request, checked % number(reach.examined))
        if reach.slow is not None:
            messages.warning(request, bare_message(reach.slow))


def _misfit(chosen_action: BulkAction, chosen: RunFilter) -> str:
    if not chosen.state or chosen.state in chosen_action.accepts:
        return ""
    return _("%(verb)s is for runs that are %(accepted)s; these are %(state)s.") % {
        "verb": chosen_action.verb,
        "accepted": _(" or ").join(map(in_words, chosen_action.accepts)),
        "state": in_words(chosen.state),
    }


def _log_of(runs: Sequence[Run]) -> Log:
    if len(runs) <= FEW:
        return Log(runs=runs)
    ids = ", ".join(str(run.pk) for run in runs)
    return Log(about=f"{len(runs)} selected runs", detail=f"Of the runs {ids}.")


def _log_of_filter(chosen: RunFilter) -> Log:
    """One entry with the filter; the message pattern appears in the log only."""
    words, member = _words(chosen)
    shape = "" if member is None else member.shape
    filters = ", ".join(f"{name} {value}" for name, value in words.items()) or "no filter"
    detail = f"Of all runs: {filters}" + (f"; {shape}" if shape else "")
    return Log(about=f"runs: {filters}", detail=f"{detail}.")


def _fact(name: str, value: str) -> str:
    if name == "state":
        return in_words(value)
    if name == "runner":
        return runner_name(value)
    return _(value) if name in WORDS else value


def _words(chosen: RunFilter) -> tuple[dict[str, str], Member | None]:
    """The filter in words, and the newest run of its failure group, if it has one."""
    words, member = chosen.written(), None
    if chosen.group:
        words.pop("exception", None)
        words["group"] = GONE
        rounds = members_of(chosen.group, chosen.since, exception_class=chosen.exception)
        member = next(chain.from_iterable(members for members, _ in rounds), None)
        if member is not None:
            run = Run.objects.select_related("node", "chunk").get(pk=member.run_id)
            words["group"] = f"{member.exception_class} · {name_of_run(run)}"
    return words, member


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
