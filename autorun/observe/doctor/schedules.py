"""What should happen regularly: sweeps by beat, and upkeep."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db.models import Max
from django.utils import timezone

from autorun.conf import settings
from autorun.declare import registry
from autorun.exceptions import ImproperRunner
from autorun.models import Pulse
from autorun.observe.doctor.finding import Finding, app_name, duration, ok
from autorun.state.clock import from_now
from autorun.triggers import on_schedule

#: Beat writes down what it has sent only so often: every three minutes, unless told otherwise.
BEAT_SILENCE = 300.0  # seconds
#: Upkeep may be late by a busy worker's long run.
LEAST_UPKEEP_SILENCE = 60.0
UPKEEP_TURNS = 10


def examine_schedules() -> Iterator[Finding]:
    """Whether beat's entries are those that the runners want."""
    try:
        report = on_schedule.sync(dry=True)
    except ImproperlyConfigured as problem:
        if any(runner.get_schedule() is not None for runner in registry.runners()):
            yield Finding(
                "warning",
                "schedules",
                str(problem),
                "Or set AUTORUN = {'SCHEDULE': None}: then only saves and commands start runs.",
            )
        return
    except ImproperRunner as problem:
        yield Finding(
            "error", "schedules", str(problem), "Correct it, then `manage.py autorun sync`."
        )
        return
    if report.is_change:
        changes = {
            "to create": report.created,
            "to update": report.updated,
            "to disable": report.disabled,
        }
        texts = [f"{what}: {', '.join(names)}" for what, names in changes.items() if names]
        yield Finding(
            "warning",
            "schedules",
            f"The entries of beat are not up to date. {'; '.join(texts)}.",
            "Run `manage.py autorun sync`; beat does so whenever it starts.",
        )
    else:
        edited = f" {len(report.kept)} as edited in the admin." if report.kept else ""
        yield ok("schedules", f"The entries of beat are up to date.{edited}")


def examine_beat() -> Iterator[Finding]:
    """Whether beat is alive, by what it has sent last."""
    has_schedule = any(runner.get_schedule() is not None for runner in registry.runners())
    if not (apps.is_installed("django_celery_beat") and has_schedule):
        return
    from django_celery_beat.models import PeriodicTask

    entries = PeriodicTask.objects.filter(enabled=True)
    upkeep = entries.filter(task=on_schedule.UPKEEP)
    last: dt.datetime | None = (upkeep if upkeep.exists() else entries).aggregate(
        last=Max("last_run_at")
    )["last"]
    if last is None:
        yield Finding(
            "warning",
            "beat",
            "Beat has not noted down yet that it sent anything.",
            f"{_start_beat()} One that runs notes it within three minutes, or at once with "
            "CELERY_BEAT_SYNC_EVERY = 1.",
        )
        return
    silence = (_now_like(last) - last).total_seconds()
    patience = BEAT_SILENCE + 2 * settings.UPKEEP_INTERVAL
    if upkeep.exists() and silence > patience:
        yield Finding(
            "error",
            "beat",
            f"Beat sent nothing for {duration(silence)}: nothing is swept.",
            _start_beat(),
        )
    else:
        yield ok("beat", f"It sent something {duration(silence)} ago.")


def examine_upkeep() -> Iterator[Finding]:
    """Whether somebody rescues, retries and releases."""
    patience = max(LEAST_UPKEEP_SILENCE, UPKEEP_TURNS * settings.UPKEEP_INTERVAL)
    pulse = Pulse.objects.filter(name="upkeep").first()
    if (
        pulse is not None
        and Pulse.objects.filter(pk=pulse.pk, beat_at__gt=from_now(-patience)).exists()
    ):
        yield ok("upkeep", f"It ran within the last {duration(patience).removeprefix('1 ')}.")
        return
    last = "It never ran" if pulse is None else f"It last ran at {pulse.beat_at:%Y-%m-%d %H:%M:%S}"
    yield Finding(
        "error",
        "upkeep",
        f"{last}: nothing is retried, rescued or released.",
        f"Start a worker: `celery -A {app_name()} worker -n worker@%h`. Upkeep comes with it.",
    )


def _start_beat() -> str:
    return (
        f"Start one: `celery -A {app_name()} beat "
        "--scheduler django_celery_beat.schedulers:DatabaseScheduler`."
    )


def _now_like(moment: dt.datetime) -> Any:
    return timezone.now() if timezone.is_aware(moment) else dt.datetime.now()  # noqa: DTZ005
