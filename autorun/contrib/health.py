"""A check for django-health-check 4. Needs `pip install django-autorun[health]`.

    from health_check.views import HealthCheckView

    path("health/", HealthCheckView.as_view(checks=["autorun.contrib.health.Autorun"])),

It reports the findings of `manage.py autorun doctor`. That takes a few seconds, because it asks the
broker for its workers: let a monitor request it every few minutes, but not a load balancer. Each
process examines once at a time, and answers requests of the next seconds with the same findings.
They name queues, workers and runners, but quote no errors: keep the address from strangers.
"""

import datetime as dt
from dataclasses import dataclass, field

from django.db import connections

from autorun.conf import settings
from autorun.observe.doctor import Finding, examine_for_page

try:
    from health_check.base import HealthCheck
    from health_check.exceptions import ServiceUnavailable, ServiceWarning
except ImportError as missing:
    raise ImportError(
        "autorun.contrib.health needs django-health-check 4: pip install 'django-autorun[health]'."
    ) from missing


@dataclass
class Autorun(HealthCheck):  # type: ignore[misc]
    """Unavailable if the doctor finds an error; with `warnings`, warns if it finds a warning."""

    warnings: bool = False
    timeout: dt.timedelta = field(default=dt.timedelta(seconds=20), repr=False)

    def run(self) -> None:
        try:
            findings = examine_for_page()
        finally:
            _close_connections()
        errors = [each for each in findings if each.level == "error"]
        if errors:
            raise ServiceUnavailable(_said(errors))
        warnings = [each for each in findings if each.level == "warning"]
        if warnings and self.warnings:
            raise ServiceWarning(_said(warnings))


def _said(findings: list[Finding]) -> str:
    # The request has no user, so no permission to see payload.
    return " ".join(f"{each.subject}: {each.bare or each.message}" for each in findings)


def _close_connections() -> None:
    """Close the connections of this thread, which the check may never use again."""
    if not connections[settings.DATABASE].in_atomic_block:
        connections.close_all()
