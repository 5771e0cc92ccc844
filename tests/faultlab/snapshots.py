"""Autorun's tables as they were at some time, to be put back as a backup or a late replica does."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.db import connection, models, transaction

from autorun.models import Batch, Chunk, Failure, Node, Pulse, Run, SpilledTrigger
from autorun.state.transactions import repeated_on_conflict

#: In the order of their foreign keys.
MODELS: Sequence[type[models.Model]] = (Node, Batch, Chunk, Run, Failure, Pulse, SpilledTrigger)


class Snapshot:
    """The rows of autorun's tables, all as they were at one time."""

    def __init__(self) -> None:
        with _repeatable_reads():
            self._rows: list[tuple[type[models.Model], list[dict[str, Any]]]] = [
                (model, list(model.objects.values())) for model in MODELS
            ]

    def restore(self) -> None:
        """Forget everything that has been committed since."""
        repeated_on_conflict(self._put_back)

    def _put_back(self) -> None:
        with connection.constraint_checks_disabled():
            for model, _ in reversed(self._rows):
                model.objects.all()._raw_delete(connection.alias)
            for model, rows in self._rows:
                model.objects.bulk_create([model(**row) for row in rows], batch_size=500)


@contextmanager
def _repeatable_reads() -> Iterator[None]:
    """A transaction that sees one state, whatever is committed meanwhile."""
    level = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":  # of the next transaction
            cursor.execute(level)
        with transaction.atomic():
            if connection.vendor == "postgresql":
                cursor.execute(level)
            yield
