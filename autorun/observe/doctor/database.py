"""Examines the database of autorun's tables: its connection, migrations and clock."""

import datetime as dt
from collections.abc import Iterator

from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone

from autorun.conf import settings
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.state.clock import DatabaseNow

#: With an error in one of these, the tables cannot be examined.
SUBJECTS = ("database", "migrations")

SKEW_TO_MENTION = 2.0  # seconds
SKEW_THAT_HARMS = 30.0


@examination("database")
def examine_database() -> Iterator[Finding]:
    """Whether the database answers and is migrated."""
    alias = settings.DATABASE
    try:
        connections[alias].ensure_connection()
    except DatabaseError as problem:
        yield error(
            f"{alias!r} does not answer: {str(problem).strip()}",
            f"Start it, or correct DATABASES[{alias!r}] in the settings.",
        )
        return
    names = ", ".join([*_unapplied("autorun"), *_unapplied("django_celery_beat")])
    if names:
        yield error(f"Not applied: {names}.", "Run `manage.py migrate`.", "migrations")
    else:
        yield ok(f"{alias!r} answers and is migrated.")


@examination("clock")
def examine_clock() -> Iterator[Finding]:
    """Whether this machine and the database agree on the time."""
    before = timezone.now()
    rows = ContentType.objects.using(settings.DATABASE).annotate(now=DatabaseNow())
    there: dt.datetime = rows.values_list("now", flat=True)[:1].get()
    after = timezone.now()
    if timezone.is_naive(there):
        there = there.replace(tzinfo=dt.UTC)
    here = before + (after - before) / 2
    skew = (here - there).total_seconds()
    if abs(skew) < SKEW_TO_MENTION:
        yield ok("This machine and the database agree on the time.")
        return
    direction = "ahead of" if skew > 0 else "behind"
    found = error if abs(skew) >= SKEW_THAT_HARMS else warning
    yield found(
        f"This machine's clock is {abs(skew):.0f} s {direction} the database's.",
        "Synchronise both by NTP. Leases follow the database's clock, but Celery's messages expire "
        "and beat sends by the machines' clocks.",
    )


def _unapplied(label: str) -> list[str]:
    """The app's migrations that are missing from the database, as `app.name`."""
    if not apps.is_installed(label):
        return []
    if label == "autorun":
        alias = settings.DATABASE
    else:
        alias = router.db_for_write(apps.get_model(label, "PeriodicTask"))
    executor = MigrationExecutor(connections[alias])
    targets = [each for each in executor.loader.graph.leaf_nodes() if each[0] == label]
    plan = executor.migration_plan(targets)
    return [f"{each.app_label}.{each.name}" for each, _ in plan if each.app_label == label]
