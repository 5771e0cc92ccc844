"""Failures in groups: what goes wrong, how often, and for how many rows."""

from __future__ import annotations

from collections.abc import Collection

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from autorun.admin.charts import columns
from autorun.admin.pages import PageAdmin, page
from autorun.admin.permissions import Allowed, Permission
from autorun.admin.row_access import seen_rows
from autorun.declare import registry
from autorun.models import Failure, Run
from autorun.observe.failures import labels_of, recent_failures
from autorun.state.parameters import SINCE, read_text

DEFAULT_SINCE = "24h"
WINDOWS = {"1h": "1 hour", "24h": "24 hours", "7d": "7 days", "30d": "30 days"}
MOST_GROUPS = 100


@admin.register(Failure)
class FailureAdmin(PageAdmin):
    """Failures of the last hour, day, week or month, by exception class and message shape."""

    tab = "failures"

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("", self.listing, "changelist"),
            self.route("<int:failure_id>/change/", self.by_id, "change"),
        ]

    @page
    def listing(self, request: HttpRequest) -> HttpResponse:
        """The groups, those with most failed runs first."""
        since, label = _since(request.GET.get("since", "")), read_text(request.GET, "runner")
        found = recent_failures(since, label=label)
        shown = found.groups[:MOST_GROUPS]
        runners = labels_of(each.group for each in shown)
        open_runs = self._open_runs(request, [each.group.run_id for each in shown])
        lines = [
            (
                each.group,
                runners.get(each.group.node_id, ""),
                each.attempts,
                columns([(0, number) for number in each.times]),
                each.group.run_id in open_runs,
            )
            for each in shown
        ]
        return self.render(
            request,
            "failures",
            "Failures",
            since=since,
            label=label,
            runners=[runner.label for runner in registry.runners()],
            windows=WINDOWS,
            lines=lines,
            found=found,
            more=max(0, len(found.groups) - MOST_GROUPS),
        )

    @page
    def by_id(self, request: HttpRequest, failure_id: int) -> HttpResponse:
        """The run of a failure."""
        failure = Failure.objects.filter(pk=failure_id).first()
        if failure is None:
            return HttpResponseRedirect(self.url("autorun_failure_changelist"))
        return HttpResponseRedirect(self.url("autorun_run_change", failure.run_id))

    def _open_runs(self, request: HttpRequest, run_ids: Collection[int]) -> set[int]:
        """Those of the runs whose messages the user may see; none without the permission."""
        if not Allowed(request.user).to(Permission.SEE_PAYLOAD):
            return set()
        runs = Run.objects.filter(pk__in=run_ids).select_related("node").defer("outputs")
        seen = seen_rows(request, self.admin_site, runs)
        return {run_id for run_id, each in seen.items() if each.is_open}


def _since(given: str) -> str:
    return given if given in SINCE else DEFAULT_SINCE
