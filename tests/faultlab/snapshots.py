"""Autorun's tables as they were at some time, to be put back as a backup or a late replica does."""

from collections.abc import Sequence
from typing import Any

from django.db import connection, models, transaction

from autorun.models import Batch, Chunk, Failure, Node, Pulse, Run, SpilledTrigger

#: In the order of their foreign keys.
MODELS: Sequence[type[models.Model]] = (Node, Batch, Chunk, Run, Failure, Pulse, SpilledTrigger)


class Snapshot:
    """The rows of autorun's tables, or of those `models` alone."""

    def __init__(self, models: Sequence[type[models.Model]] = MODELS) -> None:
        self._rows: list[tuple[type[models.Model], list[dict[str, Any]]]] = [
            (model, list(model.objects.values())) for model in models
        ]

    def restore(self) -> None:
        """Forget everything that has been committed since."""
        with transaction.atomic(), connection.constraint_checks_disabled():
            for model, _ in reversed(self._rows):
                model.objects.all()._raw_delete(connection.alias)
            for model, rows in self._rows:
                model.objects.bulk_create([model(**row) for row in rows], batch_size=500)
