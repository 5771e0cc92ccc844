"""Whether chunks have a sensible size for every duration of runs, and do not delay others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median

from django.db import connection

from autorun.models import Chunk, Node, Run
from autorun.runner import QuerySetRunner
from bench import stage
from bench.measuring import Line
from bench.scale import Scale
from bench.single import wait_for_one
from bench.subject.models import Item
from bench.subject.runners import (
    LongRunner,
    MiddlingRunner,
    ShortRunner,
    SleepingRunner,
    TrivialRunner,
)
from bench.working import BROKER, real_worker

PATIENCE = 300.0  # seconds


def measure(scale: Scale) -> Iterator[Line]:
    with real_worker():
        yield from _sizes(scale)
        yield _slow_neighbour(scale)
        yield _live_save(scale)
    stage.empty_state()


def _sizes(scale: Scale) -> Iterator[Line]:
    """Three runners of one project: the sizes once their runs have been measured."""
    for runner, milliseconds, rows, goal, at_least in (
        (ShortRunner(), 1, 1_000, 200, True),
        (MiddlingRunner(), 100, 40, 15, False),
        (LongRunner(), scale.long_run, 4, 1, False),
    ):
        _put(*[milliseconds] * rows)
        stage.let_go(runner)
        for _ in range(2):  # the first time, the duration of a run is unknown
            stage.empty_state()
            _work_off(runner, rows)
        sizes = list(Chunk.objects.filter(succeeded__gt=0).values_list("size", flat=True))
        yield Line(
            key=f"size-{goal}-{BROKER}",
            database=connection.vendor,
            work=f"runs per chunk if a run takes {milliseconds:,} ms, {BROKER}",
            against="a second of work, and a quarter of the window at most",
            value=median(sizes),
            goal=goal,
            at_least=at_least,
            unit="",
            note=f"{len(sizes)} chunks of {min(sizes)} to {max(sizes)}",
        )


def _slow_neighbour(scale: Scale) -> Line:
    """One row of a chunk takes long: when does the last of the others start?"""
    stage.empty_state()
    _put(scale.long_run, *[1] * 200)
    runner = ShortRunner()
    _have_measured(runner, 0.001)
    began_at = time.time()
    _work_off(runner, 201)
    neighbours = Run.objects.filter(status=Run.Status.SUCCEEDED).exclude(object_id=1)
    last = max(each["began_at"] for each in neighbours.values_list("outputs", flat=True))
    return Line(
        key=f"size-slow-neighbour-{BROKER}",
        database=connection.vendor,
        work=f"200 rows of 1 ms in one chunk with a row of {scale.long_run:,} ms before them: "
        f"the last of them starts, {BROKER}",
        against="the call of backfill()",
        value=last - began_at,
        goal=4,
        unit="s",
    )


def _live_save(scale: Scale) -> Line:
    """Saves during a backfill that keeps every process busy."""
    stage.empty_state()
    _put(*[20] * scale.beside)
    stage.let_go(TrivialRunner())
    runner = SleepingRunner()
    _have_measured(runner, 0.02)
    runner.backfill()
    waits = []
    while not stage.is_worked_off(scale.beside * 3 // 4):
        waits.append(wait_for_one(Item))
        time.sleep(0.1)
    stage.wait_until(lambda: stage.is_worked_off(scale.beside), seconds=PATIENCE)
    return Line(
        key=f"size-live-save-{BROKER}",
        database=connection.vendor,
        work=f"one save → its body starts, during a backfill of {scale.beside:,} runs of 20 ms, "
        f"{BROKER}",
        against="the longest of all waits, if a chunk is a second of work",
        value=max(waits),
        goal=1,
        unit="s",
        note=f"median {median(waits):.2f} s of {len(waits)} saves",
    )


def _put(*milliseconds: int) -> None:
    stage.empty("subject_item")
    Item.objects.bulk_create(
        Item(pk=pk, title="A title of usual length", weight=weight)
        for pk, weight in enumerate(milliseconds, start=1)
    )
    stage.continue_numbering()


def _have_measured(runner: QuerySetRunner, seconds: float) -> None:
    stage.let_go(runner)
    Node.objects.filter(pk=runner.get_node().pk).update(run_seconds=seconds)


def _work_off(runner: QuerySetRunner, rows: int) -> None:
    runner.backfill()
    stage.wait_until(lambda: stage.is_worked_off(rows), seconds=PATIENCE)
