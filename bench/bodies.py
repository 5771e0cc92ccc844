"""Bodies that take many rows, or go on many at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

from django.db import connection

from autorun.analysis import analysis
from autorun.declare import registry
from autorun.dispatch.publishing import redirected
from autorun.execution.execute import execute
from autorun.models import Chunk
from autorun.runner import QuerySetRunner
from bench import stage
from bench.measuring import Line, Timings, in_turns, timed
from bench.scale import Scale
from bench.subject.models import Item
from bench.subject.runners import TrivialRunner, WeightRunner

ROWS_A_CALL = 64
SLEEPS = 100
SLEEP = 0.1  # seconds
calls: list[int] = []


@analysis("Trivial Many", version="1.0", batch=ROWS_A_CALL)
def trivial_many(titles: list[str], *, factor: int) -> list[dict[str, float]]:
    return [{"length": len(title) * factor, "began_at": 0.0} for title in titles]


@analysis("Failing Many", version="1.0", batch=ROWS_A_CALL)
def fail_one(weights: list[int]) -> list[int]:
    calls.append(len(weights))
    if 7 in weights:
        raise ValueError("the seventh row")
    return weights


@analysis("Concurrent Sleep", version="1.0", concurrency=SLEEPS)
async def sleep(weight: int) -> None:
    await asyncio.sleep(SLEEP)


class ManyRunner(TrivialRunner):
    ANALYSIS = "Trivial Many"
    INPUT_KEY = "titles"


class FailingRunner(WeightRunner):
    DATA_MODEL = Item
    ANALYSIS = "Failing Many"
    INPUT_KEY = "weights"
    MAX_ATTEMPTS = 1


class ConcurrentRunner(WeightRunner):
    DATA_MODEL = Item
    ANALYSIS = "Concurrent Sleep"
    BATCH_SIZE = SLEEPS


def measure(scale: Scale) -> Iterator[Line]:
    with registry.registered(ManyRunner), registry.registered(FailingRunner):
        yield _many(scale)
        yield _one_bad_row()
    with registry.registered(ConcurrentRunner):
        yield _sleeps(scale)
    stage.empty_state()


def _many(scale: Scale) -> Line:
    timings = executed({"by row": TrivialRunner(), "by batch": ManyRunner()}, scale)
    return timings.line(
        *("by row", "by batch"),
        key="body-batch",
        work=f"execute {scale.backfill:,} rows of a trivial body that takes {ROWS_A_CALL} a call",
        against="the same body by row",
        goal=2,
        at_least=True,
        unit="times the rows a second",
        rows=scale.backfill,
    )


def _one_bad_row() -> Line:
    stage.fill_items(ROWS_A_CALL)
    plan_all(FailingRunner())
    calls.clear()
    execute_all()
    return Line(
        key="body-bad-row",
        database=connection.vendor,
        work=f"one bad row in a call of {ROWS_A_CALL}",
        against="",
        value=len(calls) - 1,
        goal=8,
        unit="more calls",
    )


def _sleeps(scale: Scale) -> Line:
    stage.fill_items(SLEEPS)
    seconds = []
    for _ in range(scale.rounds):
        plan_all(ConcurrentRunner())
        seconds.append(timed(execute_all))
    return Line(
        key="body-sleeps",
        database=connection.vendor,
        work=f"{SLEEPS} sleeps of {SLEEP * 1000:.0f} ms at a time in one chunk",
        against="",
        value=sorted(seconds)[len(seconds) // 2],
        goal=0.5,
        unit="s",
    )


def executed(runners: Mapping[str, QuerySetRunner], scale: Scale) -> Timings:
    """The seconds in which all rows are executed by each of the runners."""
    stage.fill_items(scale.backfill)
    return in_turns(
        dict.fromkeys(runners, execute_all),
        rounds=scale.rounds,
        before=lambda name: plan_all(runners[name]),
    )


def plan_all(runner: QuerySetRunner) -> None:
    stage.empty_state()
    with redirected(lambda messages: None):
        runner.backfill()


def execute_all() -> None:
    """Execute what is queued, and what that releases, in this process."""
    with redirected(lambda messages: None):
        while queued := list(Chunk.objects.queued().values_list("pk", flat=True)):
            for chunk_id in queued:
                execute(chunk_id)
    assert not Chunk.objects.unfinished().exists()
