"""A check of the time zones in which databases read days and hours of times."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from django.core.checks import CheckMessage
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField
from django.db.models.functions.datetime import TimezoneMixin
from django.db.models.sql import Query
from django.utils import timezone

from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.hooks import database_of
from autorun.observe.checks.problems import warning
from autorun.planning.rows import eligible, fingerprinted

_ADVICE = {
    "mysql": "Load them as root of the server: `mysql_tzinfo_to_sql /usr/share/zoneinfo | mysql "
    "mysql`. See docs/howto/deploy.md.",
}
_OTHER_ADVICE = "Use a current name of the zone, or install all zones there (tzdata-legacy)."


def check_time_zones(databases: Sequence[str] | None) -> Iterator[CheckMessage]:
    """W212: a zone that a runner's rows are read in is unknown to their database."""
    readers: dict[tuple[str, str], list[str]] = {}
    for runner in registry.runners() if databases else ():
        with suppress(Exception):  # another check, or the doctor, reports it
            for zone in _zones_of(runner):
                readers.setdefault((database_of(runner), zone), []).append(runner.label)
    for (alias, zone), labels in readers.items():
        connection = connections[alias]
        with suppress(DatabaseError):  # `migrate` and the doctor say why it does not answer
            if alias in (databases or ()) and not _is_known(zone, connection):
                yield warning(f"settings.DATABASES[{alias!r}]", "W212")(
                    f"The database does not know the time zone {zone!r}, in which the filter or "
                    f"the input of {', '.join(labels)} reads days or hours. On MariaDB they are "
                    "NULL: a change is not seen, and the filter finds no rows.",
                    _ADVICE.get(connection.vendor, _OTHER_ADVICE),
                )


def _zones_of(runner: Runner) -> set[str]:
    rows = fingerprinted(runner, eligible(runner, None, log_level=SILENT))
    with timezone.override(timezone.get_default_timezone()):
        return set(_zones_in(rows.query))


def _zones_in(part: Any) -> Iterator[str]:
    if isinstance(part, TimezoneMixin):
        read: Any = part
        if isinstance(read.lhs.output_field, DateTimeField) and (zone := read.get_tzname()):
            yield zone
    if isinstance(part, Query):
        parts = [part.where, *part.annotations.values(), *part.combined_queries]
    else:
        parts = getattr(part, "get_source_expressions", list)()
    for each in parts:
        yield from _zones_in(each)


def _is_known(zone: str, connection: BaseDatabaseWrapper) -> bool:
    connection.ensure_connection()
    moment = connection.ops.adapt_datetimefield_value(timezone.now())
    sql, params = connection.ops.datetime_cast_date_sql("%s", (moment,), zone)
    try:
        with transaction.atomic(connection.alias), connection.cursor() as cursor:
            cursor.execute(f"SELECT {sql}", params)
            return bool(cursor.fetchone() != (None,))
    except DatabaseError:
        return False
