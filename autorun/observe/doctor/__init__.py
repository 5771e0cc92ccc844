"""Checks that everything autorun needs is working: `manage.py autorun doctor`."""

from autorun.observe.doctor import backlog, database, messaging, schedules, system_checks
from autorun.observe.doctor.finding import Finding

__all__ = ("Finding", "examine")

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
    schedules.examine_schedules,
    schedules.examine_beat,
    schedules.examine_upkeep,
    backlog.examine_leases,
    backlog.examine_orphans,
    backlog.examine_queued,
    backlog.examine_held_up,
    backlog.examine_spilled,
    backlog.examine_paused,
    backlog.examine_batches,
)


def examine() -> list[Finding]:
    """One or more findings for each thing that can be wrong; takes at most a few seconds."""
    findings = [found for examine_one in FIRST for found in examine_one()]
    if any(each.level == "error" and each.subject in database.SUBJECTS for each in findings):
        return findings  # the other examinations would report the same error
    return findings + [found for examine_one in THEN for found in examine_one()]
