"""Lazy querysets of the rows that are pending, and of those that have a run."""

import logging
from collections.abc import Collection, Iterator
from typing import Any

from django.db import connections
from django.db.models import BooleanField, Exists, Expression, F, OuterRef, Q, QuerySet, Subquery

from autorun.declare.base import Runner
from autorun.declare.hooks import every_row
from autorun.declare.nodes import node_id_of, node_of
from autorun.declare.registry import dependencies_of, sets_before
from autorun.models import Run
from autorun.planning import fingerprints
from autorun.planning.rows import eligible, examined, in_pages, planned_by_database, without_lethal
from autorun.planning.samples import hash_of
from autorun.state.keys import Key, key_kind
from autorun.state.sql import recordset

#: Rows that Python checks at once.
PAGE = 2_000


def pending(runner: Runner, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
    """Rows of `queryset` whose current input has no live or finished run, in pk order."""
    return _split(runner, queryset, has_run=False).order_by("pk")


def keys_to_try(runner: Runner, number: int, queryset: QuerySet[Any] | None = None) -> list[Any]:
    """Primary keys of `number` pending rows, first those that a candidate version would run on."""
    rows = pending(runner, queryset).alias(_autorun_hash=hash_of(runner)).order_by("_autorun_hash")
    return list(rows.values_list("pk", flat=True)[:number])


def existing(runner: Runner, queryset: QuerySet[Any] | None = None) -> QuerySet[Any]:
    """Rows of `queryset` whose current input has a live or finished run, in pk order."""
    return _split(runner, queryset, has_run=True).order_by("pk")


def stale(runner: Runner, keys: Collection[Key] | None = None) -> QuerySet[Run]:
    """The successes, of `keys` or of all rows, whose upstream has since failed or changed."""
    kind = key_kind(runner.get_model())
    runs = Run.objects.of(node_id_of(runner)).of_rows(kind, keys)
    found: QuerySet[Run] = runs.stale(map(node_of, dependencies_of(runner)))
    if planned_by_database(runner):
        rows: QuerySet[Any] = every_row(runner)
        if keys is not None:
            rows = rows.filter(pk__in=[kind.to_pk(key) for key in keys])
        for each in sets_before(runner):
            lacking = rows.filter(Exists(fingerprints.lacking(runner, *each)))
            found |= runs.current().succeeded().of_rows(kind, kind.values(lacking))
    return found


def _split(runner: Runner, queryset: QuerySet[Any] | None, *, has_run: bool) -> QuerySet[Any]:
    rows: QuerySet[Any] = eligible(runner, queryset, log_level=logging.DEBUG)
    if not planned_by_database(runner):
        return every_row(runner).filter(pk__in=_KeysByPython(runner, rows, has_run=has_run))
    kind = key_kind(runner.get_model())
    rows = rows.alias(
        _autorun_key=kind.expression(), _autorun_print=fingerprints.expression(runner)
    )
    run = Run.objects.current().of(node_id_of(runner)).of_row(kind, OuterRef("_autorun_key"))
    if fingerprints.has_subqueries(runner) and connections[rows.db].vendor == "mysql":
        # MariaDB turns EXISTS into IN, whose left side may not contain a subquery: here the
        # fingerprint is one.
        rows = rows.alias(_autorun_run=Subquery(run.values("fingerprint")))
        matches: Any = Q(_autorun_run__isnull=False, _autorun_run=F("_autorun_print"))
    else:
        run = run.filter(fingerprint=OuterRef("_autorun_print"))
        matches = Exists(run)
    split: QuerySet[Any] = rows.filter(matches if has_run else ~matches)
    return split


class _KeysByPython(Expression):
    """The primary keys of rows that only Python can tell apart, found when the query runs."""

    output_field = BooleanField()

    def __init__(self, runner: Runner, rows: QuerySet[Any], *, has_run: bool) -> None:
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
        for instances in in_pages(self.runner, without_lethal(self.runner, self.rows), size=PAGE):
            rows = list(examined(self.runner, instances))
            current = current_runs(self.runner, [row.key for row in rows])
            for row in rows:
                if (current.get(row.key) == row.fingerprint) is self.has_run:
                    yield row.key


def current_runs(runner: Runner, keys: list[Key]) -> dict[Key, str]:
    """The fingerprints of the rows' current runs, by key."""
    kind = key_kind(runner.get_model())
    runs = Run.objects.current().of(node_id_of(runner)).of_rows(kind, keys)
    return dict(runs.values_list(kind.column, "fingerprint"))
