"""The cost of progress(), and whether it is exact."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from django.db import connection
from django.db.models import Count, Q

from autorun.models import Run
from autorun.state.counts import Progress
from autorun.upkeep.folding import fold
from bench import stage
from bench.measuring import Line, in_turns, timed
from bench.scale import Scale
from bench.subject.runners import TrivialRunner


def goal_for(rows: int) -> float:
    """Seconds."""
    return 0.050 if rows <= 1_000_000 else 0.100


def measure(scale: Scale) -> Iterator[Line]:
    for rows in scale.progress:
        yield from _of(rows, goal=goal_for(rows), rounds=scale.rounds)


def _of(rows: int, *, goal: float, rounds: int) -> Iterator[Line]:
    """Runs of single saves, with a chunk each: the worst case."""
    runner = TrivialRunner()
    stage.empty_state()
    node = stage.hold(runner)
    _fill(node.pk, rows)
    type(node).objects.filter(pk=node.pk).update(
        folded_succeeded=0, folded_failed=0, folded_ignored=0
    )
    stage.settle()
    unfolded = statistics.median(timed(runner.progress) for _ in range(3))
    before = runner.progress()
    folding = timed(lambda: fold(node.pk, at_most=rows, quiet=0))
    stage.settle()
    after = runner.progress()
    counted = _counted(node.pk)
    assert before == after == counted, f"progress() is not exact: {before}, {after}, {counted}"
    timings = in_turns(
        {"progress()": runner.progress, "counting rows": lambda: _counted(node.pk)}, rounds=rounds
    )
    yield Line(
        key=f"progress-{rows}",
        database=connection.vendor,
        work=f"progress() over {rows:,} runs, each in a chunk of its own; exact",
        against=f"counting the rows is {1 / timings.ratio('progress()', 'counting rows'):,.0f} "
        f"times slower; before any chunk is folded {unfolded * 1000:.0f} ms; "
        f"folding takes {folding / rows * 1e6:.0f} µs a chunk, once",
        value=timings.medians()["progress()"] * 1000,
        goal=goal * 1000,
        unit="ms",
        seconds=timings.medians(),
        rows=rows,
    )
    stage.empty_state()


def _fill(node_id: int, rows: int) -> None:
    """Nine of ten runs have succeeded, the others are waiting in chunks of a hundred."""
    fingerprint = "'" + "1" * 32 + "'" + ("::uuid" if connection.vendor == "postgresql" else "")
    done = rows * 9 // 10
    stage.execute(
        "INSERT INTO autorun_chunk (id, node_id, runner, state, reason, priority, queue, size, "
        "publications, worker, token, succeeded, failed, cancelled, moved, superseded_succeeded, "
        "superseded_failed, superseded_cancelled, is_folded) "
        "SELECT i, %s, 'subject.TrivialRunner', 4, '', 20, '', 1, "
        f"1, '', 1, 1, 0, 0, 0, 0, 0, 0, FALSE FROM {stage.series(done)}",
        [node_id],
    )
    stage.execute(
        "INSERT INTO autorun_chunk (id, node_id, runner, state, reason, priority, queue, size, "
        "publications, worker, token, succeeded, failed, cancelled, moved, superseded_succeeded, "
        "superseded_failed, superseded_cancelled, is_folded) "
        "SELECT 1000000000 + i, %s, 'subject.TrivialRunner', 0, '', 0, '', 100, "
        f"0, '', 0, 0, 0, 0, 0, 0, 0, 0, FALSE FROM {stage.series((rows - done) // 100)}",
        [node_id],
    )
    stage.execute(
        "INSERT INTO autorun_run (node_id, object_id, object_key, fingerprint, is_current, "
        f"chunk_id, status, attempts) SELECT %s, i, '', {fingerprint}, TRUE, "
        f"CASE WHEN i <= {done} THEN i ELSE 1000000001 + (i - {done} - 1) / 100 END, "
        f"CASE WHEN i <= {done} THEN 1 ELSE 0 END, 1 FROM {stage.series(rows)}",
        [node_id],
    )


def _counted(node_id: int) -> Progress:
    runs = Run.objects.filter(node_id=node_id, is_current=True)
    counts = runs.aggregate(
        succeeded=Count("pk", filter=Q(status=Run.Status.SUCCEEDED)),
        waiting=Count("pk", filter=Q(status=Run.Status.PENDING)),
    )
    return Progress(succeeded=counts["succeeded"], waiting=counts["waiting"])
