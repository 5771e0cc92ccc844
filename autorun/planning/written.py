"""Batches of rows that triggers have noted: their rows, and the runs of those that were deleted."""

import datetime as dt
from collections.abc import Iterator, Mapping
from copy import copy
from typing import Any

from django.db import models
from django.db.models import Q
from django.db.models.lookups import In

from autorun.conf import settings
from autorun.declare import hooks
from autorun.declare.base import Runner
from autorun.models import Batch, BatchRow
from autorun.planning import retiring
from autorun.planning.scope import SOURCES
from autorun.state.keys import Key, key_kind

KIND = "written"
#: In the source of a batch to which rows are being added: the last note that is for it.
UP_TO = "up_to"
#: Keys of deleted rows that are read at once.
KEYS_AT_ONCE = 2_000
#: Rows of a batch that one statement deletes.
DELETED_AT_ONCE = 50_000


def source(batch: Batch, *, deleted_at: dt.datetime | None, is_truncated: bool) -> dict[str, Any]:
    """The source of the batch's scope; `deleted_at` is the time of the last deletion."""
    return {
        "kind": KIND,
        "words": "written in the database",
        "batch": batch.pk,
        "deleted_at": None if deleted_at is None else deleted_at.timestamp(),
        "is_truncated": is_truncated,
    }


def is_incomplete(batch: Batch) -> bool:
    """Whether rows may be added to the batch until this transaction ends; note its state."""
    incomplete = Batch.objects.filter(pk=batch.pk, scope__source__has_key=UP_TO)
    state = incomplete.select_for_update().values_list("state", flat=True).first()
    batch.state = state or batch.state
    return state is not None


def complete(batch: Batch) -> None:
    """Add no more rows to the batch, since it is about to be planned."""
    if UP_TO in (batch.scope.get("source") or ()):
        del batch.scope["source"][UP_TO]
        Batch.objects.filter(pk=batch.pk).update(scope=batch.scope)


def retire_deleted(runner: Runner, batch: Batch) -> None:
    """Retire the runs of the batch's deleted rows; a row with such a key now is a new one."""
    given: Mapping[str, Any] = batch.scope.get("source") or {}
    if given.get("kind") != KIND:
        return
    complete(batch)
    deleted_at = batch.created_at
    if given["deleted_at"] is not None:
        deleted_at = dt.datetime.fromtimestamp(given["deleted_at"], tz=dt.UTC)
    if given["is_truncated"]:
        retiring.retire_all(runner, deleted_at=deleted_at)
    for keys in _deleted(runner, batch):
        retiring.retire_noted(runner, keys, deleted_at=deleted_at)


def drop_rows(batch: Batch) -> None:
    """Delete the rows of a batch of written rows, unless it is still to be planned."""
    if batch.trigger == Batch.Trigger.WRITE:
        _drop_rows(batch.pk)


def drop_left_over() -> None:
    """Delete the rows of batches that have ended, or whose process died before it did so."""
    rows = BatchRow.objects.order_by("batch_id").values_list("batch_id", flat=True)
    batch_id = rows.first()
    while batch_id is not None:
        _drop_rows(batch_id)
        batch_id = rows.filter(batch_id__gt=batch_id).first()


def _drop_rows(batch_id: int) -> None:
    if Batch.objects.unfinished().filter(pk=batch_id, planned_at=None).exists():
        return
    for is_deleted in (False, True):
        rows = BatchRow.objects.filter(batch_id=batch_id, is_deleted=is_deleted)
        in_order = rows.order_by("object_id", "object_key").values_list("object_id", "object_key")
        while last := in_order[DELETED_AT_ONCE - 1 : DELETED_AT_ONCE].first():
            same = Q(object_id=last[0], object_key__lte=last[1])
            rows.filter(Q(object_id__lt=last[0]) | same)._raw_delete(settings.DATABASE)
        rows._raw_delete(settings.DATABASE)


def _deleted(runner: Runner, batch: Batch) -> Iterator[list[Key]]:
    column = key_kind(runner.get_model()).column
    rows = BatchRow.objects.filter(batch_id=batch.pk, is_deleted=True).order_by(column)
    keys = rows.values_list(column, flat=True)
    found: list[Key] = list(keys[:KEYS_AT_ONCE])
    while found:
        yield found
        found = list(keys.filter(**{f"{column}__gt": found[-1]})[:KEYS_AT_ONCE])


def _rows(runner: Runner, given: Mapping[str, Any]) -> models.QuerySet[Any]:
    kind = key_kind(runner.get_model())
    rows = BatchRow.objects.filter(batch_id=given["batch"], is_deleted=False)
    return hooks.base_queryset(runner).filter(pk__in=kind.stored(rows))


def within(queryset: models.QuerySet[Any], bounds: Mapping[str, Any]) -> models.QuerySet[Any]:
    """Have a queryset with these bounds of its keys read only a batch's rows within the bounds."""
    # Databases do not infer that, and would read all rows of the batch for each window.
    where: Any = queryset.query.where
    for place, each in enumerate(where.children if where.connector == "AND" else ()):
        if isinstance(each, In) and getattr(each.rhs, "model", None) is BatchRow:
            rows = BatchRow.objects.all()
            rows.query = each.rhs.chain()
            where.children[place] = bounded = copy(each)
            bounded.rhs = rows.filter(
                **{f"object_id__{name}": pk for name, pk in bounds.items()}
            ).query
    return queryset


SOURCES[KIND] = _rows
