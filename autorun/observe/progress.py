"""What is done, what is pending, and why."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.models import (
    BooleanField,
    Exists,
    Expression,
    F,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    Sum,
    Value,
)

from autorun.declare.nodes import node_of
from autorun.models import Batch, Chunk, Node, Run
from autorun.planning import fingerprints
from autorun.planning.rows import eligible, examined, in_pages, planned_by_database
from autorun.state.keys import key_kind
from autorun.state.recordsets import recordset

if TYPE_CHECKING:
    from autorun.runner import QuerySetRunner
    from autorun.state.keys import Key

#: Rows that Python looks at together.
PAGE = 2_000


@dataclass(frozen=True)
class Progress:
    """How many current runs of a node ended how, and how many runs are on their way.

    waiting: planned, not handed to Celery. queued: handed over. running: in a chunk that a worker
    is at. ignored: left alone until the row's input changes.
    """

    succeeded: int = 0
    failed: int = 0
    ignored: int = 0
    waiting: int = 0
    queued: int = 0
    running: int = 0
    parked: int = 0

    @property
    def unfinished(self) -> int:
        return self.waiting + self.queued + self.running + self.parked

    @property
    def under_way(self) -> int:
        """What workers have been told of."""
        return self.queued + self.running

    @property
    def total(self) -> int:
        return self.succeeded + self.failed + self.ignored + self.unfinished


@dataclass(frozen=True)
class BatchCounts:
    """How many of a batch's runs ended how; `left` are still to end."""

    succeeded: int
    failed: int
    cancelled: int
    left: int


def progress(runner: QuerySetRunner) -> Progress:
    """The runs of `runner`'s node by state, from the counts its chunks and the node itself keep."""
    node = node_of(runner)
    return progress_by_node([node])[node.pk]


def progress_by_node(nodes: Iterable[Node]) -> dict[int, Progress]:
    """The runs of each node by state, from the counts that it and its chunks keep.

    One query for all, so that no chunk is folded in between.
    """
    ids = [node.pk for node in nodes]
    # `= False` would be written as NOT, for which SQLite and MariaDB use no index.
    chunks: Any = Chunk.objects.filter(node_id__in=ids, is_folded__in=[False])
    open_counts = chunks.values_list("node_id", "state").annotate(
        n_succeeded=Sum(F("succeeded") - F("superseded_succeeded")),
        n_failed=Sum(F("failed") - F("superseded_failed")),
        n_ignored=Sum(F("cancelled") - F("superseded_cancelled")),
        n_left=Sum(Chunk.runs_left()),
    )
    folded = ("folded_succeeded", "folded_failed", "folded_ignored")
    folded_counts = Node.objects.filter(pk__in=ids).values_list(
        "pk", Value(Chunk.State.FINISHED.value), *folded, Value(0)
    )
    sums: dict[int, Counter[str]] = {}
    for pk, state, *counts in open_counts.order_by().union(folded_counts.order_by(), all=True):
        names = ("succeeded", "failed", "ignored", _ON_THE_WAY.get(state))
        of_node = sums.setdefault(pk, Counter())
        of_node.update({name: int(n) for name, n in zip(names, counts, strict=True) if name})
    return {pk: Progress(**counts) for pk, counts in sums.items()}


#: The word for the runs of a chunk that have not ended, by its state.
_ON_THE_WAY = {
    Chunk.State.WAITING: "waiting",
    Chunk.State.QUEUED: "queued",
    Chunk.State.RUNNING: "running",
    Chunk.State.PARKED: "parked",
}


def batch_counts(batch_ids: Iterable[int]) -> dict[int, BatchCounts]:
    """What came of each batch so far, from the counts its chunks and the batch itself keep.

    One query for all, so that no chunk is folded in between.
    """
    ids = list(batch_ids)
    # Not joined: of a million chunks PostgreSQL then adds up the parts of several side by side.
    # `= False` would be written as NOT, for which SQLite and MariaDB use no index.
    chunks: Any = Chunk.objects.filter(batch_id__in=ids, is_folded__in=[False])
    open_counts = chunks.values_list("batch_id").annotate(
        Sum("succeeded"), Sum("failed"), Sum("cancelled"), n_left=Sum(Chunk.runs_left())
    )
    folded_counts = Batch.objects.filter(pk__in=ids).values_list(
        "pk", "folded_succeeded", Value(0), "folded_cancelled", Value(0)
    )
    sums: dict[int, list[int]] = {}
    for pk, *counts in open_counts.order_by().union(folded_counts.order_by(), all=True):
        before = sums.get(pk, [0] * len(counts))
        sums[pk] = [known + int(count) for known, count in zip(before, counts, strict=True)]
    return {pk: BatchCounts(*counts) for pk, counts in sums.items()}


def pending(runner: QuerySetRunner, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
    """Rows of `queryset` whose current input has no live or finished run, in pk order."""
    return _split(runner, queryset, has_run=False).order_by("pk")


def existing(runner: QuerySetRunner, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
    """Rows of `queryset` whose current input has a live or finished run, in pk order."""
    return _split(runner, queryset, has_run=True).order_by("pk")


def _split(
    runner: QuerySetRunner, queryset: QuerySet[Any] | None, *, has_run: bool
) -> QuerySet[Any]:
    rows: QuerySet[Any] = eligible(runner, queryset, log_level=logging.DEBUG)
    if not planned_by_database(runner):
        return runner.get_every_row().filter(pk__in=_KeysByPython(runner, rows, has_run=has_run))
    kind = key_kind(runner.get_model())
    rows = rows.alias(
        _autorun_key=kind.expression(), _autorun_print=fingerprints.expression(runner)
    )
    run = Run.objects.filter(
        node_id=node_of(runner).pk, is_current=True, **kind.lookup(OuterRef("_autorun_key"))
    )
    if runner.DEPENDS_ON and connections[rows.db].vendor == "mysql":
        # MariaDB turns EXISTS into IN, and takes no subquery, as the fingerprint is one then, in
        # the left side of that.
        rows = rows.alias(_autorun_run=Subquery(run.values("fingerprint")))
        matches: Any = Q(_autorun_run__isnull=False, _autorun_run=F("_autorun_print"))
    else:
        run = run.filter(fingerprint=OuterRef("_autorun_print"))
        matches = Exists(run)
    split: QuerySet[Any] = rows.filter(matches if has_run else ~matches)
    return split


class _KeysByPython(Expression):
    """The primary keys of rows that only Python can tell apart; found when the query is run."""

    output_field = BooleanField()

    def __init__(self, runner: QuerySetRunner, rows: QuerySet[Any], *, has_run: bool) -> None:
        super().__init__()
        self.runner = runner
        self.rows = rows
        self.has_run = has_run

    def as_sql(self, compiler: Any, connection: Any) -> tuple[str, tuple[Any, ...]]:
        kind = key_kind(self.runner.get_model())
        if kind.is_integer:
            found = recordset(connection, {"k": kind.sql_type}, ((key,) for key in self._keys()))
            return f"(SELECT c.k FROM ({found.sql}) AS c)", found.params
        keys = [kind.field.get_db_prep_value(kind.to_pk(key), connection) for key in self._keys()]
        return (f"({', '.join(['%s'] * len(keys))})" if keys else "(NULL)"), tuple(keys)

    def _keys(self) -> Iterator[Key]:
        for instances in in_pages(self.runner, self.rows, size=PAGE):
            rows = list(examined(self.runner, instances))
            current = current_runs(self.runner, [row.key for row in rows])
            for row in rows:
                if (current.get(row.key) == row.fingerprint) is self.has_run:
                    yield row.key


def current_runs(runner: QuerySetRunner, keys: list[Key]) -> dict[Key, str]:
    """The fingerprints of the current runs of the rows named by `keys`."""
    column = key_kind(runner.get_model()).column
    runs = Run.objects.filter(
        node_id=node_of(runner).pk, is_current=True, **{f"{column}__in": keys}
    )
    return dict(runs.values_list(column, "fingerprint"))
