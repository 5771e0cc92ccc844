"""Counts database statements for one run, from planning to the recorded success."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from django.db import connection

from autorun.declare import registry
from autorun.execution.execute import execute
from autorun.models import Chunk, Run
from autorun.tasks import plan
from bench import stage
from bench.measuring import Line
from bench.scale import Scale
from bench.subject.models import Item
from bench.subject.runners import TrivialRunner

#: With autocommit, BEGIN is a statement of its own only in SQLite.
TRANSACTIONS = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE")


class HundredsRunner(TrivialRunner):
    BATCH_SIZE = 100


def measure(scale: Scale) -> Iterator[Line]:
    label = Item._meta.label
    counts: list[list[str]] = []
    with _without_broker():
        stage.empty_state()
        stage.fill_items(9)
        stage.let_go(TrivialRunner())
        for pk in range(1, 9):  # the first ones include statements that a process sends once
            with _counted() as fresh:
                plan(label, [pk])
                _work_off()
            counts.append(fresh)
        assert Run.objects.filter(status=Run.Status.SUCCEEDED).count() == 8
        # Sometimes the duration of runs is recorded.
        fresh = sorted(counts[3:], key=len)[2]
        yield _line("statements-save", "one save, a new row", fresh, runs=1, goal=6)
        Item.objects.filter(pk=8).update(weight=99)
        with _counted() as changed:
            plan(label, [8])
            _work_off()
        yield _line("statements-change", "one save, a changed row", changed, runs=1, goal=None)
        with _counted() as nothing:
            plan(label, [8])
        yield _line("statements-same", "one save that changes no input", nothing, runs=1, goal=None)
        stage.empty_state()
        rows = 2_000
        stage.fill_items(rows)
        runner = HundredsRunner()
        with registry.registered(HundredsRunner), _counted() as hundreds:
            runner.backfill()
            _work_off()
        assert Run.objects.filter(status=Run.Status.SUCCEEDED).count() == rows
        yield _line("statements-chunks", "in chunks of 100", hundreds, runs=rows, goal=0.2)
        stage.empty_state()


def _work_off() -> None:
    while queued := list(
        Chunk.objects.filter(state=Chunk.State.QUEUED).values_list("pk", flat=True)
    ):
        _not_counted.update([1])
        for chunk_id in queued:
            execute(chunk_id)
    _not_counted.update([1])


_not_counted: Counter[int] = Counter()


@contextmanager
def _without_broker() -> Iterator[None]:
    with mock.patch("autorun.dispatch.releasing.publish"):
        yield


@contextmanager
def _counted() -> Iterator[list[str]]:
    seen: list[str] = []

    def note(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if not sql.startswith(TRANSACTIONS):
            seen.append(sql)
        return execute(sql, params, many, context)

    _not_counted.clear()
    with connection.execute_wrapper(note):
        yield seen
    # The benchmark's own query for queued chunks.
    for _ in range(_not_counted.total()):
        seen.remove(next(sql for sql in seen if _is_own(sql)))


def _is_own(sql: str) -> bool:
    quote = connection.ops.quote_name
    return sql.startswith(f"SELECT {quote('autorun_chunk')}.{quote('id')} AS")


def _line(key: str, work: str, seen: list[str], *, runs: int, goal: float | None) -> Line:
    return Line(
        key=key,
        database=connection.vendor,
        work=f"statements per run, end to end: {work}",
        against="counted, without BEGIN and COMMIT",
        value=len(seen) / runs,
        goal=goal,
        unit="",
        rows=runs,
    )
