"""The database of the benchmarks, and rows by the million."""

from __future__ import annotations

import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import ProgrammingError, connection, connections

from autorun.declare import nodes
from autorun.models import Chunk, Node, Run
from autorun.runner import QuerySetRunner
from bench.subject.models import Item


@contextmanager
def database() -> Iterator[None]:
    """A new, migrated database within the block."""
    _drop()
    if connection.vendor != "sqlite":
        _maintain(f"CREATE DATABASE {connection.settings_dict['NAME']}")
    try:
        call_command("migrate", verbosity=0, run_syncdb=True)
        yield
    finally:
        connections.close_all()
        _drop()


@contextmanager
def copied() -> Iterator[Callable[[str], None]]:
    """A second database, a copy of this one, within the block.

    The yielded function switches this process to the "original" or the "copy".
    """
    original = str(connection.settings_dict["NAME"])
    names = {"original": original, "copy": f"{original}_copy"}

    def turn_to(which: str) -> None:
        connections.close_all()
        connection.settings_dict["NAME"] = names[which]

    _drop(names["copy"])
    connections.close_all()
    if connection.vendor == "postgresql":
        _maintain(f'CREATE DATABASE "{names["copy"]}" TEMPLATE "{original}"')
    else:
        execute("VACUUM INTO %s", [names["copy"]])
    try:
        yield turn_to
    finally:
        turn_to("original")
        _drop(names["copy"])


def _drop(name: str | None = None) -> None:
    name = name or str(connection.settings_dict["NAME"])
    if connection.vendor == "postgresql":
        _maintain(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        return
    if connection.vendor == "mysql":
        _maintain(f"DROP DATABASE IF EXISTS {name}")
        return
    for suffix in ("", "-wal", "-shm"):
        Path(name + suffix).unlink(missing_ok=True)


def _maintain(statement: str) -> None:
    with connection._nodb_cursor() as cursor:
        cursor.execute(statement)


def execute(sql: str, params: Any = None) -> Any:
    with connection.cursor() as cursor:
        cursor.execute(sql, params)
        return cursor.fetchone() if cursor.description else cursor.rowcount


def empty(*tables: str) -> None:
    for table in tables:
        if connection.vendor == "postgresql":
            execute(f"TRUNCATE {table} CASCADE")
        else:
            execute(f"DELETE FROM {table}")


def empty_state() -> None:
    """Delete runs, chunks and batches, but not the nodes."""
    empty("autorun_failure", "autorun_run", "autorun_chunk", "autorun_batch")
    if connection.vendor == "postgresql":
        execute("VACUUM ANALYZE autorun_run")
        execute("VACUUM ANALYZE autorun_chunk")


def series(count: int) -> str:
    """A FROM item with the numbers from 1 to `count` as `i`."""
    if connection.vendor == "postgresql":
        return f"generate_series(1, {count}) AS s(i)"
    if connection.vendor == "mysql":
        return f"(SELECT seq AS i FROM seq_1_to_{count}) AS s"
    return (
        f"(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        "SELECT i FROM n) AS s"
    )


def fill_items(count: int) -> None:
    """Create items 1 to `count`, without runs."""
    empty("subject_item")
    title = "'A title of usual length, number ' || i"
    if connection.vendor == "mysql":  # there || is OR
        title = "CONCAT('A title of usual length, number ', i)"
    execute(
        "INSERT INTO subject_item (id, title, weight) "
        f"SELECT i, {title}, i % 1000 FROM {series(count)}"
    )
    settle()


def continue_numbering() -> None:
    """Advance the sequence beyond the keys that were given explicitly."""
    if connection.vendor == "postgresql":
        execute("SELECT setval('subject_item_id_seq', (SELECT MAX(id) FROM subject_item))")


def settle() -> None:
    """Do now what autovacuum and the operating system would do later."""
    if connection.vendor == "postgresql":
        for table in ("subject_item", "autorun_run", "autorun_chunk"):
            execute(f"VACUUM ANALYZE {table}")
        _checkpoint()
    elif connection.vendor == "sqlite":
        execute("ANALYZE")
        execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _checkpoint() -> None:
    """Flush earlier writes, if the user may, so that they do not slow down later ones."""
    try:
        execute("CHECKPOINT")
    except ProgrammingError as refused:
        _explain_once(f"No checkpoint between measurements: {refused}")


@functools.cache
def _explain_once(message: str) -> None:
    print(message, file=sys.stderr)


def change_items(count: int, *, among: int) -> int:
    """Change the weight of `count` items, spread evenly; return how many were changed."""
    changed = execute(
        f"UPDATE subject_item SET weight = weight + 1 WHERE id % {max(1, among // count)} = 0"
    )
    return int(changed)


def hold(runner: QuerySetRunner) -> Node:
    """The runner's node, paused, so that planned runs are not sent to a broker."""
    nodes.forget_nodes()
    node = runner.get_node()
    Node.objects.filter(pk=node.pk).update(paused_at="2030-01-01T00:00Z")
    return node


def let_go(runner: QuerySetRunner) -> None:
    Node.objects.filter(pk=runner.get_node().pk).update(paused_at=None, run_seconds=None)


def wait_until(condition: Any, *, seconds: float, every: float = 0.02) -> None:
    """Raise TimeoutError if `condition()` does not become true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"Not within {seconds:g} s: {condition}")
        time.sleep(every)


def is_worked_off(count: int) -> bool:
    """Whether `count` runs have finished, from the counts of chunks."""
    from django.db.models import F, Sum

    total = Chunk.objects.aggregate(n=Sum(F("succeeded") + F("failed") + F("cancelled")))["n"]
    return (total or 0) >= count


def runs_table() -> str:
    return Run._meta.db_table


def item_count() -> int:
    return Item.objects.count()
