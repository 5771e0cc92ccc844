"""Checks of ON_WRITE: whether the database can note writes, and does."""

from collections.abc import Iterator, Sequence
from contextlib import suppress

from django.core.checks import CheckMessage
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of
from autorun.exceptions import AutorunError
from autorun.models import Written
from autorun.observe.checks.problems import error, place, warning
from autorun.triggers import installing, on_write

INSTALL = (
    "`manage.py migrate` corrects that, and `manage.py autorun triggers --install` does so now."
)
CREATE = "Create missing tables first: `migrate` leaves out models with managed = False."


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
