"""Old chunks are counted in their node, and progress() stays exact."""

import datetime as dt
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.db import connection
from django.db.models import F
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.admin.tables import counts_of
from autorun.control import interventions
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Node, Run
from autorun.observe.glance import progresses_and_tally, take_tally
from autorun.observe.listing import RunFilter
from autorun.planning import batches
from autorun.runner import QuerySetRunner
from autorun.state import counts
from autorun.state.clock import new_chunk_id
from autorun.state.counts import Progress, progress
from autorun.upkeep import folding
from autorun.upkeep.folding import fold, fold_everywhere
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _worth_it(set_constants: Callable[..., None]) -> None:
    set_constants(folding, FEW=1)


def fail_on_odd(value: str, **_: object) -> str:
    if int(value) % 2:
        raise ValueError(value)
    return value


def make(count: int) -> None:
    Document.objects.bulk_create(Document(title=str(number)) for number in range(count))


def fold_all(runner: QuerySetRunner) -> int:
    return fold(runner.get_node().pk, quiet=0)


@contextmanager
def processed(count: int, *function: Any, **options: Any) -> Iterator[QuerySetRunner]:
    """A runner that has processed so many documents, each in a chunk of its own."""
    make(count)
    with installed(runner_class := declare(*function, BATCH_SIZE=1, **options)):
        runner = runner_class()
        runner.run()
        work_off()
        yield runner


def test_progress_is_the_same_before_and_after_folding() -> None:
    with processed(3) as runner:
        before = runner.progress()

        folded = fold_all(runner)

        assert folded == 3
        assert runner.progress() == before == Progress(succeeded=3)
        assert Node.objects.get().folded_succeeded == 3


def test_a_batch_has_the_same_counts_before_and_after_folding() -> None:
    runner_class = declare(fail_on_odd, BATCH_SIZE=1, MAX_ATTEMPTS=1)
    make(4)
    with installed(runner_class):
        runner = runner_class()
        batch = runner.run()
        work_off()
        Document.objects.create(title="later")
        other = runner.run()
        before = [batches.counts(each) for each in (batch, other)]

        folded = fold_all(runner)

        assert folded == 2
        assert [batches.counts(each) for each in (batch, other)] == before
        assert before == [batches.BatchCounts(2, 2, 0, 0), batches.BatchCounts(0, 0, 0, 1)]
        batch.refresh_from_db()
        assert batch.folded_succeeded == 2


def test_cancelled_runs_of_a_batch_stay_counted() -> None:
    runner_class = declare(BATCH_SIZE=1)
    make(3)
    with installed(runner_class):
        runner = runner_class()
        batch = runner.run()
        batches.cancel(batch)

        folded = fold_all(runner)

        assert folded == 3
        assert batches.counts(batch) == batches.BatchCounts(0, 0, 3, 0)
        assert runner.progress() == Progress()


def test_a_node_remembers_a_day_of_hours_and_no_more(set_constants: Callable[..., None]) -> None:
    set_constants(folding, HOURS=2)
    with processed(3) as runner:
        now = timezone.now()
        for hours, chunk in enumerate(Chunk.objects.order_by("pk")):
            at = now - dt.timedelta(hours=hours)
            Chunk.objects.filter(pk=chunk.pk).update(finished_at=at)

        fold_all(runner)

    hour = folding.hour_of(now)
    assert Node.objects.get().folded_hours == {str(hour - 1): 1, str(hour): 1}


def test_a_folded_success_that_is_superseded_is_counted_once() -> None:
    with processed(2) as runner:
        fold_all(runner)
        Document.objects.filter(title="0").update(title="9")

        runner.run()
        work_off()
        fold_all(runner)

        assert runner.progress() == Progress(succeeded=2)


def test_chunks_with_failures_are_not_folded() -> None:
    with processed(4, fail_on_odd, MAX_ATTEMPTS=1) as runner:
        folded = fold_all(runner)

        assert folded == 2
        assert runner.progress() == Progress(succeeded=2, failed=2)
        assert not Chunk.objects.filter(is_folded=True, failed__gt=0).exists()


def test_what_is_on_its_way_is_not_folded() -> None:
    runner_class = declare(BATCH_SIZE=1)
    make(2)
    with installed(runner_class):
        runner = runner_class()
        runner.run()

        assert fold_all(runner) == 0
        assert runner.progress().unfinished == 2


def test_a_chunk_that_has_just_ended_is_left_alone() -> None:
    with processed(2) as runner:
        assert fold(runner.get_node().pk) == 0


def test_nothing_is_folded_twice() -> None:
    with processed(2) as runner:
        fold_all(runner)

        assert fold_all(runner) == 0
        assert runner.progress() == Progress(succeeded=2)


def many_nodes(number: int, **options: Any) -> None:
    """So many nodes with a finished chunk each."""
    content_type = ContentType.objects.get_for_model(Document)
    nodes = [Node(title=str(n), digest=str(n), content_type=content_type) for n in range(number)]
    Node.objects.bulk_create(nodes)
    done = {"state": Chunk.State.FINISHED, "size": 1, "runner": "tests.Gone"}
    first = new_chunk_id()
    Chunk.objects.bulk_create(
        Chunk(pk=first + at, node=node, **done | options) for at, node in enumerate(nodes)
    )


def test_few_chunks_are_folded_once_they_are_old(set_constants: Callable[..., None]) -> None:
    set_constants(folding, FEW=3)
    many_nodes(2, succeeded=1, finished_at=timezone.now() - dt.timedelta(minutes=30))
    first, second = Node.objects.order_by("pk")

    assert fold_everywhere() == 0
    Chunk.objects.of(first).update(finished_at=timezone.now() - dt.timedelta(hours=2))
    assert fold_everywhere() == 1
    assert progress(first) == Progress(succeeded=1)
    Chunk.objects.update(node=second, is_folded=False)
    Chunk.objects.create(node=second, state=Chunk.State.FINISHED, size=1, succeeded=1)
    assert fold_everywhere() == 3


def test_nodes_at_rest_are_folded_by_one_statement_however_many_there_are() -> None:
    many_nodes(50, succeeded=1, is_folded=True)
    Chunk.objects.create(node=Node.objects.first(), state=Chunk.State.FINISHED, size=1, failed=1)

    with CaptureQueriesContext(connection) as statements:
        assert fold_everywhere() == 0

    assert len(statements) == 1


def test_nodes_to_be_folded_take_as_many_statements_as_one() -> None:
    numbers = []
    for number in (1, 50):
        Node.objects.all().delete()
        many_nodes(number, succeeded=1, finished_at=timezone.now() - dt.timedelta(hours=2))
        with CaptureQueriesContext(connection) as statements:
            assert fold_everywhere() == number
        numbers.append(len(statements))

    assert numbers[1] <= numbers[0] <= 15
    assert all(node.folded_succeeded == 1 for node in Node.objects.all())


def test_a_node_that_cannot_be_folded_holds_up_no_other(caplog: pytest.LogCaptureFixture) -> None:
    many_nodes(3, succeeded=1, finished_at=timezone.now() - dt.timedelta(hours=2))
    Node.objects.filter(title="1").update(folded_hours={"no hour": 1})

    assert fold_everywhere() == 2
    assert "Folding: node" in caplog.text


def left_with_failures() -> list[int]:
    """The failures of each chunk that has some."""
    return sorted(Chunk.objects.filter(failed__gt=0).values_list("failed", flat=True))


class TestFailuresAreGathered:
    """Nine failures and nine successes, each in a chunk of its own, of the day before yesterday."""

    @pytest.fixture(autouse=True)
    def runner(self, set_constants: Callable[..., None]) -> Iterator[QuerySetRunner]:
        set_constants(folding, MOST_CHUNKS=1)
        make(18)
        with installed(runner_class := declare(fail_on_odd, BATCH_SIZE=1, MAX_ATTEMPTS=1)):
            runner_class().run()
            work_off()
            Chunk.objects.update(finished_at=timezone.now() - dt.timedelta(days=2))
            yield runner_class()

    def test_their_chunks_are_folded_and_no_count_changes(self, runner: QuerySetRunner) -> None:
        [batch] = Batch.objects.all()
        before = runner.progress(), batches.counts(batch)

        assert folding.gather_failures() == 8
        assert (runner.progress(), batches.counts(batch)) == before
        assert fold_everywhere() == 17
        assert (runner.progress(), batches.counts(batch)) == before

        [left] = Chunk.objects.unfolded()
        assert (left.size, left.failed) == (9, 9)
        assert folding.gather_failures() == 0
        assert Chunk.objects.count() == 10

    def test_they_are_ignored_retried_and_listed_as_before(self, runner: QuerySetRunner) -> None:
        folding.gather_failures()
        fold_everywhere()
        chosen = RunFilter(runner=runner.label, state="failed")
        runs = [run for page in chosen.each() for run in page]

        assert len(runs) == 9
        assert interventions.ignore_runs([runs[:4]]) == 4
        assert runner.progress() == Progress(succeeded=9, failed=5, ignored=4)
        assert runner.retry().planned == 5
        after = runner.progress()
        assert (after.succeeded, after.failed, after.ignored, after.unfinished) == (9, 0, 4, 5)

    def test_a_chunk_takes_no_more_than_a_page_can_show(
        self, runner: QuerySetRunner, set_constants: Callable[..., None]
    ) -> None:
        set_constants(folding, MOST_FAILURES=4)

        folding.gather_failures()

        assert left_with_failures() == [1, 4, 4]
        for chunk in Chunk.objects.filter(failed__gt=0):
            assert chunk.runs.failed().count() == chunk.failed

    def test_those_of_other_batches_and_days_stay_apart(self, runner: QuerySetRunner) -> None:
        failed = list(Chunk.objects.filter(failed=1).order_by("pk"))
        Chunk.objects.filter(pk__in=[chunk.pk for chunk in failed[:3]]).update(batch=None)
        Chunk.objects.filter(pk=failed[8].pk).update(finished_at=timezone.now())

        assert folding.gather_failures() == 2 + 4
        assert left_with_failures() == [1, 3, 5]

    def test_few_chunks_with_failures_are_left_alone(
        self, runner: QuerySetRunner, set_constants: Callable[..., None]
    ) -> None:
        set_constants(folding, MOST_CHUNKS=9)

        assert folding.gather_failures() == 0

    def test_a_run_that_is_superseded_later_is_counted_once(self, runner: QuerySetRunner) -> None:
        folding.gather_failures()
        Document.objects.filter(title="1").update(title="2")
        runner.run()
        work_off()
        fold_everywhere()

        assert runner.progress() == Progress(succeeded=10, failed=8)
        assert Run.objects.failed().count() == 9


@pytest.mark.usefixtures("sent")
def test_pages_take_the_number_of_very_many_waiting_runs_from_their_batches(
    set_constants: Callable[..., None],
) -> None:
    make(12)
    options = {"BATCH_SIZE": 1, "MAX_ATTEMPTS": 1, "MAX_PARALLEL": 4}
    with installed(runner_class := declare(fail_on_odd, **options)):
        runner = runner_class()
        begun = [runner.backfill(Document.objects.filter(pk__lte=8)), runner.backfill()]
        for chunk in list(Chunk.objects.queued())[:3]:
            execute(chunk.pk)
        fold_all(runner)
        node = runner.get_node()
        before = progress(node), take_tally(), [batches.counts(each) for each in begun]
        set_constants(counts, MOST_SUMMED=2)

        found, tally = progresses_and_tally()

        exact, exactly, of_batches = before
        assert exact.waiting > 2
        assert found[node] == exact
        assert (exactly.crowd, tally.crowd) == (set(), {node.pk})
        assert replace(tally, crowd=frozenset()) == exactly
        assert take_tally() == tally
        assert list(counts_of(begun, tally).values()) == of_batches


@pytest.mark.usefixtures("sent")
def test_each_page_says_about_how_many_of_very_many_runs_there_are(
    set_constants: Callable[..., None], admin_client: Client
) -> None:
    make(60)
    with installed(runner_class := declare(BATCH_SIZE=1, MAX_PARALLEL=1)):
        runner = runner_class()
        batch = runner.backfill()
        Batch.objects.update(planned=F("planned") + 1_000)  # of which the chunks know nothing
        set_constants(counts, MOST_SUMMED=2)
        waits = "<b>about 1,059</b> waiting"
        said = {
            "node/": ["about 1,060 in progress", waits],
            f"node/{runner.label}/": [waits, 'data-name="In progress">about 1,060</td>'],
            f"batch/{batch.pk}/change/": ["<b>about 1,060</b> remaining"],
            f"run/?batch={batch.pk}": ["About 1,060 runs match"],
            "run/": ["Newest first."],
            **{path: [] for path in ("failure/", "batch/", "batch/backfill/", "health/")},
        }
        tab = 'about 1,060<span class="visually-hidden"> in progress</span>'

        pages = {path: admin_client.get(f"/admin/autorun/{path}").text for path in said}

        missing = [
            (path, words)
            for path, page in pages.items()
            for words in [*said[path], tab]
            if words not in page
        ]
        assert missing == []
        assert RunFilter(state="waiting", batch=batch.pk).number() is None
