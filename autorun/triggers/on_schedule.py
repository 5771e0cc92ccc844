"""Keeps the sweeps of runners in django-celery-beat's tables.

Each runner with a schedule has an entry (a `PeriodicTask`), whose description ends in a digest of
what autorun wrote. An entry that still matches follows the runner's code; one that was changed or
disabled in the admin is left alone.
"""

import datetime as dt
from dataclasses import dataclass, field
from typing import Any

from celery import signals
from django.apps import apps
from django.core.exceptions import ImproperlyConfigured
from django.db import router, transaction
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.exceptions import ImproperRunner, bare_message
from autorun.state.clock import DatabaseNow, from_now
from autorun.state.logs import get_logger
from autorun.triggers.entries import LARGEST_INTEGER, Entry, Marks, Timing, digest_of

logger = get_logger(__name__)

SWEEP = "autorun.sweep"
UPKEEP = "autorun.upkeep"
SWEEP_NAME = "autorun: sweep "
UPKEEP_NAME = "autorun: upkeep"
#: Seconds that two machines' clocks may differ.
MOST_AHEAD = 60.0
EDITABLE = "Edit or disable it here if need be: autorun leaves it so."


@dataclass(frozen=True)
class SyncReport:
    """Names of entries: `updated` includes those enabled again, `kept` are those edited by hand."""

    created: list[str] = field(default_factory=list)
    updated: list[str] = field(default_factory=list)
    disabled: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)

    @property
    def is_change(self) -> bool:
        return bool(self.created or self.updated or self.disabled or self.removed)


def sync(*, dry: bool = False) -> SyncReport:
    """Bring django-celery-beat's entries in line with the registered runners.

    With `dry` nothing is written. Raises ImproperlyConfigured without django-celery-beat, and
    ImproperRunner, once the others are written, for a SCHEDULE that beat's tables cannot hold.
    """
    _require_tables()
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    entries, improper = _wanted()
    rows = {row.name: row for row in PeriodicTask.objects.filter(name__startswith="autorun: ")}
    report = SyncReport()
    for entry in entries:
        if entry.name not in rows:
            report.created.append(entry.name)
            if not dry:
                entry.create()
        else:
            _settle(rows[entry.name], entry, report, dry=dry)
    spoken_for = {entry.name for entry in entries} | improper.keys()
    for name, row in rows.items():
        is_sweep = row.task == SWEEP and name.startswith(SWEEP_NAME)
        # An entry of an earlier version, which sent a message every few seconds: workers need none.
        is_upkeep = row.task == UPKEEP and name == UPKEEP_NAME
        if (is_sweep or is_upkeep) and name not in spoken_for:
            _settle(row, None, report, dry=dry)
    if report.is_change and not dry:
        PeriodicTasks.update_changed()
    for error in improper.values():
        raise error
    return report


def remove(*, dry: bool = False) -> SyncReport:
    """Delete every entry that sends a task of autorun, and its timing unless others use it.

    Entries that were edited or written by hand are deleted as well: without autorun, workers
    refuse their messages. Raises ImproperlyConfigured without django-celery-beat.
    """
    _require_tables()
    from django_celery_beat.models import PeriodicTask, PeriodicTasks

    rows = PeriodicTask.objects.filter(task__startswith="autorun.").order_by("name")
    rows = list(rows.select_related("crontab", "interval"))
    if rows and not dry:
        with transaction.atomic(using=router.db_for_write(PeriodicTask)):
            PeriodicTask.objects.filter(pk__in=[row.pk for row in rows]).delete()
            for timing in {each for row in rows for each in (row.crontab, row.interval) if each}:
                if not timing.periodictask_set.exists():
                    timing.delete()
        PeriodicTasks.update_changed()
    return SyncReport(removed=[row.name for row in rows])


def entries_ahead() -> Any:
    """Autorun's entries that were last sent in the future, as a queryset; a clock was wrong."""
    from django_celery_beat.models import PeriodicTask

    ours = PeriodicTask.objects.filter(enabled=True, task__in=(SWEEP, UPKEEP))
    return ours.filter(last_run_at__gt=from_now(MOST_AHEAD))


def correct_times() -> int:
    """Let beat send again the entries that it seems to have sent in the future. Return how many."""
    # Otherwise it would send nothing until then.
    if not apps.is_installed("django_celery_beat"):
        return 0
    from django_celery_beat.models import PeriodicTasks

    corrected: int = entries_ahead().update(last_run_at=DatabaseNow())
    if corrected:
        PeriodicTasks.update_changed()
    return corrected


def connect() -> None:
    """Let beat sync the schedules when it starts."""
    signals.beat_init.connect(sync_at_start, weak=False, dispatch_uid="autorun.on_schedule")


def sync_at_start(sender: Any = None, **kwargs: Any) -> None:
    """Sync, and have the starting beat see it. Never raises an Exception, so that beat starts."""
    try:
        _let_beat_notice(sender)
        report = sync()
    except Exception:
        logger.exception("The schedules of autorun's runners were not synced.")
    else:
        logger.info(
            "Schedules of autorun: %d created, %d updated, %d disabled, %d kept as edited.",
            *map(len, (report.created, report.updated, report.disabled, report.kept)),
        )


def _require_tables() -> None:
    if not apps.is_installed("django_celery_beat"):
        raise ImproperlyConfigured(
            "Schedules are kept by django-celery-beat. Add 'django_celery_beat' to INSTALLED_APPS "
            "and run `manage.py migrate`."
        )


def _wanted() -> tuple[list[Entry], dict[str, ImproperRunner]]:
    entries: list[Entry] = []
    improper = {}
    for runner in registry.runners():
        name = f"{SWEEP_NAME}{runner.label}"
        try:
            entry = _sweep_entry(name, runner)
        except ImproperRunner as error:
            improper[name] = ImproperRunner(f"{runner.label}: {error}")
            improper[name].bare = f"{runner.label}: {bare_message(error)}"
        except Exception as error:  # noqa: BLE001  a project's own hook: the others are synced
            raised = f"{runner.label}: get_schedule() raises {type(error).__name__}"
            improper[name] = ImproperRunner(f"{raised}: {error}")
            improper[name].bare = raised
        else:
            entries += [entry] if entry else []
    return entries, improper


def _sweep_entry(name: str, runner: Runner) -> Entry | None:
    schedule = runner.get_schedule()
    if schedule is None:
        return None
    expire_seconds = 3600 if len(getattr(schedule, "hour", ())) == 24 else 12 * 3600
    if isinstance(schedule, dt.timedelta):
        expire_seconds = min(max(60, int(schedule.total_seconds())), LARGEST_INTEGER)
    return Entry(
        name=name,
        task=SWEEP,
        args=[runner.label],
        timing=Timing.of(schedule),
        expire_seconds=expire_seconds,
        about=f"Looks for pending rows of {runner.get_model()._meta.label}. {EDITABLE}",
    )


def _settle(row: Any, entry: Entry | None, report: SyncReport, *, dry: bool) -> None:
    """Bring one row in line with `entry`, or disable it if that is None."""
    outcome = _outcome(row, entry)
    if outcome in ("updated", "disabled") and not dry:
        model = type(row)
        # One row a transaction: beat and the admin wait for no more than that.
        with transaction.atomic(using=router.db_for_write(model)):
            locked = model.objects.select_for_update().filter(pk=row.pk).first()
            if locked is None:
                return
            outcome = _outcome(locked, entry)
            if outcome in ("updated", "disabled"):
                _write(locked, entry)
    if outcome:
        getattr(report, outcome).append(row.name)


def _outcome(row: Any, entry: Entry | None) -> str:
    """The list of the report that the row belongs in; '' if it is right."""
    marks = Marks.read(row.description)
    digest = digest_of(row)
    if entry is None:
        return "disabled" if row.enabled and not marks.off else ""
    if digest == marks.off:
        return "updated"
    if digest == entry.digest():
        return "" if marks == Marks(wrote=digest) else "updated"
    return "updated" if digest == marks.wrote else "kept"


def _write(row: Any, entry: Entry | None) -> None:
    marks = Marks.read(row.description)
    changes: dict[str, Any]
    if entry is None:
        changes = {"enabled": False, "last_run_at": None}
        row.enabled = False
        marks = Marks(wrote=marks.wrote, off=digest_of(row))
    elif digest_of(row) == marks.off and digest_of(row, enabled=True) != marks.wrote:
        # Someone had edited it before its runner went away.
        changes = {"enabled": True}
        marks = Marks(wrote=marks.wrote)
    else:
        changes = entry.columns()
        marks = Marks(wrote=entry.digest())
    # Not save(): it reports the change to beat before this transaction commits.
    type(row).objects.filter(pk=row.pk).update(
        **changes, description=marks.put(row.description), date_changed=timezone.now()
    )


def _let_beat_notice(service: Any) -> None:
    scheduler = getattr(service, "scheduler", None)
    if scheduler is None or not apps.is_installed("django_celery_beat"):
        return
    from django_celery_beat.models import PeriodicTasks
    from django_celery_beat.schedulers import DatabaseScheduler

    if not isinstance(scheduler, DatabaseScheduler):
        logger.warning(
            "beat runs %s, which does not know autorun's schedules. Start it with "
            "`--scheduler django_celery_beat.schedulers:DatabaseScheduler`.",
            type(scheduler).__name__,
        )
        return
    # Only a change later than one it has seen counts as a change.
    if PeriodicTasks.last_change() is None:
        PeriodicTasks.update_changed()
    _ = scheduler.schedule
