"""Checks that everything autorun needs is working: `manage.py autorun doctor`."""

import threading
import time

from django.utils.translation import get_language, gettext as _

from autorun.observe.doctor import backlog, database, messaging, system_checks
from autorun.observe.doctor.finding import Finding, error
from autorun.state.words import duration

__all__ = ("Finding", "examine", "examine_for_page")

#: Seconds for which a page shows the same findings again.
FRESH = 5.0
#: Seconds that a page waits for an examination that another page has started.
PATIENCE = 15.0

_turn = threading.Lock()
#: The time and the findings of the latest examination, by language.
_latest: dict[str | None, tuple[float, list[Finding]]] = {}

#: These need no tables.
FIRST = (
    system_checks.examine_checks,
    system_checks.examine_eagerness,
    database.examine_database,
    messaging.examine_broker,
    messaging.examine_visibility_timeout,
)
THEN = (
    database.examine_clock,
    messaging.examine_schedules,
    messaging.examine_beat,
    messaging.examine_upkeep,
    backlog.examine_leases,
    backlog.examine_orphans,
    backlog.examine_queued,
    backlog.examine_limits,
    backlog.examine_held_up,
    backlog.examine_spilled,
    backlog.examine_written,
    backlog.examine_keys,
    backlog.examine_paused,
    backlog.examine_batches,
    system_checks.examine_code,
)


def examine() -> list[Finding]:
    """One or more findings for each thing that can be wrong; takes at most a few seconds."""
    findings = [found for examine_one in FIRST for found in examine_one()]
    subjects = [*map(_, database.SUBJECTS)]
    if any(each.level == "error" and each.subject in subjects for each in findings):
        return findings  # the other examinations would report the same error
    return findings + [found for examine_one in THEN for found in examine_one()]


def examine_for_page() -> list[Finding]:
    """`examine()`, one at a time in this process, and again after some seconds only."""
    # Otherwise each request would take a thread and a connection if a broker or database does not
    # answer.
    if not _turn.acquire(timeout=PATIENCE):
        message = _("Another request has been examining autorun for %s.") % duration(PATIENCE)
        hint = _("Ask again in a minute, or run `manage.py autorun doctor`.")
        return [error(message, hint, _("doctor"))]
    try:
        at, findings = _latest.get(get_language(), (float("-inf"), []))
        if time.monotonic() - at >= FRESH:
            findings = examine()
            _latest[get_language()] = (time.monotonic(), findings)
        return findings
    finally:
        _turn.release()
