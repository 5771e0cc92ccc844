"""The cost of ON_WRITE for those who write, by SQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from celery import current_app
from django.db import connection, transaction

from autorun.declare import registry
from autorun.dispatch.publishing import Message, redirected
from autorun.models import Batch, Written
from autorun.triggers import installing
from autorun.upkeep.rounds import hand_on_batches
from autorun.upkeep.writes import hand_out_written
from bench import stage
from bench.measuring import Line, in_turns
from bench.scale import Scale
from bench.subject.models import Item, PlainItem
from bench.subject.runners import TitleRunner

TABLES = {"with": Item._meta.db_table, "without": PlainItem._meta.db_table}
INSERT = "INSERT INTO {table} (title, weight) SELECT 'A title of usual length', i FROM {rows}"
#: Rows that are written one by one.
ALONE = 300


class WatchingRunner(TitleRunner):
    DATA_MODEL = Item
    ANALYSIS_CONFIGURATION = {"factor": 7}
    ON_WRITE = True


def measure(scale: Scale) -> Iterator[Line]:
    number = scale.rows // 10
    goal = {"insert": 1.35, "other": 1.03} if connection.vendor == "postgresql" else {}
    statements = {
        "insert": (f"INSERT of {number:,} rows", INSERT),
        "other": (f"UPDATE of another column of {number:,} rows", "UPDATE {table} SET weight = 7"),
        "input": (f"UPDATE of the input of {number:,} rows", "UPDATE {table} SET title = 'new'"),
    }
    try:
        with registry.registered(WatchingRunner):
            assert installing.install() == []
            for name, (work, sql) in statements.items():
                yield _compared(f"write-{name}", work, sql, number, scale, goal.get(name))
            yield _one_row(scale)
            yield _planned(scale)
    finally:
        assert installing.remove() == []
        stage.empty(*TABLES.values())


def _compared(key: str, work: str, sql: str, number: int, scale: Scale, goal: float | None) -> Line:
    def prepare(name: str) -> None:
        stage.empty(*TABLES.values())
        if sql != INSERT:
            stage.execute(INSERT.format(table=TABLES[name], rows=stage.series(number)))
        stage.empty(Written._meta.db_table)
        stage.settle()

    def write(name: str) -> Callable[[], object]:
        statement = sql.format(table=TABLES[name], rows=stage.series(number))
        return lambda: stage.execute(statement)

    timings = in_turns(
        {name: write(name) for name in TABLES}, rounds=2 * scale.rounds - 1, before=prepare
    )
    return timings.line(
        *("with", "without"),
        key=key,
        work=f"ON_WRITE: {work}",
        against="the same statement on a table without triggers",
        goal=goal,
        rows=number,
    )


def _planned(scale: Scale) -> Line:
    runner = WatchingRunner()
    stage.hold(runner)

    def prepare(name: str) -> None:
        stage.empty_state()
        stage.fill_items(scale.rows)
        stage.empty(Written._meta.db_table)
        stage.execute("UPDATE subject_item SET title = 'another title of usual length'")
        if name == "backfill":
            stage.empty(Written._meta.db_table)
        stage.settle()

    timings = in_turns(
        {"rounds": _plan_written, "backfill": runner.backfill},
        rounds=scale.rounds,
        before=prepare,
    )
    return timings.line(
        *("rounds", "backfill"),
        key="write-planned",
        work=f"ON_WRITE: plan {scale.rows:,} rows that one UPDATE has changed",
        against="a backfill of the same rows, without notes",
        goal=2,
        rows=scale.rows,
    )


def _plan_written() -> None:
    """Make rounds, and do at once what workers would be told, until all notes are planned."""

    def plan(messages: Sequence[Message]) -> None:
        for message in messages:
            if message.task == "autorun.backfill":
                current_app.tasks[message.task].run(*message.args)

    with redirected(plan):
        while Written.objects.exists() or Batch.objects.filter(planned_at=None).exists():
            hand_out_written()
            hand_on_batches()


def _one_row(scale: Scale) -> Line:
    def write(name: str) -> Callable[[], object]:
        statement = INSERT.format(table=TABLES[name], rows=stage.series(1))

        def each() -> None:
            with transaction.atomic():
                for _ in range(ALONE):
                    stage.execute(statement)

        return each

    timings = in_turns({name: write(name) for name in TABLES}, rounds=scale.rounds)
    milliseconds = {name: each / ALONE * 1000 for name, each in timings.medians().items()}
    return Line(
        key="write-one",
        database=connection.vendor,
        work="ON_WRITE: INSERT of one row",
        against="the same statement on a table without triggers",
        value=milliseconds["with"] - milliseconds["without"],
        goal=0.1,
        unit="ms more",
        note=", ".join(f"{name} {each:.3f} ms" for name, each in milliseconds.items()),
    )
