"""Failures in groups by error and message pattern."""

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _, gettext_noop, ngettext

from autorun.admin.markup import time_since
from autorun.admin.pages import PageAdmin, page
from autorun.admin.row_access import open_runs
from autorun.admin.tables import columns, runner_name, runner_options
from autorun.models import Failure
from autorun.observe.failures import RecentFailures, RecentGroup, recent_failures
from autorun.state.parameters import SINCE, read_one_of, read_text
from autorun.state.words import number

DEFAULT_SINCE = "24h"
SPANS = {
    "1h": gettext_noop("1 hour"),
    "24h": gettext_noop("24 hours"),
    "7d": gettext_noop("7 days"),
    "30d": gettext_noop("30 days"),
}
MOST_GROUPS = 50


@admin.register(Failure)
class FailureAdmin(PageAdmin):
    """Failures of the last hour, day, week or month, by exception class and message shape."""

    tab = "failures"

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        since = read_one_of(SINCE, request.GET.get("since", "")) or DEFAULT_SINCE
        label = read_text(request.GET, "runner")
        with_earlier = request.GET.get("versions") == "all"
        found = recent_failures(since, label=label, with_earlier=with_earlier)
        shown = found.groups[:MOST_GROUPS]
        may_read = open_runs(request, self.admin_site, [each.group.run_id for each in shown])
        lines = [
            _line(found, each, label=label, since=since, is_open=each.group.run_id in may_read)
            for each in shown
        ]
        span = _(SPANS[since])
        failed = ngettext("%s failed attempt", "%s failed attempts", found.attempts)
        of = {"failed": failed % number(found.attempts), "span": span, "label": label}
        nothing = _("No attempt of %(label)s failed in the last %(span)s.")
        nothing = nothing if label else _("No attempt failed in the last %(span)s.")
        return self.render(
            request,
            "failures",
            _("Failures"),
            since=since,
            label=label,
            runners=runner_options(),
            spans=[(key, _(words), key == since) for key, words in SPANS.items()],
            lines=lines,
            lead=_("%(failed)s in the last %(span)s") % of,
            earlier=_earlier(found.earlier),
            with_earlier=with_earlier,
            nothing=nothing % of,
            more=max(0, len(found.groups) - MOST_GROUPS),
        )

    @page("<int:failure_id>/change/")
    def change(self, request: HttpRequest, failure_id: int) -> HttpResponse:
        failure = Failure.objects.filter(pk=failure_id).first()
        if failure is None:
            return self.redirect("autorun_failure_changelist")
        return self.redirect("autorun_run_change", failure.run_id)


def _earlier(attempts: int) -> str:
    if not attempts:
        return ""
    sentence = ngettext(
        "Also %s failed attempt of earlier versions",
        "Also %s failed attempts of earlier versions",
        attempts,
    )
    return sentence % number(attempts)


def _line(
    found: RecentFailures, recent: RecentGroup, *, label: str, since: str, is_open: bool
) -> dict[str, Any]:
    """The columns of a group; if it `is_open`, the user may see its messages."""
    group, runners = recent.group, {**found.labels, **found.former}
    runner = runner_name(label or runners.get(group.node_id, "")) or group.title
    attempts = ngettext("%s attempt", "%s attempts", recent.attempts) % number(recent.attempts)
    if group.of_newest:
        of = {"newest": number(group.of_newest), "all": number(group.of_class)}
        attempts += ", " + _("newest %(newest)s of %(all)s examined") % of
    runs = {"group": group.key, "exception": group.exception_class, "since": since}
    runs |= {"runner": label} if label else {}
    runs |= {"state": "failed"} if group.runs else {}
    return {
        "group": group,
        "runner": f"{runner} v{group.version}",
        "is_earlier": group.node_id not in found.labels,
        "is_open": is_open,
        "first": time_since(group.first_at),
        "last": time_since(group.last_at),
        "trend": columns([(0, each) for each in recent.times]),
        "runs": number(group.runs),
        "attempts": attempts,
        "query": urlencode(runs),
    }
