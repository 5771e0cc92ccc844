"""Small chunks that wait are joined if the bodies have become quicker since they were planned."""

from collections.abc import Callable
from typing import Any

import pytest

from autorun.control.interventions import cancel_runs
from autorun.execution import execute as execution
from autorun.models import Batch, Chunk, Node, Run
from autorun.planning.batches import counts
from autorun.runner import QuerySetRunner
from autorun.state.counts import Progress
from autorun.upkeep.folding import fold
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

ROWS = 30


@pytest.fixture(autouse=True)
def _not_measured(set_constants: Any) -> None:
    set_constants(execution, NEWEST_WEIGHT=0.0)


def take(seconds: float) -> None:
    Node.objects.update(run_seconds=seconds)


def planned_while_slow(runner: type[QuerySetRunner], *, size: int = 1, **options: Any) -> Batch:
    """The batch of a backfill of ROWS rows in chunks of that size; bodies are quick by now."""
    Document.objects.bulk_create(Document(title=f"title {number}") for number in range(ROWS))
    runner().get_node()
    take(1.0 / size)
    batch = runner().backfill(**options)
    assert Chunk.objects.count() == ROWS / size
    take(0.002)
    return batch


def executed() -> list[int]:
    """The sizes of the chunks that a worker has started."""
    return list(
        Chunk.objects.exclude(started_at=None).order_by("pk").values_list("size", flat=True)
    )


def test_chunks_that_were_planned_while_bodies_were_slow_are_joined():
    with installed(runner := declare()):
        batch = planned_while_slow(runner)

        work_off()

    assert executed() == [1, 1, ROWS - 2]  # two were in the queue
    assert Run.objects.succeeded().count() == ROWS
    assert runner().progress() == Progress(succeeded=ROWS)
    assert (counts(batch).succeeded, counts(batch).left) == (ROWS, 0)
    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED


def test_counts_stay_exact_if_runs_of_joined_chunks_were_cancelled():
    with installed(runner := declare()):
        batch = planned_while_slow(runner, size=2)
        cancel_runs([list(Run.objects.order_by("pk")[10:17:2])])

        work_off()
        ended = counts(batch)
        folded = fold(batch.node_id, quiet=0)

    assert executed() == [2, 2, ROWS - 4 - 4]
    assert (ended.succeeded, ended.finished) == (ROWS - 4, ROWS)
    assert runner().progress().succeeded == ROWS - 4
    assert folded == ROWS / 2
    assert counts(batch) == ended


def test_no_chunk_becomes_larger_than_a_second_of_work():
    with installed(runner := declare()):
        planned_while_slow(runner)
        take(0.1)

        execution.execute(Chunk.objects.queued().order_by("pk")[0].pk)

    assert sorted(Chunk.objects.queued().values_list("size", flat=True)) == [1, 10]


def _nothing() -> None: ...


def _retried() -> None:
    Run.objects.update(attempts=1)


def _put_off() -> None:
    Chunk.objects.waiting().update(postponed_by="The service asked for a pause.")


def _slower() -> None:
    take(0.3)


@pytest.mark.parametrize(
    ("options", "asked", "happens"),
    [
        pytest.param({}, {}, _retried, id="their runs were retried"),
        pytest.param({}, {}, _put_off, id="their runs were put off"),
        pytest.param({}, {}, _slower, id="a chunk takes a good part of a second"),
        pytest.param({"BATCH_SIZE": 1}, {}, _nothing, id="the runner says BATCH_SIZE"),
        pytest.param({}, {"window": 3}, _nothing, id="the batch has a small window"),
    ],
)
def test_chunks_stay_apart_if(options: Any, asked: Any, happens: Callable[[], object]):
    with installed(runner := declare(**options)):
        planned_while_slow(runner, **asked)
        happens()

        work_off()

    assert executed() == [1] * ROWS
    assert Run.objects.succeeded().count() == ROWS


def test_chunks_of_two_batches_stay_apart():
    with installed(runner := declare()):
        planned_while_slow(runner)
        first = Chunk.objects.waiting().order_by("pk")[10].pk
        other = Batch.objects.create(node=Node.objects.get(), runner=runner().label)
        Chunk.objects.filter(pk__gte=first).update(batch=other)

        work_off()

    assert executed() == [1, 1, 10, ROWS - 12]
