"""No queries while checks call hooks: tables or server may not exist yet."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from django.db import Error as DatabaseError
from django.db import connections

#: Every query and every transaction calls one of these.
WAYS = ("ensure_connection", "cursor", "chunked_cursor")


class QueryRefused(DatabaseError):
    """A hook queries a database while a check calls it."""


class Refusal:
    """Records whether a query was refused."""

    is_needed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.is_needed = True
        raise QueryRefused("System checks query no database.")


@contextmanager
def queries_refused() -> Iterator[Refusal]:
    """Raise QueryRefused for each query of this thread within the block."""
    refusal = Refusal()
    with ExitStack() as stack:
        for connection in connections.all():
            # Not `execute_wrapper`, which is called only after the connection is open.
            for way in WAYS:
                stack.enter_context(mock.patch.object(connection, way, refusal))
        yield refusal
