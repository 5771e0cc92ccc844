"""Time as the database tells it, so that no worker's clock decides who holds a lease."""

from __future__ import annotations

import datetime as dt
from typing import Any

from django.db.models import DateTimeField, DurationField, Expression, ExpressionWrapper, Value
from django.db.models.functions import Now


class DatabaseNow(Now):
    """The database's time, in UTC: MariaDB's `Now()` follows the server's time zone."""

    def as_mysql(
        self, compiler: Any, connection: Any, template: Any = None, **extra: Any
    ) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="UTC_TIMESTAMP(6)", **extra)


def from_now(seconds: float) -> Expression:
    """The database's time `seconds` from now; before now if they are negative."""
    duration = Value(dt.timedelta(seconds=seconds), output_field=DurationField())
    return ExpressionWrapper(DatabaseNow() + duration, output_field=DateTimeField())


def now_sql(vendor: str) -> str:
    """The database's time, for statements written as text."""
    if vendor == "mysql":
        return "UTC_TIMESTAMP(6)"
    if vendor == "postgresql":
        return "STATEMENT_TIMESTAMP()"
    return "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')"
