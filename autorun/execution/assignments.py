"""The unfinished runs of a chunk, and their rows."""

from collections.abc import Collection
from functools import partial
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Exists, OuterRef, QuerySet

from autorun.conf import settings
from autorun.models import Chunk, Run
from autorun.planning.rows import Row
from autorun.state.sql import Fragment, Slot, prepared, recordset, update_from
from autorun.state.transactions import repeated_on_conflict


class Assignment(NamedTuple):
    run: Any
    row: Row


@prepared
def load_runs() -> QuerySet[Any]:
    """The chunk's pending runs; `has_older` if a superseded run of the row is still running.

    They are named tuples, because making instances of Run takes as long as a quick body.
    """
    older = Run.objects.pending().filter(
        node=OuterRef("node"),
        object_id=OuterRef("object_id"),
        object_key=OuterRef("object_key"),
        is_current=None,
        chunk__state=Chunk.State.RUNNING,
    )
    chunk = Slot("chunk_id")
    runs: Any = Run.objects.pending().filter(chunk=chunk).order_by("pk")
    columns = ("pk", "object_id", "object_key", "fingerprint", "is_current", "attempts")
    runs = runs.annotate(has_older=Exists(older.exclude(chunk=chunk)))
    return runs.values_list(*columns, "has_older", named=True)  # type: ignore[no-any-return]


def pending_in(chunk: Chunk) -> set[int]:
    """Read the ids of the chunk's pending runs anew."""
    pending = Run.objects.pending().filter(chunk=chunk).values_list("pk", flat=True)
    return repeated_on_conflict(lambda: set(pending.all()), is_idempotent=True)


def superseded(changed: Collection[Assignment]) -> set[int]:
    """The ids of the runs that planning has superseded, of those whose row had `changed`.

    The other runs get the fingerprint of the input that was read. Otherwise a late message about
    the change would plan a second run of the same input.
    """
    if not changed:
        return set()
    inputs = [(each.run.pk, each.row.fingerprint) for each in changed]
    columns = {"run_id": "bigint", "new_fingerprint": "fingerprint"}
    note = partial(
        update_from,
        Run,
        "fingerprint = s.new_fingerprint",
        source=recordset(connections[settings.DATABASE], columns, inputs),
        key="run_id",
        only=Fragment(f"is_current AND status = {Run.Status.PENDING:d}"),
        returning="id",
    )
    noted = repeated_on_conflict(note)
    return {run_id for run_id, _ in inputs} - {run_id for (run_id,) in noted}
