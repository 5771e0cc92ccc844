"""Autorun on the admin pages of the models whose rows it processes.

@admin.register(Scan)
class ScanAdmin(AutorunAdminMixin, admin.ModelAdmin):
    ...
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IS_POPUP_VAR
from django.contrib.admin.utils import flatten_fieldsets
from django.contrib.admin.views.main import ChangeList
from django.core.checks import CheckMessage
from django.db.models import QuerySet
from django.forms import Media
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _, gettext_lazy

from autorun.admin import markup, row_states
from autorun.admin.pages import Permission, address_of, sees_payload
from autorun.admin.row_access import runners_of
from autorun.admin.selections import ChosenRows, keep
from autorun.admin.stories import explanation_of, state_in_words
from autorun.admin.tables import name_of_run, runner_name
from autorun.declare.base import Runner
from autorun.declare.nodes import nodes_over, runners_by_node
from autorun.declare.page_time import budget
from autorun.models import Run
from autorun.observe.checks.names import check_shown
from autorun.observe.explanation import NONE
from autorun.observe.run_states import state_of
from autorun.state.keys import key_kind
from autorun.state.managers import RETIRED
from autorun.state.words import number

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[Any]
else:
    ModelAdmin = object

PANEL = "autorun_runs"
SHOWS_RESULTS = "_autorun_shows_results"
MOST_RUNS = 20


class AutorunAdminMixin(ModelAdmin):
    """Adds the runners' states, a filter, the action "Run on selected", and a row's runs.

    `autorun_runners` are the classes or labels of the runners that the list is about, by default
    all of the model. More than three of them share one column and one action.
    """

    autorun_runners: ClassVar[Sequence[type[Runner] | str] | None] = None

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        shown = check_shown(self, runners_of(self.model))
        return [*super().check(**kwargs), *shown]

    def get_list_display(self, request: HttpRequest) -> list[Any]:
        columns: list[Any] = list(super().get_list_display(request))
        if _may_view(request):
            shown = row_states.runners_shown(self)
            found = [row_states.StatusColumn(runner, self.admin_site) for runner in shown]
            is_merged = len(found) > row_states.MOST_COLUMNS
            columns += [row_states.MergedColumn(found)] if is_merged else found
        return columns

    def get_list_filter(self, request: HttpRequest) -> list[Any]:
        filters = list(super().get_list_filter(request))
        if _may_view(request) and row_states.runners_shown(self):
            filters.append(row_states.StatusFilter)
        return filters

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        base = super().get_changelist(request, **kwargs)
        return type("AutorunChangeList", (row_states.WithStatus, base), {})

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        actions: dict[str, Any] = super().get_actions(request)
        has_actions = self.actions is not None and IS_POPUP_VAR not in request.GET
        if has_actions and request.user.has_perm(Permission.START) and _may_view(request):
            runners = [
                runner
                for runner in row_states.runners_shown(self)
                if address_of(self.admin_site, "batch_prepare", runner.label)
            ]
            if len(runners) > row_states.MOST_COLUMNS:
                title = _("Run one of autorun's runners on selected")
                actions["autorun_run"] = (_run_on(""), "autorun_run", title)
                return actions
            for runner in runners:
                name = f"autorun_run__{runner.label}"
                title = _("Run %s on selected") % runner_name(runner.label)
                actions[name] = (_run_on(runner.label), name, title)
        return actions

    def response_action(
        self, request: HttpRequest, queryset: QuerySet[Any], *args: Any, **options: Any
    ) -> Any:
        kind, given = key_kind(self.model), request.POST.getlist(ACTION_CHECKBOX_NAME)
        is_ours = any(each.startswith("autorun_run") for each in request.POST.getlist("action"))
        if is_ours and any(kind.read(each, using=queryset.db) is None for each in given):
            # Django's filter would raise.
            messages.error(request, _("The selection contains keys that no row can have."))
            return None
        return super().response_action(request, queryset, *args, **options)

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        fields = list(super().get_readonly_fields(request, obj))
        fields += [] if PANEL in fields else [PANEL]
        if self._shows_panel(request, obj):
            # The panel is drawn without a request.
            setattr(obj, SHOWS_RESULTS, sees_payload(request))
        return fields

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[Any]:
        # The panel has a fieldset of its own.
        return [name for name in super().get_fields(request, obj) if name != PANEL]

    def get_fieldsets(self, request: HttpRequest, obj: Any = None) -> Any:
        fieldsets = list(super().get_fieldsets(request, obj))
        if self._shows_panel(request, obj) and PANEL not in flatten_fieldsets(fieldsets):
            fieldsets.append(("Autorun", {"fields": [PANEL]}))
        return fieldsets

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        response = super().changelist_view(request, extra_context)
        changelist = (getattr(response, "context_data", None) or {}).get("cl")
        found = getattr(changelist, "autorun_found", None)
        if changelist is not None and found is not None and found.up_to:
            address = changelist.get_query_string({row_states.UP_TO: found.up_to}, ["p"])
            message = _(
                "{} of the newest rows are pending. Not all rows have been checked yet: "
                '<a href="{}">check the others</a>.'
            )
            messages.info(request, format_html(message, len(found.keys), address))
        return response

    @property
    def media(self) -> Media:
        own = Media(css={"all": ["autorun/autorun.css"]}, js=["autorun/autorun.js"])
        return super().media + own

    @admin.display(description=gettext_lazy("Runs"))
    def autorun_runs(self, instance: Any) -> SafeString:
        shows_results = getattr(instance, SHOWS_RESULTS, None)
        if shows_results is None:  # the user may not view runs, or the row is being added
            return SafeString()
        kind, key = key_kind(self.model), instance.pk
        if not kind.is_integer:
            # The key as the database writes it.
            key = kind.values(self.model._base_manager.filter(pk=key)).first() or ""
        found = Run.objects.filter(node__in=list(nodes_over(self.model)))
        newest = found.of_row(kind, key).select_related("node", "chunk").order_by("-pk")
        runs, known = [], list(newest.defer("outputs")[:MOST_RUNS])
        for run in known:
            when = markup.time_since(run.finished_at or run.chunk.created_at)
            url = address_of(self.admin_site, "run_change", run.pk)
            state = state_of(run), state_in_words(run)
            runs.append((url, name_of_run(run), *state, run.attempts, when))
        runners = []
        with budget():
            for each in runners_of(self.model):
                reason = markup.prose(explanation_of(each, instance, NONE).reason)
                url = address_of(self.admin_site, "node_why", each.label)
                runners.append((url, runner_name(each.label), reason))
        context = {
            "runs": runs,
            "runners": runners,
            "row": instance,
            "results": _results(known, self.admin_site) if shows_results else [],
            "most_shown": markup.MOST_SHOWN,
        }
        return markup.rendered("panel", context)

    def _shows_panel(self, request: HttpRequest, obj: Any) -> bool:
        return obj is not None and _may_view(request) and bool(runners_of(self.model))


def _results(runs: Sequence[Run], site: admin.AdminSite) -> list[dict[str, Any]]:
    """The newest success of each of the present nodes among the newest runs of a row; a query."""
    present = runners_by_node().labels
    found: dict[int, Run] = {}
    for run in runs:
        is_success = run.status == Run.Status.SUCCEEDED and run.fingerprint != RETIRED
        if is_success and run.node.digest in present:
            found.setdefault(run.node_id, run)
    successes = Run.objects.filter(pk__in=[run.pk for run in found.values()])
    outputs = dict(successes.values_list("pk", "outputs"))
    return [
        {
            "run": run,
            "node": name_of_run(run),
            "finished": markup.time_since(run.finished_at),
            "outputs": markup.as_json(outputs[run.pk], most=markup.MOST_SHOWN),
            "output_lines": markup.as_lines(outputs[run.pk]),
            "text_url": address_of(site, "run_text", run.pk, "outputs"),
            "is_kept": not run.is_current,
        }
        for run in found.values()
        if outputs.get(run.pk) is not None
    ]


def _run_on(label: str) -> Callable[[Any, HttpRequest, QuerySet[Any]], HttpResponse | None]:
    def run_on_selected(
        model_admin: Any, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        """Redirect to the preview of a backfill of the chosen rows."""
        meta = model_admin.model._meta
        most = row_states.MOST_KEYS
        is_everything = request.POST.get("select_across") == "1"
        if is_everything and not request.user.has_perm(Permission.BACKFILL):
            messages.error(request, _("Running on all rows requires the permission to backfill."))
            return None
        keys = None
        if not is_everything:
            keys = [str(pk) for pk in queryset.values_list("pk", flat=True)[: most + 1]]
            if len(keys) > most:
                message = _(
                    "More than %s rows are selected, so none was run. Select fewer, or narrow the "
                    "list with a filter and select all that it shows."
                )
                messages.error(request, message % number(most))
                return None
        token = keep(request, ChosenRows(meta.label, query=request.GET.urlencode(), keys=keys))
        page = ("batch_prepare", label) if label else ("batch_choose",)
        address = address_of(model_admin.admin_site, *page)
        return HttpResponseRedirect(f"{address}?selection={token}&only=all")

    return run_on_selected


def _may_view(request: HttpRequest) -> bool:
    return request.user.has_perm(Permission.VIEW)
