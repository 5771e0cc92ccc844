"""Rows that triggers have noted: few are left to workers as saved rows are, many become a batch.

The notes of a table are counted, copied and deleted in one transaction, a portion at a time. A note
whose transaction commits between these statements changes their count, and the portion is taken
again. So no note is lost, in whatever order transactions commit.
"""

import datetime as dt
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from django.db import DatabaseError, IntegrityError, connections
from django.db.models import Count, F, Max, Min, Q, QuerySet, TextField

from autorun.conf import settings
from autorun.declare.inputs import input_of
from autorun.declare.nodes import node_of
from autorun.declare.sets import PK
from autorun.exceptions import AutorunError
from autorun.models import Batch, BatchRow, SpilledTrigger, Written
from autorun.planning import batches, written
from autorun.planning.scope import Scope
from autorun.state import pulses
from autorun.state.clock import from_now
from autorun.state.keys import Key, KeyText, key_kind, kind_of
from autorun.state.logs import get_logger
from autorun.state.probes import crash_point
from autorun.state.sql import insert_ignoring_conflicts, table
from autorun.state.transactions import repeated_on_conflict, sum_of_each
from autorun.state.words import spoken
from autorun.triggers import on_write
from autorun.triggers.delivery import WRITTEN, label_of_deleted
from autorun.triggers.on_write import Reader

logger = get_logger(__name__)

#: More notes of a table become a batch, as do more rows that read it.
FEW = 1_000
#: Notes that one transaction takes.
PORTION = 50_000
#: Seconds that a round takes notes of one table.
MOST_SECONDS = 10.0
#: Seconds that notes wait for a process with a runner that reads their table.
UNKNOWN_FOR = 24 * 3600.0
#: Names the lock of a process that takes notes.
LOCK = "written rows"

_DELETED = Q(operation=Written.Operation.DELETE)
_TRUNCATED = Q(operation=Written.Operation.TRUNCATE)


class Noted(NamedTuple):
    """The notes of one table, by their ids, and the time of the last deletion."""

    source: str
    number: int
    first: int
    last: int
    deleted_at: dt.datetime | None
    truncated: int

    def within(self, after: int, up_to: int) -> QuerySet[Written]:
        return Written.objects.filter(source=self.source, pk__gt=after, pk__lte=up_to)

    def may_concern_all(self, reader: Reader) -> bool:
        """Whether a table that the reader's rows refer to, or that refers to them, was emptied."""
        return self.truncated > 0 and reader.path != PK


def hand_out_written() -> int:
    """Let workers plan the rows that triggers have noted. Return how many notes."""
    # Notes of a table that no runner here reads are left to other workers, as during a rollout.
    if not Written.objects.exists():
        return 0
    columns = {
        "number": Count("pk"),
        "first": Min("pk"),
        "last": Max("pk"),
        "deleted_at": Max("written_at", filter=_DELETED | _TRUNCATED),
        "truncated": Count("pk", filter=_TRUNCATED),
    }
    sources = list(on_write.tables())
    _unfold(sources)
    noted: Any = Written.objects.filter(source__in=sources).values("source")
    found = [Noted(**row) for row in noted.annotate(**columns).order_by("source")]
    return sum_of_each(_take, found, name="Notes of")


def _unfold(sources: list[str]) -> None:
    """Make a note for each row from the notes of many rows that PostgreSQL's triggers write."""
    connection = connections[settings.DATABASE]
    if connection.vendor != "postgresql":
        return
    notes, columns = table(Written, connection), "source, operation, object_key, written_at"
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH taken AS (DELETE FROM {notes} WHERE last_id IS NOT NULL AND source = ANY(%s) "
            f"RETURNING {columns}, object_id, last_id) INSERT INTO {notes} ({columns}, object_id) "
            f"SELECT {columns}, generate_series(object_id, last_id) FROM taken",
            [sources],
        )


def drop_unknown() -> None:
    """Delete the notes that no runner has read for a day."""
    old = Written.objects.filter(written_at__lte=from_now(-UNKNOWN_FOR))
    number, _ = old.exclude(source__in=list(on_write.tables())).delete()
    if number:
        logger.warning("%d notes of written rows have had no runner for a day.", number)


def _take(noted: Noted) -> int:
    readers = list(_planned(on_write.tables()[noted.source].readers))
    begun = {reader: batch for reader in readers if (batch := _begun_before(reader, noted))}
    up_to = min(
        (batch.scope["source"][written.UP_TO] for batch in begun.values()), default=noted.last
    )
    noted = noted._replace(last=min(up_to, noted.last))
    taken, after = 0, noted.first - 1
    ends_at = time.monotonic() + MOST_SECONDS
    while after < noted.last and (not taken or time.monotonic() < ends_at):
        up_to = noted.last if noted.number <= FEW else min(after + PORTION, noted.last)
        portion = partial(_take_portion, noted, after, up_to, readers=readers, begun=begun)
        number, begun = repeated_on_conflict(portion)
        taken, after = taken + number, up_to
        crash_point("writes.taken")
    complete = begun.values() if after >= noted.last else ()
    if complete:
        _estimate_rows()
    for batch in complete:
        written.complete(batch)
        batches.hand_on(batch)
    return taken


def _estimate_rows() -> None:
    """Have PostgreSQL count the rows of the new batches."""
    # It would expect a few, and compare each of them with all runs of a window.
    connection = connections[settings.DATABASE]
    if connection.vendor == "postgresql":
        with suppress(DatabaseError), connection.cursor() as cursor:
            cursor.execute(f"ANALYZE (SKIP_LOCKED) {table(BatchRow, connection)}")


def _begun_before(reader: Reader, noted: Noted) -> Batch | None:
    """The batch whose notes earlier rounds had no time for."""
    return Batch.objects.filter(
        runner=reader.runner.label,
        node=node_of(reader.runner),
        trigger=Batch.Trigger.WRITE,
        planned_at=None,
        scope__source__table=noted.source,
        scope__source__up_to__gte=noted.first,
    ).last()


def _planned(readers: Iterable[Reader]) -> Iterable[Reader]:
    """The readers whose runner can be planned; their nodes exist then."""
    for reader in readers:
        try:
            node_of(reader.runner)
        except AutorunError as error:
            message = "%s: written rows are not planned. The next sweep finds them. %s"
            logger.error(message, reader.runner.label, error)
        else:
            yield reader


def _take_portion(
    noted: Noted, after: int, up_to: int, *, readers: Sequence[Reader], begun: dict[Reader, Batch]
) -> tuple[int, dict[Reader, Batch]]:
    """Take the notes with ids in (after, up_to]. Return how many, and the batches begun so far."""
    pulses.hold(LOCK)
    notes = noted.within(after, up_to)
    number = notes.count()
    batches_now = dict(begun)
    of_row = kind_of(on_write.tables()[noted.source].key)
    named = of_row.nameable(notes, of_row.column)
    for reader in readers:
        batch = batches_now.get(reader)
        is_few = batch is None and noted.number <= FEW and not noted.truncated
        if is_few and _leave_to_workers(reader, noted, named):
            continue
        is_for_all = noted.may_concern_all(reader)
        if batch is None or not (is_for_all or written.is_incomplete(batch)):
            batch = batches_now[reader] = _begin(reader, noted)
        if batch.is_unfinished and not is_for_all:
            _copy(reader, noted.source, named, batch)
    crash_point("writes.copied")
    if notes._raw_delete(settings.DATABASE) != number:
        raise IntegrityError("Notes of a longer transaction arrived meanwhile.")
    return number, batches_now


def _leave_to_workers(reader: Reader, noted: Noted, notes: QuerySet[Written]) -> bool:
    """Leave the rows to workers, as saved rows that wait; False if they are too many."""
    label = reader.runner.get_model()._meta.label
    parts: dict[str, set[Key]] = {}
    if reader.path == PK:
        column = key_kind(reader.runner.get_model()).column
        deleted = set(notes.filter(_DELETED).values_list(column, flat=True))
        parts[label_of_deleted(label, settings.DATABASE)] = deleted
        parts[WRITTEN + label] = set(notes.values_list(column, flat=True)) - deleted
    else:
        known: set[Key] = set()
        for origin, some in by_origin(reader, notes):
            found = set(rows_reading(reader, noted.source, some)[: FEW + 1])
            parts[f"{WRITTEN}{label}:{origin}"] = found - known
            known |= found
        if len(known) > FEW:
            return False
    # The time of the deletion tells which runs are of the deleted row.
    at = {} if noted.deleted_at is None else {"created_at": noted.deleted_at}
    SpilledTrigger.objects.bulk_create(
        SpilledTrigger(model_label=name, runner=reader.runner.label, keys=sorted(keys), **at)
        for name, keys in parts.items()
        if keys
    )
    return True


def _begin(reader: Reader, noted: Noted) -> Batch:
    """A batch of rows yet to be copied, which no other process plans before it is handed on."""
    batch = batches.begin(reader.runner, Batch.Trigger.WRITE)
    source = written.source(batch, deleted_at=noted.deleted_at, is_truncated=noted.truncated > 0)
    if reader.path != PK:
        source["words"] = f"whose {spoken(reader.relation)} changed"
    source |= {"table": noted.source, written.UP_TO: noted.last}
    scope = Scope(source=None if noted.may_concern_all(reader) else source)
    batch.scope, batch.description = scope.written(), str(scope)[:255]
    batch.save(update_fields=["scope", "description"], using=settings.DATABASE)
    return batch


def _copy(reader: Reader, source: str, notes: QuerySet[Written], batch: Batch) -> None:
    """Make the rows that the notes concern rows of the batch, without carrying them here."""
    connection = connections[settings.DATABASE]
    column = key_kind(reader.runner.get_model()).column
    if reader.path == PK:
        rows: Any = notes.exclude(_TRUNCATED).values_list(column, "operation")
    else:
        rows = rows_reading(reader, source, notes)
    sql, params = rows.order_by().query.get_compiler(using=settings.DATABASE).as_sql()
    names, is_deleted = "k", "FALSE"
    if reader.path == PK:
        names, is_deleted = "k, o", f"o = '{Written.Operation.DELETE}'"
    begin, end = insert_ignoring_conflicts(connection)
    with connection.cursor() as cursor:
        cursor.execute(
            f"{begin} {table(BatchRow, connection)} (batch_id, is_deleted, {column}) "
            f"SELECT DISTINCT {batch.pk:d}, {is_deleted}, k FROM "
            f"(WITH c({names}) AS ({sql}) SELECT * FROM c) AS d WHERE 1 = 1 {end}",
            params,
        )


def by_origin(reader: Reader, notes: QuerySet[Written]) -> Iterator[tuple[str, QuerySet[Written]]]:
    """The notes of a table, by the origin of runs that each of them leads to."""
    if reader.path == PK:
        yield "write", notes
        return
    if reader.is_of_many:
        yield "added", notes.filter(operation=Written.Operation.INSERT)
        yield "removed", notes.filter(_DELETED)
        notes = notes.filter(operation=Written.Operation.UPDATE)
    yield "related_write", notes


def rows_reading(reader: Reader, source: str, notes: QuerySet[Written]) -> QuerySet[Any, Key]:
    """The keys of the rows whose path leads to a noted row."""
    model = reader.runner.get_model()
    of_note = kind_of(on_write.tables()[source].key)
    rows = model._base_manager.using(settings.DATABASE)
    if of_note.is_integer or not kind_of(input_of(model, reader.path).field).is_integer:
        rows = rows.filter(**{f"{reader.path}__in": of_note.stored(notes)})
    else:  # a generic relation may have the text of an integer
        rows = rows.annotate(_autorun_text=KeyText(F(reader.path), TextField()))
        rows = rows.filter(_autorun_text__in=notes.values("object_key"))
    return key_kind(model).values(rows)
