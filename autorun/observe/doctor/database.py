"""Examines the database of autorun's tables: its connection, migrations and clock."""

import datetime as dt
from collections.abc import Iterator

from django.apps import apps
from django.contrib.contenttypes.models import ContentType
from django.db import DatabaseError, connections, router
from django.db.migrations.executor import MigrationExecutor
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation.trans_null import gettext_noop

from autorun.conf import settings
from autorun.observe.doctor.finding import Finding, error, examination, ok, warning
from autorun.state.clock import DatabaseNow
from autorun.state.words import duration

#: With an error in one of these, the tables cannot be examined.
SUBJECTS = (gettext_noop("database"), gettext_noop("migrations"))

SKEW_TO_MENTION = 2.0  # seconds
SKEW_THAT_HARMS = 30.0


@examination(gettext_noop("database"))
def examine_database() -> Iterator[Finding]:
    """Whether the database answers and is migrated."""
    alias = settings.DATABASE
    try:
        connections[alias].ensure_connection()
    except DatabaseError as problem:
        yield error(
            _("%(what)s does not answer: %(error)s")
            % {"what": repr(alias), "error": str(problem).strip()},
            _("Start it, or correct %s in the settings.") % f"DATABASES[{alias!r}]",
        )
        return
    names = ", ".join([*_unapplied("autorun"), *_unapplied("django_celery_beat")])
    if names:
        yield error(_("Not applied: %s.") % names, _("Run `manage.py migrate`."), _("migrations"))
    else:
        yield ok(_("%s answers and is migrated.") % repr(alias))


@examination(gettext_noop("clock"))
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
        yield ok(_("This machine and the database agree on the time."))
        return
    ahead = _("This machine's clock is %s ahead of the database's.")
    behind = _("This machine's clock is %s behind the database's.")
    found = error if abs(skew) >= SKEW_THAT_HARMS else warning
    yield found(
        (ahead if skew > 0 else behind) % duration(abs(skew)),
        _(
            "Synchronise both by NTP. Leases follow the database's clock, but Celery's messages "
            "expire and beat sends by the machines' clocks."
        ),
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
