"""The page of each runner, and the actions on it."""

import inspect
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.admin import cards
from autorun.admin.cards import begun, signed
from autorun.admin.markup import as_json, prose, time_since
from autorun.admin.pages import (
    IDLE_SECONDS,
    LIVELY_SECONDS,
    Permission,
    action,
    get_runner,
    is_fetched,
    page,
    require,
    sees_payload,
    who,
)
from autorun.admin.result_pages import ShowingResults, candidate_of, news_of, versions_of
from autorun.admin.row_access import find_row, message_for, name_of, quotes_for, sees_texts
from autorun.admin.selections import asked_by
from autorun.admin.stories import explanation_of, runs_behind
from autorun.admin.tables import batch_lines, runner_name
from autorun.conf import settings
from autorun.control import interventions
from autorun.declare import hooks, registry
from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import configuration_of, find_node, node_of
from autorun.declare.page_time import spent
from autorun.declare.sets import Each
from autorun.dispatch.publishing import Message, publish
from autorun.exceptions import AutorunError, BrokerUnavailable
from autorun.models import Batch, Node
from autorun.observe.glance import digest_or_problem, progresses_and_tally
from autorun.observe.held_up import held_up
from autorun.observe.new_versions import edits, held
from autorun.observe.run_states import state_of
from autorun.planning.counting import count_rows
from autorun.planning.pending import keys_to_try
from autorun.planning.scope import Scope
from autorun.state.counts import Progress
from autorun.state.keys import as_json as as_keys
from autorun.state.masking import masked, without_secrets
from autorun.state.words import duration, number

#: Seconds that one fragment of a page may count rows.
COUNTING_SECONDS = 0.8
NEWEST_BATCHES = 10
#: Rows on which a new version is tried.
TRIED = 10
#: A line break of the source within a paragraph of a docstring, and not before an item of a list.
_WRAPPED = re.compile(r"(?<!\n)\n(?=[^\s\-*\d])")
#: How an argument differs from the previous version, and the words before its value there.
CHANGES = {
    "added": gettext_noop("added"),
    "changed": gettext_noop("changed from"),
    "removed": gettext_noop("was"),
}


class RunnerPages(ShowingResults):
    tab = "overview"

    @page("<str:label>/")
    def runner(self, request: HttpRequest, label: str) -> HttpResponse:
        runner = get_runner(label)
        versions, tally = progresses_and_tally(versions_of(runner))
        card = cards.card_of(runner, versions)
        now, shows = card.node, sees_texts(request, self.admin_site, runner)
        candidate = candidate_of(runner, versions)
        older = [node for node in versions if now is None or node.created_at < now.created_at]
        batches = Batch.objects.filter(runner=label).defer("scope").order_by("-pk")[:NEWEST_BATCHES]
        return self.render(
            request,
            "runner",
            card.name,
            tally=tally,
            refresh_seconds=LIVELY_SECONDS if card.progress.unfinished else IDLE_SECONDS,
            card=card,
            runner=runner,
            analysis=self._described(request, runner),
            configuration=_compared(runner, now, older[0] if older else None),
            previous=older[0].version if older else "",
            versions=[
                _version(node, found, is_current=node == now, is_candidate=node == candidate)
                for node, found in versions.items()
            ],
            batches=batch_lines(batches, tally),
            facts=_facts(runner),
            now=now,
            news=news_of(runner, now, versions, card.next_sweep),
            edits=edits([runner] if now and now.has_other_code else []),  # type: ignore[attr-defined]
            paused_because=now.paused_because if now is not None and shows else "",
            held_up=[
                (
                    *(each.what, time_since(each.since), each.reason if shows else ""),
                    time_since(each.next_try),
                )
                for each in held_up(label)
            ],
        )

    @page("<int:node_id>/change/")
    def change(self, request: HttpRequest, node_id: int) -> HttpResponse:
        """The target of links in the admin's log: the runner of a node, or the overview."""
        node = Node.objects.filter(pk=node_id).first()
        for runner in registry.runners():
            if node is not None and digest_or_problem(runner)[0] == node.digest:
                return self.redirect("autorun_node_runner", runner.label)
        return self.redirect("autorun_node_changelist")

    @page("<str:label>/count/")
    def count(self, request: HttpRequest, label: str) -> HttpResponse:
        """A card's bar with its pending rows counted, or with a link to continue counting."""
        # The count is shown to others if it is a POST, as the script sends it.
        runner = get_runner(label)
        count, problem = None, ""
        try:
            with spent(f"The query for the rows of {label}"):
                count = count_rows(runner, begun=begun(request, runner), seconds=COUNTING_SECONDS)
        except AutorunError as error:
            problem = message_for(request, self.admin_site, error, runner)
        card = replace(*cards.cards_of([runner], is_brief=True), error=problem)
        if count is not None and count.is_complete:
            left_out, is_stored = every_row(runner).count() - count.total, request.method == "POST"
            card = cards.with_count(card, count, left_out=left_out, is_stored=is_stored)
        elif count is not None:
            card = replace(card, counting=count, continued=signed(request, count, runner))
        if is_fetched(request):
            return self.fragment(request, "coverage", card=card, problem=problem)
        return self.render(request, "count", _("Rows of %s") % card.name, card=card)

    @page("<str:label>/why/")
    def why(self, request: HttpRequest, label: str) -> HttpResponse:
        runner = get_runner(label)
        instance = find_row(request, self.admin_site, runner, request.GET.get("row", ""))
        if instance is None:
            raise Http404("There is no such row, or you do not have permission to see it.")
        name, its_name = name_of(self.admin_site, instance), runner_name(runner.label)
        found = explanation_of(runner, instance, quotes_for(request, self.admin_site, runner))
        return self.render(
            request,
            "why",
            _("%(version)s on %(row)s") % {"version": its_name, "row": name},
            runner=runner,
            runner_name=its_name,
            runner_title=cards.title_of_runner(runner),
            name=name,
            runs=[
                (run.pk, state_of(run), str(run.node), time_since(run.finished_at))
                for run in runs_behind(runner, instance)
            ],
            reason=prose(found.reason),
        )

    @action("<str:label>/sweep/", Permission.START)
    def sweep(self, request: HttpRequest, label: str) -> HttpResponse:
        """Have a worker plan the pending rows."""

        def send(runner: Runner) -> bool:
            node = find_node(runner)
            if node.held_at is None:
                return self._send_sweep(request, runner)
            of = {"label": label, "held": held(node)}
            messages.warning(request, _("No sweep of %(label)s was started: %(held)s.") % of)
            return False

        return self._change(request, label, send, _("Sweep of %s queued.") % label)

    @action("<str:label>/start-all/", Permission.START)
    def start_all(self, request: HttpRequest, label: str) -> HttpResponse:
        """Resume the sweeps of a held version, and sweep."""
        require(request, Permission.PAUSE)

        def start(runner: Runner) -> bool:
            if interventions.lift_hold(runner):
                self.note(request, _("Sweeps of %s resumed.") % label, node_of(runner))
            return self._send_sweep(request, runner)

        return self._change(request, label, start, _("Sweep of %s queued.") % label)

    @action("<str:label>/try/", Permission.START)
    def try_some(self, request: HttpRequest, label: str) -> HttpResponse:
        """Start a few pending rows: those that a candidate version would run on."""
        runner, by = get_runner(label), who(request)
        try:
            keys = tuple(as_keys(keys_to_try(runner, TRIED)))
            if not keys:
                raise AutorunError(_("No row is pending."))
            asked = asked_by(request, self.admin_site, Permission.START)
            scope = Scope(pks=keys, asked=asked)
            batch = interventions.request_backfill(runner, scope, limit=TRIED, requested_by=by)
        except AutorunError as error:
            reason = message_for(request, self.admin_site, error, runner)
            messages.error(request, _("Nothing was started: %s") % reason)
            return self.redirect("autorun_node_runner", label)
        message = ngettext(
            "%(version)s is tried on %(rows)s row.",
            "%(version)s is tried on %(rows)s rows.",
            len(keys),
        )
        of = {"version": cards.title_of_runner(runner), "rows": number(len(keys))}
        self.note(request, message % of, batch)
        return self.redirect("autorun_batch_change", batch.pk)

    @action("<str:label>/hold/", Permission.PAUSE)
    def hold(self, request: HttpRequest, label: str) -> HttpResponse:
        message = _("Sweeps and saves of %s are held: its rows stay pending.") % label
        hold = partial(interventions.hold_runner, by=who(request))
        return self._change(request, label, hold, message)

    @action("<str:label>/lift/", Permission.PAUSE)
    def lift(self, request: HttpRequest, label: str) -> HttpResponse:
        message = _("Sweeps of %s resumed. The next one plans what is pending.") % label
        return self._change(request, label, interventions.lift_hold, message)

    @action("<str:label>/pause/", Permission.PAUSE)
    def pause(self, request: HttpRequest, label: str) -> HttpResponse:
        message = _("Runner %s paused. Runs in progress will finish.") % label
        return self._change(request, label, interventions.pause_runner, message)

    @action("<str:label>/resume/", Permission.PAUSE)
    def resume(self, request: HttpRequest, label: str) -> HttpResponse:
        message = _("Runner %s resumed.") % label
        return self._change(request, label, interventions.resume_runner, message)

    def _send_sweep(self, request: HttpRequest, runner: Runner) -> bool:
        """Send the sweep; False, with a message on the next page, if no broker takes it."""
        label = runner.label
        try:
            publish([Message("autorun.sweep", (label,), queue=settings.QUEUE)])
        except BrokerUnavailable as error:
            message = _(
                "No broker took the sweep of %(label)s: %(error)s Try again in a moment, or "
                "run `manage.py autorun sweep %(label)s`."
            )
            messages.error(request, message % {"label": label, "error": error})
            return False
        return True

    def _described(self, request: HttpRequest, runner: Runner) -> dict[str, Any]:
        """The analysis: its location, its docstring, and its source if that can be read."""
        try:
            analysis = hooks.call(runner, "get_analysis")
        except Exception as error:  # noqa: BLE001  the page says so
            return {"error": message_for(request, self.admin_site, error, runner)}
        source = ""
        with suppress(OSError, TypeError):
            source = masked(inspect.getsource(analysis.function)) if sees_payload(request) else ""
        return {
            "title": analysis.title,
            "version": analysis.version,
            "location": analysis.location,
            "about": prose(_WRAPPED.sub(" ", inspect.getdoc(analysis.function) or "")),
            "source": source,
        }

    def _change(
        self, request: HttpRequest, label: str, change: Callable[[Runner], bool], message: str
    ) -> HttpResponse:
        runner = get_runner(label)
        try:
            node = node_of(runner)
        except AutorunError as error:
            reason = message_for(request, self.admin_site, error, runner)
            of = {"label": label, "reason": reason}
            messages.error(request, _("Runner %(label)s cannot run: %(reason)s") % of)
        else:
            if change(runner):
                self.note(request, message, node)
        return self.back(request, self.url("autorun_node_runner", label))


def _version(node: Node, found: Progress, **marks: bool) -> dict[str, Any]:
    is_about = node.is_crowded and found.unfinished > 0  # type: ignore[attr-defined]
    return marks | {
        "version": node.version,
        "configuration": as_json(without_secrets(node.configuration)),
        "since": time_since(node.created_at),
        "succeeded": number(found.succeeded),
        "failed": number(found.failed),
        "unfinished": number(found.unfinished, is_about=is_about),
    }


def _compared(runner: Runner, node: Node | None, previous: Node | None) -> list[dict[str, str]]:
    """Each argument of the configuration, and what it was in the previous version."""
    try:
        now = configuration_of(runner) if node is None else node.configuration
    except Exception:  # noqa: BLE001  the card says what is wrong
        return []
    before = now if previous is None else previous.configuration
    lines = []
    for key in now | before:
        old, new = (
            as_json(without_secrets(each[key], key)) if key in each else ""
            for each in (before, now)
        )
        change = ""
        if now.get(key) != before.get(key) or bool(old) != bool(new):
            change = ("changed" if old else "added") if new else "removed"
        in_words = _(CHANGES[change]) if change else ""
        lines.append({"key": key, "value": new, "change": change, "words": in_words, "before": old})
    return lines


def _label(named: type[Runner] | str | Each) -> str:
    return named.get_label() if isinstance(named, type) else str(named)


def _facts(runner: Runner) -> list[tuple[str, str]]:
    timeout = hooks.timeout_of(runner)
    labels = [_label(each) for each in runner.depends_on]
    title = _("%(name)s: outputs of %(runner)s")
    given = runner.input_from.items()
    outputs = [title % {"name": name, "runner": _label(each)} for name, each in given]
    facts = [
        (_("Rows"), str(runner.get_model()._meta.label)),
        (_("Input"), runner.INPUT_KEY or ""),
        (_("On save"), _("planned at once") if runner.ON_SAVE else _("not planned")),
        (_("Attempts"), str(runner.MAX_ATTEMPTS)),
        (_("Time limit of a run"), _("none") if timeout is None else duration(timeout)),
    ]
    optional = [
        (_("On write"), _("noted by triggers in the database") if runner.ON_WRITE else ""),
        (_("Changes tracked by"), ", ".join(map(str, runner.INPUT_FIELDS or ()))),
        (_("After"), ", ".join(dict.fromkeys(labels))),
        (_("Input of other runners"), ", ".join(outputs)),
        (_("Concurrent runs, at most"), number(runner.MAX_PARALLEL or None)),
        (_("Queue"), runner.QUEUE or settings.QUEUE or ""),
        (_("A sweep plans at most"), number(runner.MAX_PER_SWEEP or None)),
        (_("Named filters"), ", ".join(sorted(runner.FILTERS or {}))),
    ]
    return facts + [(name, value) for name, value in optional if value]
