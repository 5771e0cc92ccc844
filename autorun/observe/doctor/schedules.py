"""Examines what should happen regularly: sweeps sent by beat, and upkeep."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop

from autorun.declare import registry
from autorun.declare.hooks import is_scheduled
from autorun.exceptions import ImproperRunner, bare_message
from autorun.observe.celery_app import celery_command
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.observe.glance import is_upkeep_silent, upkeep_patience
from autorun.state.pulses import beat_of
from autorun.state.words import duration, moment, number
from autorun.triggers import on_schedule

#: Beat saves what it has sent every three minutes, unless CELERY_BEAT_SYNC_EVERY says otherwise.
BEAT_SILENCE = 300.0  # seconds


@examination(gettext_noop("schedules"))
def examine_schedules() -> Iterator[Finding]:
    """Whether beat's entries match the runners."""
    try:
        report = on_schedule.sync(dry=True)
    except ImproperlyConfigured as problem:
        if any(map(is_scheduled, registry.runners())):
            yield warning(
                str(problem),
                _("Or set %s: then only saves and commands start runs.")
                % "AUTORUN = {'SCHEDULE': None}",
            )
        return
    except ImproperRunner as problem:
        hint = _("Fix it, then run `manage.py autorun sync`.")
        yield error(str(problem), hint, bare=bare_message(problem))
        return
    if report.is_change:
        changes = {
            _("missing: %s"): report.created,
            _("changed: %s"): report.updated,
            _("no longer wanted: %s"): report.disabled,
        }
        texts = [what % ", ".join(names) for what, names in changes.items() if names]
        yield warning(
            _("Beat's entries are out of date; %s.") % "; ".join(texts),
            _("Run `manage.py autorun sync`; beat also does it when it starts."),
        )
    else:
        edited = " " + _("%s edited in the admin.") % number(len(report.kept))
        yield ok(_("Beat's entries are up to date.") + edited * bool(report.kept))


@examination(gettext_noop("beat"))
def examine_beat() -> Iterator[Finding]:
    """Whether beat is alive, from the time of the last task it sent and of sweeps that are due."""
    if not (apps.is_installed("django_celery_beat") and any(map(is_scheduled, registry.runners()))):
        return
    from django_celery_beat.models import PeriodicTask

    entries = PeriodicTask.objects.filter(enabled=True)
    sweeps = entries.filter(task=on_schedule.SWEEP)
    last: dt.datetime | None = entries.aggregate(last=Max("last_run_at"))["last"]
    if last is None and not sweeps:
        yield warning(_("Beat has no sweep to send."), _start_beat())
        return
    if ahead := on_schedule.entries_ahead().order_by("-last_run_at").first():
        yield warning(
            _(
                "%(name)s was last sent in the future, at %(at)s: the clock of beat's machine was "
                "wrong. Beat sends nothing of it until then."
            )
            % {"name": repr(ahead.name), "at": moment(ahead.last_run_at)},
            _(
                "Correct the clock, and start a worker: its upkeep corrects the entry within a few "
                "minutes."
            ),
        )
        return
    late = max(map(_seconds_late, sweeps), default=0.0)
    if last is None:
        silence, alive = late, _("No sweep has been due yet.")
        silent = _("Beat has sent no sweep yet, though one was due: no sweeps run.")
    else:
        now: Any = timezone.now() if timezone.is_aware(last) else dt.datetime.now()  # noqa: DTZ005
        silence = (now - last).total_seconds()
        silent = _("Beat has sent nothing for %s: no sweeps run.") % duration(silence)
        alive = _("Last task sent %s ago.") % duration(max(silence, 0))
    if min(late, silence) > BEAT_SILENCE:
        yield error(silent, _start_beat())
    else:
        yield ok(alive)


@examination(gettext_noop("upkeep"))
def examine_upkeep() -> Iterator[Finding]:
    if not is_upkeep_silent():
        yield ok(_("Last round less than %s ago.") % duration(upkeep_patience()))
        return
    at = beat_of("upkeep")
    last = _("It never ran: nothing is retried, rescued or released.")
    if at is not None:
        last = _("It last ran at %s: nothing is retried, rescued or released.") % moment(at)
    command = celery_command("worker -n worker@%h")
    yield error(last, _("Start a worker, which makes rounds of upkeep: %s.") % command)


def _seconds_late(entry: Any) -> float:
    """The seconds since an entry of beat's tables was due; negative if it is not due yet."""
    since = entry.last_run_at or entry.date_changed
    remaining: dt.timedelta = entry.schedule.remaining_estimate(since)
    return -remaining.total_seconds()


def _start_beat() -> str:
    scheduler = "django_celery_beat.schedulers:DatabaseScheduler"
    return _("Start beat: %s.") % celery_command("beat --scheduler", scheduler)
