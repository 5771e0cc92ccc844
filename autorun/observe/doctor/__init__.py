"""Checks that everything autorun needs is working: `manage.py autorun doctor`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from autorun.observe.doctor import backlog, database, messaging, schedules, system_checks
from autorun.observe.doctor.finding import Finding, error

__all__ = ("Finding", "examine")


def examine() -> list[Finding]:
    """One or more findings for each thing that can be wrong; takes at most a few seconds."""
    findings = _guarded("system checks", system_checks.examine_checks)
    findings += _guarded("eager mode", system_checks.examine_eagerness)
    findings += _guarded("database", database.examine_database)
    findings += _guarded("broker", messaging.examine_broker)
    findings += _guarded("visibility timeout", messaging.examine_visibility_timeout)
    if any(each.level == "error" and each.subject in database.SUBJECTS for each in findings):
        return findings  # the other examinations would report the same error
    findings += _guarded("clock", database.examine_clock)
    for subject, examine_one in (
        ("schedules", schedules.examine_schedules),
        ("beat", schedules.examine_beat),
        ("upkeep", schedules.examine_upkeep),
        ("leases", backlog.examine_leases),
        ("queued chunks", backlog.examine_queued),
        ("parked chunks", backlog.examine_parked),
        ("saved rows not yet planned", backlog.examine_spilled),
        ("paused", backlog.examine_paused),
        ("batches", backlog.examine_batches),
    ):
        findings += _guarded(subject, examine_one)
    return findings


def _guarded(subject: str, examine_one: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of one examination; an exception that it raises becomes a finding."""
    try:
        return list(examine_one())
    except Exception as problem:  # noqa: BLE001
        message = f"It could not be examined: {type(problem).__name__}: {problem}"
        return [error(subject, message, "Fix the other findings, and check again.")]
