"""The states of rows on the list of their own model's admin: columns, and a filter by them."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.db.models import Exists, OuterRef, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from autorun.admin.markup import rendered
from autorun.admin.pages import address_of
from autorun.admin.row_access import runners_of
from autorun.admin.selections import is_exact
from autorun.admin.tables import runner_name
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.nodes import node_id_of
from autorun.declare.page_time import spent
from autorun.exceptions import AutorunError, bare_message
from autorun.models import Run
from autorun.observe.run_states import state_of
from autorun.planning.counting import Found, find_pending
from autorun.planning.pending import pending
from autorun.state.keys import key_kind
from autorun.state.words import in_words

UP_TO = "autorun_up_to"
DEFERS = "_autorun_defers"
#: Seconds after which the pending rows found so far are shown.
LOOKING_SECONDS = 0.5
#: Runners with a column and an action each.
MOST_COLUMNS = 3
#: States in the order of the merged column, before all others.
MERGED = ("failed", "parked", "running", "queued", "waiting", "succeeded")
#: The most keys that are stored: of selected rows, and of rows found to be pending.
MOST_KEYS = 1_000


class StatusColumn:
    """A column with the state of each row's current run for one runner."""

    def __init__(self, runner: Runner, site: admin.AdminSite) -> None:
        self._site = site
        self.label = runner.label
        #: The reason why a wrongly declared runner cannot run.
        self.problem = ""
        #: The state and the run of each row on the page, by primary key.
        self.states: Mapping[Any, tuple[str, Run]] = {}
        self.short_description = runner_name(runner.label)
        self.__name__ = f"autorun_{runner.label.replace('.', '_')}"

    def __call__(self, instance: Any) -> SafeString:
        state, run = self.states.get(instance.pk, ("", None))
        url = "" if run is None else address_of(self._site, "run_change", run.pk)
        context = {"state": state, "url": url, "problem": self.problem}
        return rendered("row_status", context)


class MergedColumn:
    """One column for many runners: how many of them have the row in which state, worst first."""

    short_description = "Autorun"
    __name__ = "autorun_runs_of_all"

    def __init__(self, columns: Sequence[StatusColumn]) -> None:
        self.columns = columns

    def __call__(self, instance: Any) -> SafeString:
        states = Counter(
            column.states.get(instance.pk, ("no_run", None))[0] for column in self.columns
        )
        order = [*MERGED, *sorted(states.keys() - set(MERGED))]
        without = _("%(number)s without a run")
        found = [
            (state, f"{states[state]} {in_words(state, states[state])}")
            if state != "no_run"
            else ("", without % {"number": states[state]})
            for state in order
            if states[state]
        ]
        return rendered("row_states", {"states": found})


class StatusFilter(admin.SimpleListFilter):
    """Rows that are pending, failed or done for one of the model's runners."""

    title = "autorun"
    parameter_name = "autorun"

    def __init__(
        self, request: HttpRequest, params: dict[str, Any], model: type[Any], model_admin: Any
    ) -> None:
        super().__init__(request, params, model, model_admin)
        if UP_TO in params:
            self.used_parameters[UP_TO] = params.pop(UP_TO)[-1]

    def expected_parameters(self) -> list[str | None]:
        return [self.parameter_name, UP_TO]

    @property
    def up_to(self) -> str:
        """The key from which to check downwards for pending rows; '' for the highest."""
        return str(self.used_parameters.get(UP_TO, ""))

    def chosen(self) -> tuple[str, Runner | None]:
        """The state of the rows to show, and the runner for which they are in it."""
        value = self.value()
        if value and value not in {given for given, _ in self.lookup_choices}:
            raise IncorrectLookupParameters(f"No runner of these rows has the state {value!r}.")
        state, _, label = (value or "").partition(":")
        return state, registry.find(label)

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        states = {"pending": _("pending"), "failed": _("failed"), "succeeded": _("up to date")}
        title = _("%(state)s for %(runner)s")
        runners = runners_shown(model_admin)
        if len(runners) > MOST_COLUMNS:
            label = (self.value() or "").partition(":")[2]
            chosen = [runner for runner in runners if runner.label == label]
            if not chosen:  # first the runner, then the state
                return [(f":{runner.label}", runner_name(runner.label)) for runner in runners]
            runners, states = chosen, {"": _("all rows"), **states}
        return [
            (f"{state}:{runner.label}", title % {"state": words, "runner": name})
            for runner, name in [(each, runner_name(each.label)) for each in runners]
            for state, words in states.items()
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        state, runner = self.chosen()
        if runner is None or not state:
            return queryset
        is_pending = state == "pending"
        if is_pending and getattr(request, DEFERS, False):
            return queryset
        try:
            if is_pending:
                return _pending(runner, queryset)
            node_id = node_id_of(runner)
        except AutorunError as error:
            return _none_for(request, queryset, error)
        kind = key_kind(queryset.model)
        runs = Run.objects.current().of(node_id).of_row(kind, kind.expression(OuterRef))
        runs = runs.failed() if state == "failed" else runs.succeeded()
        return queryset.filter(Exists(runs))


class WithStatus(ChangeList):
    """Finds the states of a page's rows in two queries, and pending rows within LOOKING_SECONDS."""

    autorun_found: Found | None = None

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> QuerySet[Any]:
        # Pending rows are found last, among the rows that pass all other filters.
        setattr(request, DEFERS, True)
        try:
            rows: QuerySet[Any] = super().get_queryset(request, *args, **kwargs)
        finally:
            setattr(request, DEFERS, False)
        chosen = next((each for each in self.filter_specs if isinstance(each, StatusFilter)), None)
        if chosen is None or args or kwargs:
            return rows
        state, runner = chosen.chosen()
        if state != "pending" or runner is None:
            return rows
        try:
            if is_exact(request):
                return _pending(runner, rows)
            with spent(f"The query for the pending rows of {runner.label}"):
                self.autorun_found = find_pending(
                    runner,
                    rows.order_by(),
                    up_to=chosen.up_to,
                    seconds=LOOKING_SECONDS,
                    most=MOST_KEYS,
                )
        except AutorunError as error:
            return _none_for(request, rows, error)
        kind = key_kind(runner.get_model())
        return rows.filter(pk__in=[kind.to_pk(key) for key in self.autorun_found.keys])

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        merged = [each.columns for each in self.list_display if isinstance(each, MergedColumn)]
        columns = [each for each in self.list_display if isinstance(each, StatusColumn)]
        columns += chain.from_iterable(merged)
        if not columns:
            return
        nodes: dict[StatusColumn, int] = {}
        for column in columns:
            try:
                nodes[column] = node_id_of(registry.get(column.label))
            except AutorunError as error:
                column.problem = bare_message(error)
        states = _states(self.model, list(self.result_list), list(nodes.values()))
        for column, node_id in nodes.items():
            column.states = states[node_id]


def runners_shown(model_admin: Any) -> list[Runner]:
    """The runners that the model's own list shows. Raises NotRegistered for an unknown label."""
    found, chosen = runners_of(model_admin.model), model_admin.autorun_runners
    if chosen is None:
        return found
    labels = [each if isinstance(each, str) else each.get_label() for each in chosen]
    by_label = {runner.label: runner for runner in found}
    for label in labels:
        registry.get(label)
    return [by_label[label] for label in labels if label in by_label]


def _none_for(request: HttpRequest, rows: QuerySet[Any], error: AutorunError) -> QuerySet[Any]:
    messages.error(request, _("The runner cannot run: %s") % bare_message(error))
    return rows.none()


def _pending(runner: Runner, rows: QuerySet[Any]) -> QuerySet[Any]:
    """All pending rows, without a time limit."""
    found = pending(runner, rows.order_by())
    if found.model is rows.model:
        return found
    return rows.filter(pk__in=found.order_by().values("pk"))


def _states(
    model: type[Any], rows: Sequence[Any], node_ids: Sequence[int]
) -> Mapping[int, dict[Any, tuple[str, Run]]]:
    """The state and the current run of each row, by node and primary key."""
    states: dict[int, dict[Any, tuple[str, Run]]] = defaultdict(dict)
    if rows:
        kind = key_kind(model)
        found = model._base_manager.using(rows[0]._state.db).filter(pk__in=[row.pk for row in rows])
        keyed = found.annotate(_autorun_key=kind.expression())
        pks = dict(keyed.values_list("_autorun_key", "pk"))
        runs = Run.objects.current().filter(node__in=node_ids).of_rows(kind, list(pks))
        for run in runs.select_related("chunk").defer("outputs"):
            if (key := kind.of(run)) in pks:  # some collations find keys of another case, too
                states[run.node_id][pks[key]] = (state_of(run), run)
    return states
