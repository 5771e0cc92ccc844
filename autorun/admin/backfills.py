"""A backfill before it starts: its scope and its preview."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self
from urllib.parse import urlencode

from django.contrib.admin import AdminSite
from django.db.models import QuerySet
from django.http import Http404, HttpRequest
from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.admin.cards import Card, signed
from autorun.admin.pages import Permission, who
from autorun.admin.row_access import Name, name_of, visible
from autorun.admin.selections import ChosenRows, asked_by, find
from autorun.conf import settings
from autorun.control.interventions import request_backfill
from autorun.declare.base import Runner
from autorun.declare.hooks import as_plain, database_of, every_row
from autorun.models import Batch
from autorun.planning.counting import Count, groups_of, number_planned
from autorun.planning.reasons import Reason
from autorun.planning.same_input import count_same_input
from autorun.planning.scope import Scope
from autorun.state.keys import concrete, key_kind
from autorun.state.parameters import no_number, read_number, read_text
from autorun.state.words import REASONS, estimate, number

#: The largest number in a column of 32 bits.
MOST_RUNS = (1 << 31) - 1
#: The values of `only`, in the words of the form.
ONLY = {
    "": gettext_noop("Pending rows: without a run, or changed since"),
    "missing": gettext_noop("Rows without a run"),
    "changed": gettext_noop("Rows that have changed since their run"),
    "failed": gettext_noop("Rows whose run failed"),
    "not_applicable": gettext_noop("Rows that were not applicable"),
    "all": gettext_noop("All of these: pending and failed"),
    "again": gettext_noop("Re-run everything, including successes"),
}
#: Those that run rows again which are neither pending nor failed.
RUN_AGAIN = ("not_applicable", "again")
LOST = gettext_noop("The selected rows are no longer known. Select them again.")


@dataclass(frozen=True)
class BackfillRequest:
    """The values of the form; with any of `problems`, by field, it is not carried out."""

    only: str = ""
    filter: str = ""
    selection: str = ""
    limit: int | None = None
    window: int | None = None
    problems: Mapping[str, str] = field(default_factory=dict)
    #: The rows that the user chose on the model's own page.
    chosen: ChosenRows | None = None

    @classmethod
    def read(cls, request: HttpRequest, runner: Runner) -> Self:
        """The form of a backfill of `runner`. Raises Http404 for chosen rows of another model."""
        given = request.POST if request.method == "POST" else request.GET
        only, selection = str(given.get("only", "")), read_text(given, "selection")
        problems = {"only": "" if only in ONLY else _("Unknown choice “%s”.") % only[:40]}
        chosen = find(request, selection) if selection else None
        if chosen and concrete(chosen.get_model()) is not concrete(runner.get_model()):
            raise Http404(f"{runner.label} does not process the chosen rows.")
        numbers = {}
        for name in ("limit", "window"):
            numbers[name] = read_number(given.get(name), least=1, most=MOST_RUNS)
            problems[name] = no_number(given.get(name), least=1, most=MOST_RUNS)
        return cls(
            only=only if only in ONLY else "",
            filter=read_text(given, "filter"),
            selection=selection,
            chosen=chosen,
            problems={name: problem for name, problem in problems.items() if problem},
            **numbers,
        )

    def query(self, **more: str) -> str:
        known = ("only", "filter", "selection", "limit", "window")
        values = {name: value for name in known if (value := getattr(self, name))}
        return urlencode({**values, **more})

    @property
    def scope(self) -> Scope:
        if self.only == "again":
            return Scope(filter=self.filter or None, force=True)
        return Scope(filter=self.filter or None, only=self.only or None)

    @property
    def is_lost(self) -> bool:
        """Whether the session no longer knows the rows that were chosen."""
        return bool(self.selection) and self.chosen is None

    def queryset(
        self, request: HttpRequest, site: AdminSite, runner: Runner
    ) -> QuerySet[Any] | None:
        """The rows in scope, once `is_lost` is ruled out; None for the runner's default."""
        if self.chosen is None:
            return self.scope.queryset(runner)
        return as_plain(runner, self.chosen.queryset(request, site))

    def rows_in_words(self, names: str) -> str:
        """The rows in scope, before `only` is applied."""
        chosen = self.chosen
        if chosen is None:
            return _("All %s this runner covers.") % names
        if chosen.keys is None:
            return _("All rows that match your filter of %(model)s: %(filter)s.") % {
                "model": names,
                "filter": chosen.query or _("no filter"),
            }
        if len(chosen.keys) == 1:
            return _("The row that you selected.")
        return _("The %(number)s %(model)s that you selected.") % {
            "number": number(len(chosen.keys)),
            "model": names,
        }

    @property
    def needs(self) -> Permission:
        """The permission to start it: a few selected rows are not a backfill."""
        # Running others than pending and failed ones is, and so are more at a time than usual.
        chosen = self.chosen
        is_few = chosen is not None and chosen.keys is not None and self.only not in RUN_AGAIN
        is_usual = self.window is None or self.window <= settings.WINDOW
        return Permission.START if is_few and is_usual else Permission.BACKFILL

    def start(self, request: HttpRequest, site: AdminSite, runner: Runner) -> Batch:
        """Start the backfill, once `is_lost` is ruled out.

        Raises ValueError for an unknown `only`, NotRegistered for an unknown filter,
        PermissionDenied if the user may not view the chosen rows' model, and RowsGone if only this
        request's hooks could tell which rows were chosen, and there are too many.
        """
        scope = replace(self.scope, asked=asked_by(request, site, self.needs))
        if self.chosen is not None:
            source = self.chosen.source(request, site, runner, self.needs)
            scope = replace(scope, filter=None, source=source)
        return request_backfill(
            runner, scope, limit=self.limit, window=self.window, requested_by=who(request)
        )

    def left_out(self, batch: Batch) -> int:
        """The number of selected rows left out of the batch because the user may not see them."""
        ticked = () if self.chosen is None or self.chosen.keys is None else self.chosen.keys
        return len(ticked) - len(batch.scope["source"]["keys"]) if ticked else 0


def preview_shown(
    request: HttpRequest, site: AdminSite, card: Card, asked: BackfillRequest, count: Count
) -> dict[str, Any]:
    """The preview in the words of the page, as far as the rows have been counted.

    `query` continues an unfinished count.
    """
    names = _names(request, site, card.runner, count)
    groups = groups_of(card.runner, count, asked.scope.selection)
    lines = [
        {
            "words": _(REASONS[group.reason]),
            "rows": number(group.rows),
            "is_planned": group.is_planned,
            "samples": [names[key] for key in count.samples.get(group.reason, ()) if key in names],
        }
        for group in groups
        if group.rows
    ]
    runs = number_planned(groups, limit=asked.limit)
    if not count.is_complete:
        line = ngettext("%s run, still counting…", "%s runs, still counting…", runs) % number(runs)
        button = _("Start without a full count")
    else:
        line = ngettext("%s run would start", "%s runs would start", runs) % number(runs)
        line = line if runs else _("Nothing would start")
        button = ngettext("Start %s run", "Start %s runs", runs) % number(runs)
    return {
        "lines": lines,
        "runs": runs,
        "words": line,
        "time": _time_of(card, runs) if runs else "",
        "button": button,
        "is_complete": count.is_complete,
        "keep": _keep(card.runner, count),
        "query": asked.query(begun=signed(request, count, card.runner, asked.query())),
    }


def _keep(runner: Runner, count: Count) -> str:
    """The command that keeps results if some of the changed rows have the input they had."""
    kind = key_kind(runner.get_model())
    changed = [kind.to_pk(key) for key in count.samples.get(Reason.CHANGED, ())]
    if not changed or not count_same_input(runner, every_row(runner).filter(pk__in=changed)):
        return ""
    return f"manage.py autorun adopt {runner.label} --same-input"


def _time_of(card: Card, runs: int) -> str:
    seconds = card.activity.seconds_for(runs, run_seconds=card.run_seconds)
    if seconds is None:
        return _("No estimate: this version has not run yet.")
    if card.activity.per_second_at_work:
        return _("About %s at the recent rate.") % estimate(seconds)
    return _("About %s of work, one run after the other.") % estimate(seconds)


def _names(request: HttpRequest, site: AdminSite, runner: Runner, count: Count) -> dict[str, Name]:
    model = runner.get_model()
    kind = key_kind(model)
    keys = {key for found in count.samples.values() for key in found}
    pks = {key: kind.to_pk(key) for key in keys}
    shown = visible(request, site, model, pks.values(), database_of(runner))
    return {key: name_of(site, shown[pk]) if pk in shown else Name(key) for key, pk in pks.items()}
