"""Time as the database tells it, so that no worker's clock decides who holds a lease.

And ids of chunks, which are in the order of time. The process makes them, so that one INSERT can
spread runs over new chunks.
"""

import datetime as dt
import secrets
import threading
import time
from typing import Any

from django.db.models import DateTimeField, DurationField, Expression, ExpressionWrapper, Value
from django.db.models.functions import Now

EPOCH_MS = 1_704_067_200_000  # 2024-01-01 UTC
RANDOM_BITS = 22
LARGEST = (1 << 63) - 1
#: More chunks than one window of planning makes.
LARGEST_BLOCK = 1 << 17


#: The database's time by vendor, for statements written as text.
NOW_SQL = {
    "postgresql": "STATEMENT_TIMESTAMP()",
    "mysql": "UTC_TIMESTAMP(6)",
    "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')",
}

#: The time a minute ago, for the same.
MINUTE_AGO_SQL = {
    "postgresql": "STATEMENT_TIMESTAMP() - INTERVAL '1 minute'",
    "mysql": "UTC_TIMESTAMP(6) - INTERVAL 1 MINUTE",
    "sqlite": "STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW', '-1 minute')",
}


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


#: A thread's last block. A lock instead could be held while a worker's pool forks.
_last = threading.local()


def first_chunk_id_at(when: dt.datetime) -> int:
    """The lower bound of the ids of chunks made at `when` or later, by their process's clock."""
    milliseconds = int(when.timestamp() * 1_000) - EPOCH_MS
    return min(max(milliseconds, 0) << RANDOM_BITS, LARGEST)


def after_chunk_id(chunk_id: int) -> dt.datetime:
    """A time whose `first_chunk_id_at` is above `chunk_id`, and above few others that are."""
    milliseconds = EPOCH_MS + (chunk_id >> RANDOM_BITS) + 1
    # Half a millisecond more: a time is rounded when it is read.
    return dt.datetime.fromtimestamp((milliseconds + 0.5) / 1_000, tz=dt.UTC)


def new_chunk_id() -> int:
    """The first of a block of chunk ids: 41 bits of milliseconds, then 22 random ones."""
    # A thread's blocks never overlap. If those of two threads or processes do, the primary key is
    # violated, and that window of planning is rolled back and repeated.
    milliseconds = time.time_ns() // 1_000_000 - EPOCH_MS
    chunk_id = milliseconds << RANDOM_BITS | secrets.randbits(RANDOM_BITS)
    _last.chunk_id = chunk_id = max(chunk_id, getattr(_last, "chunk_id", 0) + LARGEST_BLOCK)
    return chunk_id
