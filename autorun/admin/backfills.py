"""A backfill before it begins: its scope, what it would do, and the word to go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied

from autorun.admin.permissions import Permission
from autorun.admin.row_access import Name, may_view, name_of, visible
from autorun.admin.selections import Selection, find
from autorun.control.interventions import request_backfill
from autorun.declare.hooks import as_plain, database_of
from autorun.declare.runner import Runner
from autorun.models import Batch
from autorun.planning.counting import Count
from autorun.planning.preview import groups_of, number_planned
from autorun.planning.scope import Scope
from autorun.state.keys import key_kind
from autorun.state.parameters import no_number, read_number, read_text
from autorun.state.words import REASONS

if TYPE_CHECKING:
    from django.contrib.admin import AdminSite
    from django.db.models import QuerySet
    from django.http import HttpRequest

    from autorun.admin.cards import Card

#: What a column of 32 bits takes.
MOST_RUNS = (1 << 31) - 1
#: What `only` may be, as the form says it.
ONLY = {
    "": "Pending rows: without a run, or changed since",
    "missing": "Rows without a run",
    "changed": "Rows that have changed since their run",
    "failed": "Rows whose run failed",
    "all": "All of these: pending and failed",
    "again": "Everything again, also what has succeeded",
}
LOST = "The chosen rows are no longer known: choose them again."


@dataclass(frozen=True)
class Request:
    """What somebody asked for on the form."""

    only: str = ""
    filter: str = ""
    selection: str = ""
    limit: int | None = None
    window: int | None = None
    #: What is wrong with fields, by their name. Such a request is not carried out.
    problems: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Request:
        """The request in a form's values."""
        only = str(given.get("only", ""))
        limit, window = given.get("limit"), given.get("window")
        problems = {
            "only": "" if only in ONLY else f"There is no choice “{only[:40]}”.",
            "limit": no_number(limit, least=1, most=MOST_RUNS),
            "window": no_number(window, least=1, most=MOST_RUNS),
        }
        return cls(
            only=only if only in ONLY else "",
            filter=read_text(given, "filter"),
            selection=read_text(given, "selection"),
            limit=read_number(limit, least=1, most=MOST_RUNS),
            window=read_number(window, least=1, most=MOST_RUNS),
            problems={name: problem for name, problem in problems.items() if problem},
        )

    def query(self, **more: str) -> str:
        """The request as a query string."""
        known = ("only", "filter", "selection", "limit", "window")
        values = {name: value for name in known if (value := getattr(self, name))}
        return urlencode({**values, **more})

    @property
    def scope(self) -> Scope:
        is_again = self.only == "again"
        return Scope(
            filter=self.filter or None,
            only=None if is_again else self.only or None,
            force=is_again,
        )

    def chosen(self, request: HttpRequest) -> Selection | None:
        """The rows somebody chose on the model's own page, if any."""
        return find(request, self.selection) if self.selection else None

    def is_lost(self, request: HttpRequest) -> bool:
        """Whether it is about chosen rows that the session does not know any more."""
        return bool(self.selection) and self.chosen(request) is None

    def queryset(
        self, request: HttpRequest, site: AdminSite, runner: Runner
    ) -> QuerySet[Any] | None:
        """The rows in scope; None for the runner's default queryset.

        Raises ValueError where chosen rows are no longer known.
        """
        chosen = self.chosen(request)
        if self.is_lost(request):
            raise ValueError(LOST)
        if chosen is None:
            return self.scope.queryset(runner)
        return as_plain(runner, chosen.queryset(request, site))

    def needs(self, request: HttpRequest) -> Permission:
        """What confirming takes: a few ticked rows are no backfill."""
        chosen = self.chosen(request)
        is_few = chosen is not None and not chosen.is_everything and self.only != "again"
        return Permission.START if is_few else Permission.BACKFILL

    def start(self, request: HttpRequest, site: AdminSite, runner: Runner) -> Batch:
        """Begin the backfill. Raises ValueError and NotRegistered for what there is not."""
        limits: dict[str, Any] = {
            "limit": self.limit,
            "window": self.window,
            "requested_by": request.user.get_username()[:255],
        }
        chosen = self.chosen(request)
        if self.is_lost(request):
            raise ValueError(LOST)
        if chosen is None:
            return request_backfill(runner, self.scope, **limits)
        if not may_view(request, site, chosen.get_model()):
            raise PermissionDenied
        if chosen.keys is None:
            scope = replace(self.scope, filter=None, source=chosen.source(request, site))
        else:
            scope = replace(self.scope, filter=None, pks=tuple(map(_plain, chosen.keys)))
        return request_backfill(runner, scope, **limits)


@dataclass(frozen=True)
class Line:
    """One reason of the preview: how many rows, whether they will run, and some of them."""

    reason: str
    words: str
    rows: int
    is_taken: bool
    samples: list[Name]


@dataclass(frozen=True)
class Preview:
    """What the backfill would do, as far as it has been counted."""

    count: Count
    lines: list[Line]
    runs: int
    seconds: float | None
    begun: str

    @property
    def is_complete(self) -> bool:
        return self.count.is_complete


def preview(
    request: HttpRequest, site: AdminSite, card: Card, asked: Request, count: Count
) -> Preview:
    """What was counted, in the words of the page."""
    names = _names(request, site, card.runner, count)
    groups = groups_of(card.runner, count, asked.scope.selection)
    lines = [
        Line(
            group.reason,
            REASONS[group.reason],
            group.rows,
            group.is_planned,
            [names[key] for key in count.samples.get(group.reason, ()) if key in names],
        )
        for group in groups
    ]
    runs = number_planned(groups, limit=asked.limit)
    seconds = card.activity.seconds_for(runs, run_seconds=card.run_seconds)
    return Preview(count, lines, runs, seconds, count.written())


def _names(request: HttpRequest, site: AdminSite, runner: Runner, count: Count) -> dict[str, Name]:
    """What to call the sampled rows, by key."""
    model = runner.get_model()
    kind = key_kind(model)
    keys = {key for found in count.samples.values() for key in found}
    pks = {key: kind.to_pk(key) for key in keys}
    shown = visible(request, site, model, pks.values(), database_of(runner))
    return {key: name_of(site, shown[pk]) if pk in shown else Name(key) for key, pk in pks.items()}


def _plain(key: Any) -> Any:
    return key if isinstance(key, int) else str(key)
