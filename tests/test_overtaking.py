"""A saved row does not wait behind the sweep or backfill that has planned it before."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from autorun.models import Batch, Chunk, Run
from autorun.planning import batches, statements
from autorun.planning.named import plan_keys
from autorun.runner import QuerySetRunner
from autorun.state.clock import from_now
from autorun.state.counts import Progress
from autorun.tasks import plan
from tests.engine import current_runs, declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)

QUEUED, WAITING = Chunk.State.QUEUED, Chunk.State.WAITING
LIVE = Chunk.Priority.LIVE


@pytest.fixture
def runner(sent: list[Any]) -> Iterator[QuerySetRunner]:
    """A runner whose backfill of 20 rows has two chunks of five that wait."""
    Document.objects.bulk_create(Document(title=str(number)) for number in range(20))
    runner_class = declare(BATCH_SIZE=5)
    with installed(runner_class):
        runner_class().backfill()
        assert Chunk.objects.waiting().count() == 2
        yield runner_class()


def save(*documents: Document) -> None:
    plan(Document._meta.label, [each.pk for each in documents])


def waiting_documents() -> list[Document]:
    keys = Run.objects.filter(chunk__state=WAITING).values("object_id")
    return list(Document.objects.filter(pk__in=keys).order_by("pk"))


def run_of(document: Document) -> Run:
    return Run.objects.select_related("chunk").get(object_id=document.pk)


def test_a_saved_row_leaves_the_backlog_and_goes_first(runner: QuerySetRunner) -> None:
    document = waiting_documents()[-1]
    before = run_of(document)

    save(document)

    run = run_of(document)
    assert (run.pk, run.chunk.priority, run.chunk.batch_id) == (before.pk, LIVE, None)
    assert (run.chunk.state, run.chunk.size) == (QUEUED, 1)
    assert runner.progress() == Progress(waiting=9, queued=11)


def test_every_run_is_counted_once_to_the_end(runner: QuerySetRunner) -> None:
    saved = waiting_documents()[3:]
    batch = Batch.objects.get()

    save(*saved)

    assert batches.counts(batch).total == 13
    assert runner.progress().total == 20
    work_off()
    assert runner.progress() == Progress(succeeded=20)
    assert batches.counts(batch).succeeded == 13
    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    assert set(Chunk.objects.values_list("state", flat=True)) == {Chunk.State.FINISHED}


def test_a_chunk_that_all_runs_have_left_is_finished(runner: QuerySetRunner) -> None:
    left = Chunk.objects.waiting().order_by("pk")[0]
    keys = Run.objects.filter(chunk=left).values("object_id")

    save(*Document.objects.filter(pk__in=keys))

    left.refresh_from_db()
    assert (left.state, left.moved) == (Chunk.State.FINISHED, 5)


def test_a_saved_row_of_a_paused_batch_runs(runner: QuerySetRunner) -> None:
    batches.pause(Batch.objects.get())
    document = waiting_documents()[0]

    save(document)
    work_off()

    assert current_runs()[document.pk].status == Run.Status.SUCCEEDED


def test_it_is_explained_as_ahead_of_the_backlog(runner: QuerySetRunner, settings: Any) -> None:
    document = waiting_documents()[0]
    assert "ahead" not in str(runner.explain(document))
    settings.AUTORUN = {**settings.AUTORUN, "WINDOW": 1}

    save(document)

    assert "ahead of sweeps and backfills" in str(runner.explain(document))


def test_a_written_row_overtakes_sweeps_and_yields_to_saves(runner: QuerySetRunner) -> None:
    first, second = waiting_documents()[:2]
    save(first)

    plan_keys(runner, [first.pk, second.pk], priority=Chunk.Priority.WRITE)

    priorities = [run_of(each).chunk.priority for each in (first, second)]
    assert priorities == [LIVE, Chunk.Priority.WRITE]


def test_a_run_that_waits_for_its_time_goes_on_waiting(runner: QuerySetRunner) -> None:
    document = waiting_documents()[0]
    Chunk.objects.waiting().update(not_before=from_now(60))

    save(document)

    assert run_of(document).chunk.priority == Chunk.Priority.BACKFILL


def test_runs_that_have_failed_overtake_alone(runner: QuerySetRunner) -> None:
    first, second = waiting_documents()[:2]
    Run.objects.filter(object_id=first.pk).update(attempts=1)

    save(first, second)

    chunks = [run_of(each).chunk for each in (first, second)]
    assert [(each.size, each.priority) for each in chunks] == [(1, LIVE), (1, LIVE)]


def test_a_run_whose_chunk_is_sent_meanwhile_stays_in_it(
    runner: QuerySetRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = waiting_documents()[0]
    before = run_of(document)
    found = statements.behind

    def and_sent(*args: Any) -> list[int]:
        run_ids = found(*args)
        Chunk.objects.filter(pk=before.chunk_id).update(state=QUEUED)
        return run_ids

    monkeypatch.setattr(statements, "behind", and_sent)
    save(document)

    run = run_of(document)
    assert (run.chunk_id, run.chunk.moved) == (before.chunk_id, 0)
    assert runner.progress().total == 20


def test_a_saved_row_that_is_up_to_date_costs_as_many_statements_as_before(
    runner: QuerySetRunner,
) -> None:
    work_off()
    documents = list(Document.objects.all())
    save(*documents)

    with CaptureQueriesContext(connection) as captured:
        save(*documents)
        save(documents[0])

    assert [query for query in captured if query["sql"].startswith("SELECT")] != []
    assert len(captured) == 2
