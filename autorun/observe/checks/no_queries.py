"""No queries while hooks are looked at: the tables may not be there yet, nor the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from django.db import Error as DatabaseError
from django.db import connections

#: Whoever queries, or begins a transaction, takes one of these ways.
WAYS = ("ensure_connection", "cursor", "chunked_cursor")


class QueryRefused(DatabaseError):
    """A hook queries a database when it is only looked at."""


class Refusal:
    """Whether a query had to be refused."""

    is_needed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.is_needed = True
        raise QueryRefused("System checks query no database.")


@contextmanager
def queries_refused() -> Iterator[Refusal]:
    """QueryRefused for all that this thread would ask a database in the block."""
    refusal = Refusal()
    with ExitStack() as stack:
        for connection in connections.all():
            # Not `execute_wrapper`: it is asked only once there is a connection to the server.
            for way in WAYS:
                stack.callback(_restore, connection, way, vars(connection).get(way))
                setattr(connection, way, refusal)
        yield refusal


def _restore(connection: Any, way: str, before: Any) -> None:
    if before is None:
        delattr(connection, way)
    else:
        setattr(connection, way, before)
