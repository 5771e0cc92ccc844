"""Checks that ask databases: of character sets, of time zones, and of the triggers of ON_WRITE."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField
from django.db.models.functions.datetime import TimezoneMixin
from django.db.models.sql import Query
from django.utils import timezone

from autorun.conf import settings
from autorun.declare import registry
from autorun.declare.base import Runner
from autorun.declare.console import SILENT
from autorun.declare.hooks import database_of
from autorun.exceptions import AutorunError
from autorun.models import Written
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import error, place, warning
from autorun.planning.rows import eligible, fingerprinted
from autorun.triggers import installing, on_write

#: The database, if new tables would have another character set than utf8mb4, and such columns.
_OTHERS = """
SELECT CONCAT('the database ', SCHEMA_NAME) FROM information_schema.SCHEMATA
WHERE SCHEMA_NAME = DATABASE() AND DEFAULT_CHARACTER_SET_NAME <> 'utf8mb4'
UNION ALL SELECT CONCAT(TABLE_NAME, '.', COLUMN_NAME) FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = DATABASE() AND CHARACTER_SET_NAME <> 'utf8mb4' AND TABLE_NAME IN %s
"""
MOST_NAMED = 5
INSTALL = (
    "`manage.py migrate` corrects that, and `manage.py autorun triggers --install` does so now."
)
CREATE = "Create missing tables first: `migrate` leaves out models with managed = False."
_ADVICE = {
    "mysql": "Load them as root of the server: `mysql_tzinfo_to_sql /usr/share/zoneinfo | mysql "
    "mysql`. See docs/howto/deploy.md.",
}
_OTHER_ADVICE = "Use a current name of the zone, or install all zones there (tzdata-legacy)."


def check_database_of_writes(runner: Runner) -> Iterator[CheckMessage]:
    """E025: ON_WRITE on rows in another database than autorun's tables."""
    if runner.ON_WRITE is not True:
        return
    with suppress(AutorunError):
        if (alias := database_of(runner)) != settings.DATABASE:
            yield error(runner, "E025")(
                f"ON_WRITE is True, but the rows are in the database {alias!r}: a trigger cannot "
                f"note a write in autorun's tables, which are in {settings.DATABASE!r}.",
                f"Remove ON_WRITE from {place(runner)} and give it a SCHEDULE, or set "
                f'AUTORUN = {{"DATABASE": {alias!r}}}.',
            )


def check_character_sets(databases: Sequence[str] | None) -> Iterator[CheckMessage]:
    """W210: MariaDB's character sets, of the `databases` that may be queried."""
    for alias in databases or ():
        if connections[alias].vendor != "mysql":
            continue
        try:
            others = _others(connections[alias])
        except DatabaseError:
            continue  # `migrate` and the doctor say why it does not answer
        if others:
            named = ", ".join(others[:MOST_NAMED]) + (", ..." if others[MOST_NAMED:] else "")
            yield warning(f"settings.DATABASES[{alias!r}]", "W210")(
                f"Another character set than utf8mb4: {named}. Text beyond that set is refused, or "
                "cannot be compared: rows are not planned, and results not recorded.",
                "Run `ALTER DATABASE ... CHARACTER SET utf8mb4` before `manage.py migrate`, and "
                "change existing columns with ALTER TABLE: see docs/howto/deploy.md.",
            )


def check_triggers(databases: Sequence[str] | None) -> Iterator[CheckMessage]:
    """E026 and W211, if autorun's database may be queried and has been migrated."""
    if settings.DATABASE not in (databases or ()):
        return
    connection = connections[settings.DATABASE]
    try:
        with connection.cursor() as cursor:
            kinds = {
                each.name: each.type for each in connection.introspection.get_table_list(cursor)
            }
        if Written._meta.db_table in kinds:
            views = {name for name, kind in kinds.items() if kind == "v"}
            yield from _views(views)
            yield from _states(connection, views)
    except DatabaseError:
        return  # `migrate` and the doctor say why it does not answer


def _views(views: set[str]) -> Iterator[CheckMessage]:
    for table in on_write.tables().values():
        name = table.name
        if name in views:
            labels = ", ".join(dict.fromkeys(each.runner.label for each in table.readers))
            yield error(table.model, "E026")(
                f"ON_WRITE of {labels}: {name} is a view, so no trigger can note what is written.",
                "Remove ON_WRITE and give the runner a SCHEDULE, or declare a runner on the table "
                "behind the view.",
            )


def _states(connection: BaseDatabaseWrapper, views: set[str]) -> Iterator[CheckMessage]:
    wrong = {
        each.table: each.state
        for each in installing.statuses()
        if each.state != "installed" and each.table not in views
    }
    if wrong:
        tables = ", ".join(f"{table} ({state})" for table, state in wrong.items())
        unseen = " Until they do, only sweeps find what is written without a save."
        create = f" {CREATE}" * (installing.NO_TABLE in wrong.values())
        yield warning(f"settings.DATABASES[{settings.DATABASE!r}]", "W211")(
            f"Triggers of ON_WRITE do not match the runners: {tables}."
            + unseen * (set(wrong.values()) != {"not needed"}),
            INSTALL + create + _privilege(connection),
        )


def _privilege(connection: BaseDatabaseWrapper) -> str:
    """Say which privilege the database's user lacks or may lack; '' if it lacks none."""
    if connection.vendor != "mysql":
        return "".join(f" {installing.ask_owner(each)}" for each in installing.grants_needed())
    return (
        " The database's user needs the privilege TRIGGER on the tables; without it, the server "
        "does not show the triggers that there are."
        + f" {installing.ASK_ADMINISTRATOR}"
        * installing.is_forbidden()
    )


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


def _others(connection: BaseDatabaseWrapper) -> list[str]:
    models = {*apps.get_app_config("autorun").get_models(), *map(model_of, registry.runners())}
    tables = sorted(model._meta.db_table for model in models if model is not None)
    with connection.cursor() as cursor:
        cursor.execute(_OTHERS, [tables])
        return [name for (name,) in cursor.fetchall()]
