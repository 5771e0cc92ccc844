"""Failures in groups: what goes wrong, how often, and for how many rows."""

from __future__ import annotations

from collections.abc import Collection

from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import URLPattern

from autorun import interventions
from autorun.admin.charts import columns
from autorun.admin.pages import PageAdmin, action, page
from autorun.admin.permissions import Allowed, Permission
from autorun.admin.rows import seen_rows
from autorun.admin.runs import do_retry, ignored_words
from autorun.failures import labels_of, recent_failures, runs_of
from autorun.listing import SINCE
from autorun.models import Failure, Run

DEFAULT_SINCE = "24h"
MOST_GROUPS = 100


@admin.register(Failure)
class FailureAdmin(PageAdmin):
    """Failures of the last hour, day or week, by exception class and message shape."""

    tab = "failures"

    def get_urls(self) -> list[URLPattern]:
        return [
            self.route("", self.listing, "changelist"),
            self.route("retry/", self.retry, "retry"),
            self.route("ignore/", self.ignore, "ignore"),
            self.route("<int:failure_id>/change/", self.by_id, "change"),
        ]

    @page
    def listing(self, request: HttpRequest) -> HttpResponse:
        """The groups, those with most failed runs first."""
        since = _since(request.GET.get("since", ""))
        found = recent_failures(since)
        shown = found.groups[:MOST_GROUPS]
        labels = labels_of(each.group for each in shown)
        open_runs = self._open_runs(request, [each.group.run_id for each in shown])
        lines = [
            (
                each.group,
                labels.get(each.group.node_id, ""),
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
            windows={"1h": "1 hour", "24h": "24 hours", "7d": "7 days"},
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

    @action(Permission.RETRY)
    def retry(self, request: HttpRequest) -> HttpResponse:
        """Run the failed runs of a group again."""
        key, since = _group(request)
        do_retry(self, request, runs_of(key, since), _about(request))
        return self._back_to_list(since)

    @action(Permission.CANCEL)
    def ignore(self, request: HttpRequest) -> HttpResponse:
        """Leave the failed runs of a group alone until their rows change."""
        key, since = _group(request)
        number = interventions.ignore(runs_of(key, since))
        self.note(request, ignored_words(number), about=_about(request))
        return self._back_to_list(since)

    def _open_runs(self, request: HttpRequest, run_ids: Collection[int]) -> set[int]:
        """Those of the runs whose messages the user may see; none without the permission."""
        if not Allowed(request.user).to(Permission.SEE_PAYLOAD):
            return set()
        runs = Run.objects.filter(pk__in=run_ids).select_related("node").defer("outputs")
        seen = seen_rows(request, self.admin_site, runs)
        return {run_id for run_id, each in seen.items() if each.is_open}

    def _back_to_list(self, since: str) -> HttpResponse:
        return HttpResponseRedirect(f"{self.url('autorun_failure_changelist')}?since={since}")


def _since(given: str) -> str:
    return given if given in SINCE else DEFAULT_SINCE


def _group(request: HttpRequest) -> tuple[str, str]:
    return request.POST.get("group", ""), _since(request.POST.get("since", ""))


def _about(request: HttpRequest) -> str:
    return f"failures of {request.POST.get('name', 'a group')}"
