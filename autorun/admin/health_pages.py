"""The installation's health: the doctor's findings, the workers and the limits."""

from collections import Counter
from typing import Any

from django.apps import apps
from django.apps.registry import Apps
from django.contrib import admin, messages
from django.http import HttpRequest, HttpResponse
from django.utils.translation import gettext as _, ngettext

from autorun.admin.markup import prose, time_since
from autorun.admin.pages import PageAdmin, Permission, action, is_fetched, page
from autorun.admin.row_access import sees_texts
from autorun.models import Node
from autorun.observe.at_work import workers_at_work
from autorun.observe.held_up import limits_in_use
from autorun.state import draining
from autorun.state.parameters import read_text
from autorun.state.words import number

_own = Apps()
_own.app_configs = apps.app_configs  # other admin looks ask a model for its app


class Health(Node):
    """An entry in the admin's index and sidebar.

    In a registry of its own it is no model of the project: it has no migration and no permissions.
    """

    class Meta:
        app_label = "autorun"
        apps = _own
        proxy = True


@admin.register(Health)
class HealthAdmin(PageAdmin):
    """The findings of the doctor, and the workers, which can be drained."""

    tab = "health"

    @page("")
    def changelist(self, request: HttpRequest) -> HttpResponse:
        """The findings of `manage.py autorun doctor`; asking brokers and workers takes seconds."""
        if is_fetched(request) and "now" in request.GET:
            return self.fragment(request, "findings", **_examined(request, self.admin_site))
        found = _examined(request, self.admin_site) if "now" in request.GET else {}
        workers = [
            (each, time_since(each.since), number(each.runs), time_since(each.last_seen))
            for each in workers_at_work()
        ]
        return self.render(
            request, "health", _("Health"), workers=workers, limits=limits_in_use(), **found
        )

    @action("drain/", Permission.PAUSE)
    def drain(self, request: HttpRequest) -> HttpResponse:
        """Ask for confirmation, then have a worker take no more chunks."""
        name = read_text(request.POST, "worker")
        worker = next((each for each in workers_at_work() if each.name == name), None)
        if worker is not None and worker.is_drained:
            messages.info(request, _("Worker %s was drained already.") % name)
        elif worker is None or not worker.may_be_drained:
            messages.error(request, _("No running worker with this name can be drained."))
        elif "confirmed" not in request.POST:
            title = _("Drain %s?") % name
            return self.render(request, "drain", title, worker=worker)
        elif draining.drain(name):
            what = _("Worker %s finishes the chunks it has and takes no others.") % name
            self.note(request, what, about=name)
        return self.redirect("autorun_health_changelist")

    @action("undrain/", Permission.PAUSE)
    def undrain(self, request: HttpRequest) -> HttpResponse:
        name = read_text(request.POST, "worker")
        if draining.undrain(name):
            self.note(request, _("Worker %s takes chunks again.") % name, about=name)
        else:
            messages.info(request, _("Worker %s was not drained.") % name)
        return self.redirect("autorun_health_changelist")


def _examined(request: HttpRequest, site: admin.AdminSite) -> dict[str, Any]:
    from autorun.observe.doctor import Finding, examine_for_page

    shows = sees_texts(request, site)

    def sentence_of(finding: Finding) -> str:
        return finding.message if shows else finding.bare or finding.message

    order = {"error": 0, "warning": 1}
    findings = sorted(examine_for_page(), key=lambda each: order.get(each.level, 2))
    numbers: Counter[str] = Counter(each.level for each in findings)
    words = {
        "error": ngettext("%s error", "%s errors", numbers["error"]),
        "warning": ngettext("%s warning", "%s warnings", numbers["warning"]),
    }
    problems = [words[level] % number(numbers[level]) for level in order if numbers[level]]
    return {
        "findings": [
            (each.level, each.subject, prose(sentence_of(each)), prose(each.hint))
            for each in findings
        ],
        "verdict": _(" and ").join(problems) or _("No problems"),
    }
