"""Retire the runs of deleted rows, so that a new row with the same key does not inherit them.

A retired run is not current, and its fingerprint is RETIRED, which no input has. It is not the
result of any row, and a new row with the same key does not get its outputs.
"""

import datetime as dt
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

from django.db import connections
from django.db.models import Exists, OuterRef

from autorun.conf import settings
from autorun.declare.base import Runner
from autorun.declare.hooks import database_of, every_row
from autorun.declare.nodes import node_of, nodes_over
from autorun.models import Chunk, Run
from autorun.planning.cancelling import cancel_unstarted
from autorun.planning.rows import primary_keys
from autorun.state.clock import first_chunk_id_at, new_chunk_id
from autorun.state.counts import superseded
from autorun.state.keys import Key, KeyKind, key_kind
from autorun.state.logs import get_logger
from autorun.state.managers import RETIRED, RunQuerySet
from autorun.state.probes import crash_point
from autorun.state.transactions import repeated_on_conflict

logger = get_logger(__name__)

#: Rows whose runs one transaction retires.
KEYS_AT_ONCE = 1_000
#: Current runs that one statement compares with the rows, and keys that Python does.
DATABASE_WINDOW = 50_000
PYTHON_WINDOW = 2_000
#: How far the clocks of two processes may differ. A run planned that long after a deletion is of
#: the new row, however late or often the deletion is reported.
TOLERANCE = dt.timedelta(minutes=5)


def retire(
    runners: Sequence[Runner], keys: Collection[Any], *, using: str, deleted_at: dt.datetime
) -> int:
    """Retire the runs of rows that were deleted in the database `using`. Return how many.

    `runners` are those of the rows' model, and `keys` the primary keys that they had.
    """
    if using not in map(database_of, runners):
        return 0
    kind = key_kind(runners[0].get_model())
    planned = _runs_over(runners[0]).filter(chunk_id__lt=first_chunk_id_at(deleted_at + TOLERANCE))
    return _retire_all(planned, kind, _keys_of(runners[0], keys))


def retire_noted(runner: Runner, keys: Collection[Any], *, deleted_at: dt.datetime) -> int:
    """Retire the runs of rows whose deletion a trigger noted at that time. Return how many."""
    # If a row has the same key now, runs that were planned since are its own.
    found = _keys_of(runner, keys)
    gone = _without_row(runner, found)
    anew = set(found).difference(gone)
    retired = retire([runner], gone, using=settings.DATABASE, deleted_at=deleted_at)
    before = deleted_at - TOLERANCE
    return retired + retire([runner], list(anew), using=settings.DATABASE, deleted_at=before)


def retire_all(runner: Runner, *, deleted_at: dt.datetime) -> int:
    """Retire the runs of all rows that existed at that time, when the table was emptied."""
    kind = key_kind(runner.get_model())
    planned = _runs_over(runner).filter(chunk_id__lt=first_chunk_id_at(deleted_at))
    retired = 0
    for node_id in nodes_over(runner.get_model()).values_list("pk", flat=True):
        current = Run.objects.current().of(node_id).of_rows(kind)
        for window in _windows(current, kind, PYTHON_WINDOW):
            retired += _retire_all(planned, kind, list(window.values_list(kind.column, flat=True)))
    return retired


def retire_missing(runner: Runner, keys: Sequence[Key] | None = None) -> int:
    """Retire the runs of rows that no longer exist, of `keys` or of all. Return how many."""
    # All are those with a current run of the runner's node, compared a window of keys at a time.
    kind = key_kind(runner.get_model())
    runs = _runs_over(runner)
    if keys is not None:
        return _retire_all(runs, kind, _without_row(runner, keys))
    current = Run.objects.current().of(node_of(runner)).of_rows(kind)
    retired = 0
    for window in _windows(current, kind, DATABASE_WINDOW if _is_joined(runner) else PYTHON_WINDOW):
        retired += _retire_all(runs, kind, _missing(runner, window))
    if retired:
        logger.info("%s: retired %d runs of deleted rows.", runner.label, retired)
    return retired


def _windows(runs: RunQuerySet[Run], kind: KeyKind, size: int) -> Iterator[RunQuerySet[Run]]:
    """`runs` in the order of their keys, `size` keys at a time."""
    left = in_order = runs.order_by(kind.column)
    while True:
        last = left.values_list(kind.column, flat=True)[size - 1 : size].first()
        yield left if last is None else left.filter(**{f"{kind.column}__lte": last})
        if last is None:
            return
        left = in_order.filter(**{f"{kind.column}__gt": last})


def _runs_over(runner: Runner) -> RunQuerySet[Run]:
    # Named one by one, the nodes let the index find the rows.
    return Run.objects.filter(node__in=list(nodes_over(runner.get_model())))


def _keys_of(runner: Runner, pks: Collection[Any]) -> list[Key]:
    """Return the keys of rows by their primary keys, which the database may write differently."""
    kind, connection = key_kind(runner.get_model()), connections[database_of(runner)]
    stored = [kind.field.get_db_prep_value(pk, connection) for pk in primary_keys(runner, pks)]
    return stored if kind.is_integer else list(map(str, stored))


def _is_joined(runner: Runner) -> bool:
    """Whether one statement can compare runs with rows, by the index of their primary key."""
    is_here = database_of(runner) == settings.DATABASE
    return is_here and key_kind(runner.get_model()).is_integer


def _missing(runner: Runner, runs: RunQuerySet[Run]) -> list[Key]:
    column = key_kind(runner.get_model()).column
    if _is_joined(runner):
        runs = runs.filter(~Exists(every_row(runner).filter(pk=OuterRef(column))))
    keys: list[Key] = list(runs.values_list(column, flat=True))
    return keys if _is_joined(runner) else _without_row(runner, keys)


def _without_row(runner: Runner, keys: Sequence[Key]) -> list[Key]:
    kind = key_kind(runner.get_model())
    rows = every_row(runner).filter(pk__in=list(map(kind.to_pk, keys)))
    return list(set(keys).difference(kind.values(rows)))


def _retire_all(runs: RunQuerySet[Run], kind: KeyKind, keys: Sequence[Key]) -> int:
    """Retire those of the runs that are of these rows, in short transactions. Return how many."""
    retired = 0
    for begin in range(0, len(keys), KEYS_AT_ONCE):
        some = runs.of_rows(kind, keys[begin : begin + KEYS_AT_ONCE]).unretired()
        if some.exists():
            retired += repeated_on_conflict(partial(_retire, some))
    return retired


def _retire(runs: RunQuerySet[Run]) -> int:
    """Cancel those of the runs that have not started, and retire them all."""
    pending = dict(runs.pending().values_list("pk", "chunk_id"))
    if pending:
        chunks = Chunk.objects.filter(pk__in=set(pending.values()))
        cancel_unstarted(chunks, run_ids=list(pending))
    found = list(
        runs.select_for_update().order_by("pk").values_list("pk", "node", "status", "is_current")
    )
    ids = [pk for pk, *_ in found]
    Run.objects.filter(pk__in=ids).update(is_current=None, fingerprint=RETIRED)
    crash_point("retire.runs")
    # One that a worker executes is counted when it ends.
    statuses: dict[int, list[int]] = defaultdict(list)
    for _, node_id, status, is_current in found:
        if is_current:
            statuses[node_id].append(status)
    # Chunks of their own: those of the runs may be folded, or locked by a worker.
    for node_id, of_node in statuses.items():
        if booked := superseded(of_node):
            chunk = Chunk(pk=new_chunk_id(), node_id=node_id, size=0, **booked)
            chunk.state = Chunk.State.FINISHED
            chunk.save(force_insert=True, using=settings.DATABASE)
    return len(ids)
