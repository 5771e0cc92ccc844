"""The plans that the engine's speed rests on, as the database itself explains them.

Nothing here is timed: an index that is no longer used is seen in the plan, on any machine.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import connection

from autorun.declare import registry
from autorun.dispatch import releasing
from autorun.dispatch.ordering import due
from autorun.models import Batch, Chunk, Node, Run
from autorun.observe import glance
from autorun.planning import batches, windows as planning_windows
from autorun.planning.named import plan_keys
from autorun.runner import QuerySetRunner
from autorun.tasks import plan
from autorun.upkeep import folding
from autorun.upkeep.folding import prune
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)

ROWS = 5_000

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="reads what only PostgreSQL tells"
)
on_sqlite = pytest.mark.skipif(connection.vendor != "sqlite", reason="reads SQLite's plans")


@pytest.fixture
def runner(set_constants: Callable[..., None]) -> Iterator[QuerySetRunner]:
    """A runner that has adopted all but the last ten of its rows, and plans five windows."""
    set_constants(planning_windows, DATABASE_WINDOW=ROWS // 5)
    Document.objects.bulk_create(Document(title=str(number)) for number in range(ROWS))
    runner_class = declare()
    with installed(runner_class):
        runner = runner_class()
        newest = Document.objects.order_by("-pk").values_list("pk", flat=True)[9]
        runner.adopt(Document.objects.filter(pk__lt=newest))
        settle()
        yield runner


def settle() -> None:
    """Do what autovacuum does after a while: statistics and the visibility map."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE autorun_run")
            cursor.execute("VACUUM ANALYZE autorun_chunk")
            cursor.execute("VACUUM ANALYZE library_document")
        elif connection.vendor == "sqlite":
            cursor.execute("ANALYZE")


@contextmanager
def explained(beginning: str, *, words: str = "") -> Iterator[list[str]]:
    """The plans of the statements within the block that begin so, before they are executed."""
    plans: list[str] = []

    def explain(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # Without the limit of the wait for locks, which is part of the statement.
        _, is_bounded, rest = sql.partition(f"; {beginning}")
        if sql.startswith(beginning):
            plans.append(plan_of(sql, params, words))
        elif is_bounded:
            own = beginning + rest.partition("; SET")[0]
            plans.append(plan_of(own, params[len(params) - own.count("%s") :]))
        return execute(sql, params, many, context)

    with connection.execute_wrapper(explain):
        yield plans


def plan_of(sql: str, params: Any, words: str = "") -> str:
    usual = {"postgresql": "EXPLAIN (COSTS OFF)", "sqlite": "EXPLAIN QUERY PLAN"}
    with connection.cursor() as cursor:
        # Past the wrappers, which would explain the explanation.
        cursor.cursor.execute(f"{words or usual[connection.vendor]} {sql}", tuple(params or ()))
        return "\n".join(str(row[-1]) for row in cursor.cursor.fetchall())


@on_postgresql
def test_a_window_is_counted_with_bounds_on_both_sides_by_the_index_alone(
    runner: QuerySetRunner,
) -> None:
    with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)") as plans:
        runner.run()

    middle = plans[2]
    assert "Index Only Scan using autorun_run_one_current" in middle
    of_runs = middle[middle.index("autorun_run_one_current") :]
    assert re.search(r"Index Cond: .*object_id > .*object_id <= ", of_runs)


@on_postgresql
def test_given_keys_are_counted_with_the_bounds_of_their_runs(runner: QuerySetRunner) -> None:
    keys = list(Document.objects.order_by("pk").values_list("pk", flat=True)[100:200])

    with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)") as plans:
        plan_keys(runner, keys[::-1])

    (plan,) = plans
    assert re.search(rf"object_id > '?{keys[0] - 1}\b.*object_id <= '?{keys[-1]}\b", plan)


@on_postgresql
def test_given_keys_that_python_reads_are_counted_with_the_bounds_of_their_runs() -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(100))
    keys = list(Document.objects.order_by("pk").values_list("pk", flat=True)[10:20])
    runner_class = declare(INPUT_FIELDS=None, INPUT_KEY="value")

    with installed(runner_class):
        runner_class().adopt()
        settle()
        with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)") as plans:
            plan_keys(runner_class(), keys)

    (plan,) = plans
    assert re.search(rf"object_id > '?{keys[0] - 1}\b.*object_id <= '?{keys[-1]}\b", plan)


@on_postgresql
def test_the_chunk_of_a_run_is_found_by_its_id_when_many_wait_since_the_last_statistics(
    runner: QuerySetRunner,
) -> None:
    with connection.cursor() as cursor:
        # A VACUUM would leave the pages of deleted rows that the snapshot of another session sees.
        cursor.execute("TRUNCATE autorun_chunk")
        cursor.execute("ANALYZE autorun_chunk")
    like = {"node": runner.get_node(), "runner": runner.label, "size": 1}
    Chunk.objects.bulk_create(Chunk(pk=number, **like) for number in range(1, 401))

    with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)") as plans:
        plan_keys(runner, list(Document.objects.values_list("pk", flat=True)[:100]))

    assert "using autorun_chunk_pkey" in plans[0]


@on_postgresql
def test_no_chunk_is_looked_up_for_rows_without_a_run(runner: QuerySetRunner) -> None:
    keys = list(Document.objects.order_by("-pk").values_list("pk", flat=True)[:10])

    analyze = "EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF)"
    with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)", words=analyze) as plans:
        assert plan_keys(runner, keys).planned == 10

    assert re.search(r"autorun_chunk.*\(never executed\)", plans[0])


@on_postgresql
def test_an_insert_looks_up_its_window_alone(runner: QuerySetRunner) -> None:
    with explained('INSERT INTO "autorun_run"') as plans:
        runner.run()

    (plan,) = plans
    assert "Anti Join" in plan
    assert re.search(r"Index Cond: .*object_id > ", plan)


@pytest.mark.skipif(connection.vendor == "mysql", reason="its plans are not read here")
def test_results_are_never_compared_with_every_run_of_their_chunk() -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(2_000))
    runner_class = declare(BATCH_SIZE=200)

    with installed(runner_class):
        runner_class().run()
        beginning = "WITH first AS" if connection.vendor == "postgresql" else 'UPDATE "autorun_run"'
        with explained(beginning) as plans:
            work_off()

    assert len(plans) >= 10
    for each in plans:
        # PostgreSQL may read a small table whole, if it looks the results up in a hash table.
        assert re.search(r"Hash Cond: .*_run.id|_run_pkey|_run USING INTEGER PRIMARY KEY", each)
        assert "Join Filter" not in each


@on_postgresql
def test_nine_of_ten_updates_of_runs_rewrite_no_index() -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(1_000))
    runner_class = declare(BATCH_SIZE=100)
    updates_before, hot_before = _updates("autorun_run")

    with installed(runner_class):
        runner_class().run()
        work_off()

    updates, hot = _updates("autorun_run")
    assert updates - updates_before == 1_000
    assert hot - hot_before > 900


@on_postgresql
def test_release_reads_waiting_chunks_in_their_order() -> None:
    node = _many_waiting_chunks()

    plan = plan_of(*due(node.pk)[:50].query.sql_with_params())

    assert "autorun_chunk_order" in plan
    assert "Sort" not in plan


@on_postgresql
def test_release_passes_over_the_chunks_of_a_paused_batch() -> None:
    node = _many_waiting_chunks()
    paused, running = (
        Batch.objects.create(node=node, runner="tests.Waiting", state=state)
        for state in (Batch.State.PAUSED, Batch.State.RUNNING)
    )
    Chunk.objects.update(batch=paused)
    Chunk.objects.filter(pk__gt=1_990).update(batch=running)
    Chunk.objects.filter(pk__lte=1_000).update(state=Chunk.State.FINISHED)
    settle()

    with explained("WITH RECURSIVE") as batches, explained('SELECT "autorun_chunk"."id"') as chunks:
        assert releasing.release(node.pk).chunks == 1

    assert "Index Only Scan using autorun_chunk_by_batch" in batches[0]
    assert "autorun_chunk_by_batch" in chunks[0]
    assert re.search(r"Index Cond: .*batch_id = ", chunks[0])
    assert "Seq Scan on autorun_chunk" not in "".join([*batches, *chunks])


@on_postgresql
def test_progress_reads_no_folded_chunk(
    runner: QuerySetRunner, set_constants: Callable[..., None]
) -> None:
    set_constants(folding, FEW=1)
    _many_waiting_chunks()
    node = runner.get_node()
    Chunk.objects.update(state=Chunk.State.FINISHED, node=node)
    folding.fold(node.pk, quiet=0)
    settle()

    with explained("(SELECT ") as plans:
        runner.progress()

    assert "autorun_chunk_folded" in plans[0]


@on_postgresql
def test_the_tabs_of_pages_read_no_chunk_of_former_versions() -> None:
    number = 40
    current = [declare(NAME=f"Runner{n}", TITLE=f"Title {n}") for n in range(number)]
    with installed(*current):
        nodes = [runner().get_node() for runner in current]
        for n in range(4 * number):
            former = {"title": "Former", "version": str(n), "digest": str(n)}
            nodes.append(Node.objects.create(content_type=nodes[0].content_type, **former))
        finished = {"state": Chunk.State.FINISHED, "size": 17, "failed": 1}
        Chunk.objects.bulk_create(
            Chunk(pk=n, node=nodes[n % len(nodes)], runner="tests.Runner", **finished)
            for n in range(1, 20_000)
        )
        Chunk.objects.filter(pk__lt=16_000).update(is_folded=True)
        settle()
        first = glance.take_tally()

        with explained("(SELECT ") as plans:
            again = glance.take_tally()

    assert first == again
    assert first.failed == sum(n % len(nodes) < number for n in range(16_000, 20_000))
    assert "autorun_chunk_folded" in plans[0]
    assert "Seq Scan on autorun_chunk" not in plans[0]


@pytest.mark.skipif(connection.vendor == "mysql", reason="reads plans of PostgreSQL and SQLite")
def test_a_claim_gets_the_chunks_in_flight_as_numbers_by_the_index() -> None:
    node = _many_waiting_chunks()
    Chunk.objects.filter(pk__lte=400).update(state=Chunk.State.QUEUED)
    settle()

    with explained('SELECT "autorun_chunk"."id"') as plans:
        releasing.release(node.pk)

    assert re.search(r"autorun_chunk_(order|folded|lease|by_batch)", plans[0])
    assert "Seq Scan on autorun_chunk" not in plans[0]
    assert "Aggregate" in plans[0] or "GROUP BY" in plans[0]


@on_sqlite
def test_sqlite_counts_a_window_with_bounds_on_both_sides(runner: QuerySetRunner) -> None:
    with explained("SELECT COUNT(*), COUNT(*) - COUNT(r.object_id)") as plans:
        runner.run()

    assert re.search(r"SEARCH r USING INDEX .* \(node_id=\? AND object_id=\? AND ", plans[2])
    assert re.search(r"SEARCH library_document USING .*\(rowid>\? AND rowid<\?\)", plans[2])


@on_sqlite
def test_sqlite_looks_up_the_run_of_each_result_without_statistics() -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(100))
    runner_class = declare(BATCH_SIZE=50)
    with connection.cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS sqlite_stat1")
    connection.close()

    with installed(runner_class):
        runner_class().run()
        with explained("UPDATE") as plans:
            work_off()

    of_runs = [plan for plan in plans if "json_each" in plan]
    assert of_runs
    assert all("autorun_run USING INTEGER PRIMARY KEY (rowid=?)" in plan for plan in of_runs)


@on_sqlite
def test_sqlite_looks_runs_up_for_keys_that_python_holds() -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(100))
    options: dict[str, Any] = {"INPUT_FIELDS": None}
    runner_class = declare(
        get_instance_representation=lambda self, instance: instance.title, **options
    )
    with installed(runner_class):
        runner_class().run()
        settle()
        Document.objects.filter(title="7").update(title="seven")

        with explained("SELECT r.id") as plans:
            runner_class().run()

    lines = plans[0].splitlines()
    assert any("SCAN json_each" in line for line in lines)
    assert any(re.search(r"SEARCH r USING .*\(node_id=\? AND object_id=\?", line) for line in lines)


@pytest.mark.skipif(connection.vendor == "mysql", reason="reads plans of PostgreSQL and SQLite")
def test_earlier_results_are_looked_up_row_by_row(runner: QuerySetRunner) -> None:
    batch = runner.backfill(Document.objects.order_by("pk")[:10], force=True)
    settle()

    with explained("SELECT (SELECT MAX(") as plans:
        batches.cancel(batch)

    assert len(plans) == 1
    assert "autorun_run_one_current" in plans[0] or "node_id=? AND object_id=?" in plans[0]
    assert "Seq Scan on autorun_run" not in plans[0]
    assert "autorun_run_pkey" not in plans[0]


@on_postgresql
def test_a_saved_row_that_was_executed_reads_none_of_its_superseded_runs() -> None:
    Document.objects.create(title="a")
    with installed(declare()):
        echo_runner = registry.get("tests.EchoRunner")
        echo_runner.run()
        work_off()
        run = Run.objects.get()
        history = {"node_id": run.node_id, "object_id": run.object_id, "is_current": None}
        Run.objects.bulk_create(
            Run(fingerprint=run.fingerprint, chunk_id=run.chunk_id, status=2, **history)
            for _ in range(1_000)
        )
        with explained("SELECT d.k, d.f, r.id", words="EXPLAIN (ANALYZE, COSTS OFF)") as plans:
            plan(Document._meta.label, [run.object_id])

    of_history = plans[0][plans[0].index("autorun_run p") :]
    assert "never executed" in of_history.splitlines()[0]


@pytest.mark.skipif(connection.vendor == "mysql", reason="reads plans of PostgreSQL and SQLite")
def test_pruning_finds_superseded_runs_by_their_index(
    runner: QuerySetRunner,
) -> None:
    with explained('SELECT "autorun_run"."id" AS "pk", "autorun_run"."chunk_id"') as plans:
        prune()

    assert "autorun_run_superseded" in plans[0]


@on_postgresql
def test_nodes_to_be_folded_are_found_by_the_index_beside_many_failed_chunks() -> None:
    node = _many_waiting_chunks()
    Chunk.objects.update(state=Chunk.State.FINISHED, failed=1, finished_at="2026-01-01T00:00Z")
    settle()

    with explained('SELECT "autorun_node"."id"') as plans:
        assert folding.fold_everywhere() == 0

    assert Chunk.objects.of(node).unfolded().count() == 2_000
    for line in plans[0].splitlines():
        assert "Seq Scan on autorun_chunk" not in line
    assert re.search(r"Index Cond: .*\(failed = 0\)", plans[0])


def test_no_index_of_runs_mentions_their_status() -> None:
    with connection.cursor() as cursor:
        constraints = connection.introspection.get_constraints(cursor, Run._meta.db_table)

    indexed = {
        column
        for constraint in constraints.values()
        if constraint["index"] or constraint["unique"]
        for column in constraint["columns"]
    }
    assert "status" not in indexed
    assert "node_id" in indexed


def _many_waiting_chunks() -> Node:
    runner_class = declare(TITLE="Waiting")
    with installed(runner_class):
        node = runner_class().get_node()
    Chunk.objects.bulk_create(
        Chunk(pk=number, node=node, runner="tests.Waiting", size=1, priority=number % 2 * 10)
        for number in range(1, 2_001)
    )
    settle()
    return node


def _updates(table: str) -> tuple[int, int]:
    """How many rows were updated so far, and how many of them within their page."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_stat_force_next_flush()")
        cursor.execute(
            "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = %s", [table]
        )
        updates, hot = cursor.fetchone()
    return updates, hot
