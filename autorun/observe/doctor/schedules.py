"""Examines what should happen regularly: sweeps sent by beat, and upkeep."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Max
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.hooks import is_scheduled
from autorun.exceptions import ImproperRunner, bare_message
from autorun.observe.celery_app import celery_command
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.glance import is_upkeep_silent, upkeep_patience
from autorun.state.pulses import beat_of
from autorun.state.words import duration, moment
from autorun.triggers import on_schedule

#: Beat saves what it has sent every three minutes, unless CELERY_BEAT_SYNC_EVERY says otherwise.
BEAT_SILENCE = 300.0  # seconds


@examination("schedules")
def examine_schedules() -> Iterator[Finding]:
    """Whether beat's entries match the runners."""
    try:
        report = on_schedule.sync(dry=True)
    except ImproperlyConfigured as problem:
        if any(map(is_scheduled, registry.runners())):
            yield warning(
                str(problem),
                "Or set AUTORUN = {'SCHEDULE': None}: then only saves and commands start runs.",
            )
        return
    except ImproperRunner as problem:
        hint = "Fix it, then run `manage.py autorun sync`."
        yield error(str(problem), hint, bare=bare_message(problem))
        return
    if report.is_change:
        changes = {
            "missing": report.created,
            "changed": report.updated,
            "no longer wanted": report.disabled,
        }
        texts = [f"{what}: {', '.join(names)}" for what, names in changes.items() if names]
        yield warning(
            f"Beat's entries are out of date; {'; '.join(texts)}.",
            "Run `manage.py autorun sync`; beat also does it when it starts.",
        )
    else:
        edited = f" {len(report.kept)} edited in the admin." if report.kept else ""
        yield ok(f"Beat's entries are up to date.{edited}")


@examination("beat")
def examine_beat() -> Iterator[Finding]:
    """Whether beat is alive, from the time of the last task it sent and of sweeps that are due."""
    if not (apps.is_installed("django_celery_beat") and any(map(is_scheduled, registry.runners()))):
        return
    from django_celery_beat.models import PeriodicTask

    entries = PeriodicTask.objects.filter(enabled=True)
    sweeps = entries.filter(task=on_schedule.SWEEP)
    last: dt.datetime | None = entries.aggregate(last=Max("last_run_at"))["last"]
    if last is None and not sweeps:
        yield warning("Beat has no sweep to send.", _start_beat())
        return
    if ahead := on_schedule.entries_ahead().order_by("-last_run_at").first():
        yield warning(
            f"{ahead.name!r} was last sent in the future, at {moment(ahead.last_run_at)}: the "
            "clock of beat's machine was wrong. Beat sends nothing of it until then.",
            "Correct the clock, and start a worker: its upkeep corrects the entry in a minute or "
            "a few.",
        )
        return
    late = max(map(_seconds_late, sweeps), default=0.0)
    if last is None:
        silence, words = late, "no sweep yet, though one was due"
        alive = "No sweep has been due yet."
    else:
        now: Any = timezone.now() if timezone.is_aware(last) else dt.datetime.now()  # noqa: DTZ005
        silence = (now - last).total_seconds()
        words = f"nothing for {duration(silence)}"
        alive = f"Last task sent {duration(max(silence, 0))} ago."
    if min(late, silence) > BEAT_SILENCE:
        yield error(f"Beat has sent {words}: no sweeps run.", _start_beat())
    else:
        yield ok(alive)


@examination("upkeep")
def examine_upkeep() -> Iterator[Finding]:
    if not is_upkeep_silent():
        yield ok(f"Last round less than {duration(upkeep_patience())} ago.")
        return
    at = beat_of("upkeep")
    last = "It never ran" if at is None else f"It last ran at {moment(at)}"
    yield error(
        f"{last}: nothing is retried, rescued or released.",
        f"Start a worker, which makes rounds of upkeep: {celery_command('worker -n worker@%h')}.",
    )


def _seconds_late(entry: Any) -> float:
    """The seconds since an entry of beat's tables was due; negative if it is not due yet."""
    since = entry.last_run_at or entry.date_changed
    remaining: dt.timedelta = entry.schedule.remaining_estimate(since)
    return -remaining.total_seconds()


def _start_beat() -> str:
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    return f"Start beat: {celery_command('beat --scheduler', scheduler)}."
