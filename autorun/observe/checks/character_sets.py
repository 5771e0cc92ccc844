"""W210: MariaDB's character sets. It asks the database: `migrate` runs it."""

from collections.abc import Iterator, Sequence

from django.apps import apps
from django.core.checks import CheckMessage
from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from autorun.declare import registry
from autorun.observe.checks.declarations import model_of
from autorun.observe.checks.problems import warning

#: The database, if new tables would have another character set than utf8mb4, and such columns.
_OTHERS = """
SELECT CONCAT('the database ', SCHEMA_NAME) FROM information_schema.SCHEMATA
WHERE SCHEMA_NAME = DATABASE() AND DEFAULT_CHARACTER_SET_NAME <> 'utf8mb4'
UNION ALL SELECT CONCAT(TABLE_NAME, '.', COLUMN_NAME) FROM information_schema.COLUMNS
WHERE TABLE_SCHEMA = DATABASE() AND CHARACTER_SET_NAME <> 'utf8mb4' AND TABLE_NAME IN %s
"""
MOST_NAMED = 5


def check_character_sets(databases: Sequence[str] | None) -> Iterator[CheckMessage]:
    """W210, of the `databases` that may be queried."""
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
                "change columns that exist by ALTER TABLE: see docs/howto/deploy.md.",
            )


def _others(connection: BaseDatabaseWrapper) -> list[str]:
    models = {*apps.get_app_config("autorun").get_models(), *map(model_of, registry.runners())}
    tables = sorted(model._meta.db_table for model in models if model is not None)
    with connection.cursor() as cursor:
        cursor.execute(_OTHERS, [tables])
        return [name for (name,) in cursor.fetchall()]
