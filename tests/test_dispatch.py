"""Release of chunks: order and limits."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

import pytest
from django.db import DataError, connection, transaction
from django.db.models import Count
from django.db.models.sql.compiler import SQLCompiler
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.declare import nodes, registry
from autorun.dispatch import releasing, sizes
from autorun.dispatch.messages import message_for
from autorun.dispatch.ordering import FIRST_PAGE
from autorun.dispatch.publishing import redirected
from autorun.dispatch.releasing import MOST_PUBLICATIONS, release, release_everywhere
from autorun.dispatch.room import SPARE_CHUNKS, Room
from autorun.exceptions import BrokerUnavailable, MessagesRefused
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Node, Pulse
from autorun.planning import batches
from autorun.planning.named import plan_keys
from autorun.state.clock import new_chunk_id
from autorun.state.leases import queued, start
from autorun.tasks import plan
from autorun.upkeep.rounds import send_again
from tests.crashes import armed, listening
from tests.engine import declare, installed, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(10)]


def in_flight() -> int:
    return sum(Chunk.objects.filter(state=Chunk.State.QUEUED).values_list("size", flat=True))


def a_batch_waiting(
    chunks: int, *, size: int = 1, runner: str = "tests.EchoRunner", **options: Any
) -> Batch:
    """A batch that has planned so many chunks, and released none."""
    batch = batches.begin(registry.get(runner), Batch.Trigger.BACKFILL, **options)
    first = new_chunk_id()
    Chunk.objects.bulk_create(
        Chunk(pk=first + number, node=batch.node, runner=runner, batch=batch, size=size)
        for number in range(chunks)
    )
    return batch


@pytest.fixture
def chunks_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids of the chunks that become objects."""
    read: list[int] = []
    from_db = Chunk.from_db.__func__

    def noted(cls, db, names, values):
        read.append(values[0])
        return from_db(cls, db, names, values)

    monkeypatch.setattr(Chunk, "from_db", classmethod(noted))
    return read


def test_no_more_than_the_window_is_in_flight(documents, settings):
    settings.AUTORUN = {"WINDOW": 4}
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        runner().run()

        assert in_flight() == 4
        work_off()
        assert runner().progress().succeeded == 10


def test_a_backfill_may_have_a_smaller_window(documents):
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        runner().backfill(window=1)

        assert in_flight() == 1
        work_off()
        assert runner().progress().succeeded == 10


def test_a_chunk_larger_than_its_batchs_window_goes_out_alone(documents):
    runner = declare(BATCH_SIZE=5)
    with installed(runner):
        runner().backfill(window=1)

        assert in_flight() == 5


def test_max_parallel_limits_the_chunks_at_work(documents):
    runner = declare(BATCH_SIZE=1, MAX_PARALLEL=2)
    with installed(runner):
        runner().run()

        assert Chunk.objects.filter(state=Chunk.State.QUEUED).count() == 2
        work_off()
        assert runner().progress().succeeded == 10


def test_a_look_that_finds_no_chunk_to_start_compiles_its_query_once() -> None:
    release(1)

    with (
        mock.patch.object(SQLCompiler, "as_sql", side_effect=AssertionError) as compiled,
        CaptureQueriesContext(connection) as looks,
    ):
        release(1)

    assert (len(looks), compiled.call_count) == (1, 0)


def test_a_second_dispatcher_releases_nothing_beyond_the_limits(documents, settings):
    settings.AUTORUN = {"WINDOW": 4}
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().run()
        release(batch.node_id)

        assert in_flight() == 4


def test_a_batch_behind_thousands_of_a_full_ones_chunks_goes_out(chunks_read):
    with installed(declare()):
        full, behind = a_batch_waiting(3_000, window=1), a_batch_waiting(3, window=1)

        assert release(full.node_id).chunks == 2
        assert Chunk.objects.filter(batch=behind, state=Chunk.State.QUEUED).count() == 1
        assert len(chunks_read) < 50
        chunks_read.clear()
        assert release(full.node_id).chunks == 0
        assert len(chunks_read) <= FIRST_PAGE


def test_what_waits_for_a_runner_at_its_max_parallel_is_not_read(chunks_read):
    with installed(declare(MAX_PARALLEL=2)):
        batch = a_batch_waiting(3_000)

        assert release(batch.node_id).chunks == 2
        assert len(chunks_read) < 50
        chunks_read.clear()
        Chunk.objects.filter(pk=Chunk.objects.filter(state=Chunk.State.QUEUED).first().pk).delete()
        assert release(batch.node_id).chunks == 1
        assert len(chunks_read) < 50


def test_max_parallel_holds_over_the_versions_of_a_runner(documents):
    old, new = declare(MAX_PARALLEL=1), declare(MAX_PARALLEL=1, VERSION="2.0")
    with installed(old):
        assert release(a_batch_waiting(2).node_id).chunks == 1
        at_work = Chunk.objects.get(state=Chunk.State.QUEUED)
    with installed(new):
        batch = a_batch_waiting(2)
        assert release(batch.node_id).chunks == 0
        Chunk.objects.filter(pk=at_work.pk).update(state=Chunk.State.RUNNING)
        assert release(batch.node_id).chunks == 0
        Chunk.objects.filter(pk=at_work.pk).update(state=Chunk.State.FINISHED)

        assert release_everywhere() == 1


@pytest.mark.django_db(transaction=True)
def test_two_versions_of_a_runner_released_at_once_exceed_no_max_parallel():
    old, new = declare(MAX_PARALLEL=1), declare(MAX_PARALLEL=1, VERSION="2.0")
    with installed(old):
        first = a_batch_waiting(1)
    has_claimed, has_released = threading.Event(), threading.Event()

    def claimed():
        has_claimed.set()
        has_released.wait(0.5)  # what the other one does not, as it waits for this one

    def release_both(node_id):
        try:
            return release(node_id).chunks
        finally:
            connection.close()

    with installed(new):
        second = a_batch_waiting(1)
        with armed("dispatch.claimed", act=claimed), ThreadPoolExecutor(2) as threads:
            one = threads.submit(release_both, first.node_id)
            assert has_claimed.wait(10)
            other = threads.submit(release_both, second.node_id)
            other.add_done_callback(lambda _: has_released.set())

            assert (one.result(), other.result()) == (1, 0)


@pytest.fixture
def many_nodes(documents):
    """Makes so many nodes of one runner that is installed, each with so many waiting chunks."""

    def make(number, *, chunks=1, **options):
        node = registry.get("tests.EchoRunner").get_node()
        of_model = {"content_type_id": node.content_type_id, "version": "1.0", **options}
        made = [Node(title=str(n), digest=str(n), **of_model) for n in range(number)]
        Node.objects.bulk_create(made)
        first = new_chunk_id()
        Chunk.objects.bulk_create(
            Chunk(pk=first + at, node=each, runner="tests.EchoRunner", size=1)
            for at, each in enumerate(each for each in made for _ in range(chunks))
        )

    return make


def test_nodes_with_a_chunk_each_are_released_in_few_statements(many_nodes, sent):
    with installed(declare()):
        many_nodes(150)

        with CaptureQueriesContext(connection) as statements:
            assert release_everywhere() == 150

    assert len(sent) == 0  # not before the commit
    assert len(statements) <= 16
    assert not Chunk.objects.waiting().exists()


def test_nodes_whose_runner_is_supplied_take_no_statement_of_their_own(many_nodes):
    with installed(declare()):
        many_nodes(20, chunks=5)
        # A node of a runner that is known here alone can be full: of others, all are read.
        nodes_known = {digest: ["tests.EchoRunner"] for digest in map(str, range(20))}
        with mock.patch.dict(nodes.runners_by_node().labels, nodes_known):
            assert release_everywhere() == 20 * SPARE_CHUNKS

            with CaptureQueriesContext(connection) as statements:
                assert release_everywhere() == 0

    assert len(statements) <= 10


def test_limits_hold_over_a_page_of_nodes(many_nodes, settings):
    settings.AUTORUN = {"WINDOW": 1}
    with installed(declare()):
        many_nodes(10, chunks=3)

        assert release_everywhere() == 10
        per_node = Chunk.objects.queued().values_list("node").annotate(Count("pk"))
        assert {number for _, number in per_node} == {1}
        assert release_everywhere() == 0


def test_max_parallel_holds_over_a_page_of_nodes(many_nodes):
    with installed(declare(MAX_PARALLEL=3)):
        many_nodes(10, chunks=3)

        assert release_everywhere() == 3
        assert release_everywhere() == 0


def test_nothing_of_a_paused_batch_or_node_is_released_with_others(many_nodes):
    with installed(declare()):
        many_nodes(3)
        batch = a_batch_waiting(3)
        Batch.objects.update(state=Batch.State.PAUSED)
        Node.objects.filter(title="1").update(paused_at=timezone.now())

        assert release_everywhere() == 2
        assert not Chunk.objects.queued().filter(batch=batch).exists()


@pytest.mark.skipif(connection.vendor == "sqlite", reason="a writer locks the whole database")
@pytest.mark.django_db(transaction=True)
def test_who_finds_another_at_a_release_leaves_a_note_and_goes_on():
    runner = declare()
    has_claimed, has_left = threading.Event(), threading.Event()

    def claimed():
        has_claimed.set()
        assert has_left.wait(10)

    def release_elsewhere(node_id):
        try:
            return release(node_id).chunks
        finally:
            connection.close()

    with installed(runner):
        batch = a_batch_waiting(1)
        with transaction.atomic():
            nodes.lock(batch.node_id)  # the first one makes the lock
        with armed("dispatch.claimed", act=claimed), ThreadPoolExecutor(1) as threads:
            first = threads.submit(release_elsewhere, batch.node_id)
            assert has_claimed.wait(10)
            late = a_batch_waiting(1)

            assert release(late.node_id).chunks == 0
            with CaptureQueriesContext(connection) as captured:
                assert release(late.node_id).chunks == 0
            has_left.set()
            assert first.result() == 2

        # The second one finds the note of the first, and relies on it.
        assert len([each for each in captured if "SKIP LOCKED" in each["sql"]]) == 1
        assert not Chunk.objects.waiting().exists()
        assert release(batch.node_id).chunks == 0
        assert not Pulse.objects.filter(name__startswith="again:").exists()


def test_who_does_not_know_a_runner_releases_one_of_its_chunks_at_a_time(documents):
    with installed(declare()):
        batch = a_batch_waiting(3)

    assert [release(batch.node_id).chunks for _ in range(2)] == [1, 0]
    Chunk.objects.filter(state=Chunk.State.QUEUED).update(state=Chunk.State.FINISHED)
    assert release(batch.node_id).chunks == 1


def test_another_runner_of_the_node_goes_past_one_at_its_max_parallel(documents):
    limited, free = declare(MAX_PARALLEL=1), declare(NAME="FreeRunner")
    with installed(limited, free):
        batch = a_batch_waiting(100)
        a_batch_waiting(SPARE_CHUNKS, runner="tests.FreeRunner")

        assert release(batch.node_id).chunks == 1 + SPARE_CHUNKS


def test_a_broker_is_given_few_chunks_beyond_those_at_work(chunks_read):
    with installed(declare()):
        batch = a_batch_waiting(3_000)
        assert release(batch.node_id).chunks == SPARE_CHUNKS
        assert release(batch.node_id).chunks == 0

        Chunk.objects.filter(state=Chunk.State.QUEUED).update(state=Chunk.State.RUNNING)
        assert release(batch.node_id).chunks == 2 * SPARE_CHUNKS
        assert len(chunks_read) < 100
        chunks_read.clear()
        assert release(batch.node_id).chunks == 0
        assert len(chunks_read) <= FIRST_PAGE


def test_what_was_just_saved_goes_past_chunks_that_are_with_the_broker(documents):
    with installed(declare()):
        batch = a_batch_waiting(10)
        release(batch.node_id)
        saved = [
            Chunk.objects.create(
                node=batch.node, runner="tests.EchoRunner", size=1, priority=Chunk.Priority.LIVE
            )
            for _ in range(3)
        ]

        assert release(batch.node_id).chunks == 3
        states = Chunk.objects.filter(pk__in=[chunk.pk for chunk in saved]).values_list("state")
        assert set(states) == {(Chunk.State.QUEUED,)}


def test_another_runner_of_the_node_goes_past_one_whose_chunks_are_with_the_broker(documents):
    with installed(declare(), declare(NAME="OtherRunner", QUEUE="other")):
        batch = a_batch_waiting(100)
        a_batch_waiting(SPARE_CHUNKS, runner="tests.OtherRunner")

        assert release(batch.node_id).chunks == 2 * SPARE_CHUNKS


def test_a_chunk_larger_than_the_window_is_not_overtaken_for_ever(settings):
    settings.AUTORUN = {"WINDOW": 4}
    with installed(declare()):
        batch = a_batch_waiting(1)
        assert release(batch.node_id).chunks == 1
        large, small = a_batch_waiting(1, size=9), a_batch_waiting(1)

        assert release(batch.node_id).chunks == 0
        Chunk.objects.filter(batch=batch).update(state=Chunk.State.FINISHED)
        assert release(batch.node_id).chunks == 1
        assert large.chunks.get().state == Chunk.State.QUEUED
        assert small.chunks.get().state == Chunk.State.WAITING


def test_a_chunk_cancelled_while_it_is_claimed_stays_so(documents, monkeypatch):
    with installed(declare()):
        batch = a_batch_waiting(1)
        takes = Room.takes

        def cancelled_meanwhile(room, chunk):
            Chunk.objects.update(state=Chunk.State.FINISHED)
            return takes(room, chunk)

        monkeypatch.setattr(Room, "takes", cancelled_meanwhile)
        release(batch.node_id)

    assert Chunk.objects.get().state == Chunk.State.FINISHED


def test_urgent_chunks_are_released_first(documents, settings):
    settings.AUTORUN = {"WINDOW": 2}
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        runner().backfill(Document.objects.filter(pk__lte=documents[7].pk))
        runner().run()
        work_off(rounds=50)
        order = Chunk.objects.order_by("started_at").values_list("priority", flat=True)

        assert list(order)[:2] == [Chunk.Priority.BACKFILL, Chunk.Priority.SWEEP]


def test_nothing_of_a_paused_node_is_released(documents):
    runner = declare()
    with installed(runner):
        node = runner().get_node()
        Node.objects.filter(pk=node.pk).update(paused_at="2026-01-01T00:00Z")
        runner().run()

        assert in_flight() == 0
        Node.objects.filter(pk=node.pk).update(paused_at=None)
        assert release(node.pk).chunks == 1


def test_messages_are_sent_when_the_transaction_commits(
    documents, sent, django_capture_on_commit_callbacks
):
    runner = declare()
    with (
        installed(runner),
        django_capture_on_commit_callbacks(execute=True),
        transaction.atomic(),
    ):
        runner().run()
        assert sent == []

    assert [message.args for message in sent] == [(Chunk.objects.get().pk,)]


def test_what_no_broker_takes_waits_again(documents, django_capture_on_commit_callbacks, caplog):
    def refuse(messages):
        raise BrokerUnavailable("refused")

    runner = declare()
    with (
        installed(runner),
        redirected(refuse),
        django_capture_on_commit_callbacks(execute=True),
    ):
        runner().run()

    assert Chunk.objects.get().state == Chunk.State.WAITING
    assert "upkeep sends them again" in caplog.text


def test_a_message_carries_an_id_its_queue_priority_and_last_resort(documents, settings):
    settings.AUTORUN = {"LEASE": 10}
    runner = declare(QUEUE="slow", PRIORITY=7, TIMEOUT=30)
    with installed(runner):
        runner().run()
        chunk = Chunk.objects.get()
        message = message_for(chunk)

    assert message.args == (chunk.pk,)
    assert message.options() == {
        "queue": "slow",
        "priority": 7,
        "time_limit": 50,
        "soft_time_limit": 50,
    }


def test_the_last_resort_is_for_all_runs_of_a_chunk_that_belong_together(documents, settings):
    settings.AUTORUN = {"LEASE": 10, "TIMEOUT": 30}
    runner = declare(BATCH_SIZE=10)
    with installed(runner):
        runner().run()

        assert message_for(Chunk.objects.get()).time_limit == 320


@pytest.mark.parametrize(("seconds", "size"), [(0.001, 250), (0.1, 10), (10, 1), (None, 250)])
def test_a_chunk_is_about_a_second_of_work(documents, seconds, size, settings):
    settings.AUTORUN = {"WINDOW": 1_000}
    runner = declare()
    with installed(runner):
        node = runner().get_node()
        Node.objects.filter(pk=node.pk).update(run_seconds=seconds)

        assert sizes.chunk_size(runner(), node.pk) == size


def test_a_node_is_measured_as_soon_as_its_first_chunk_has_ended():
    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        node = runner().get_node()
        assert sizes.chunk_size(runner(), node.pk) == 250
        Node.objects.filter(pk=node.pk).update(run_seconds=0.05)

        assert sizes.chunk_size(runner(), node.pk) == 20


@pytest.mark.parametrize("state", [Batch.State.PAUSED, Batch.State.CANCELLED])
def test_chunks_of_a_batch_that_is_held_keep_no_others_waiting(documents, sent, state):
    with installed(runner := declare(BATCH_SIZE=1)):
        batch = runner().backfill(limit=6)
        Chunk.objects.update(state=Chunk.State.WAITING)
        Batch.objects.filter(pk=batch.pk).update(state=state, expires_at=timezone.now())
        other = runner().backfill(limit=2)
        saved = Document.objects.create(title="saved")
        plan_keys(runner(), [saved.pk])

        for _ in range(3):
            releasing.release_everywhere()

        of_batch = Chunk.objects.filter(batch=batch)
        assert set(of_batch.values_list("state", flat=True)) == {Chunk.State.WAITING}
        assert Chunk.objects.filter(batch=other).queued().count() == 2
        assert Chunk.objects.filter(batch=None).queued().count() == 1


def test_a_batch_with_a_full_window_keeps_no_other_waiting(documents, sent):
    with installed(runner := declare(BATCH_SIZE=1)):
        runner().backfill(limit=6, window=1)
        other = runner().backfill(limit=2, window=1)

        for _ in range(2):
            releasing.release(runner().get_node().pk)

        assert Chunk.objects.queued().count() == 2
        assert Chunk.objects.filter(batch=other).queued().count() == 1


@pytest.fixture
def two_runners(documents):
    """A runner of documents with the given options and one of photos, each with waiting chunks."""

    def plan(**options):
        first = declare(NAME="First", BATCH_SIZE=2, **options)
        second = declare(NAME="Second", TITLE="Other", DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
        Photo.objects.create(caption="a")
        with installed(first, second):
            for runner in (first(), second()):
                Node.objects.filter(pk=runner.get_node().pk).update(paused_at=timezone.now())
                runner.run()
        Node.objects.update(paused_at=None)
        return first, second

    return plan


def states_of(runner):
    chunks = Chunk.objects.filter(runner=runner.get_label())
    return {Chunk.State(state) for state in chunks.values_list("state", flat=True)}


def test_messages_that_the_broker_refuses_hold_up_no_other(
    two_runners, django_capture_on_commit_callbacks
):
    first, second = two_runners(QUEUE="declared otherwise")

    def publish(messages):
        refused = [each for each in messages if each.queue == "declared otherwise"]
        if refused:
            raise MessagesRefused("406", refused)

    with installed(first, second), redirected(publish):
        for _ in range(3):
            with django_capture_on_commit_callbacks(execute=True):
                releasing.release_everywhere()

    assert (states_of(first), states_of(second)) == ({Chunk.State.WAITING}, {Chunk.State.QUEUED})
    # Nor is it counted as sent.
    assert set(Chunk.objects.filter(runner=first.get_label()).values_list("publications")) == {(0,)}


def test_of_several_messages_only_those_refused_wait_again(two_runners):
    first, second = two_runners()
    chunks = list(Chunk.objects.order_by("pk"))
    Chunk.objects.update(state=Chunk.State.QUEUED, publications=1)

    def publish(messages):
        raise MessagesRefused("406", messages[1:2])

    with installed(first, second), redirected(publish):
        assert releasing.send(chunks) == len(chunks) - 1

    waiting = Chunk.objects.filter(state=Chunk.State.WAITING)
    assert [chunk.pk for chunk in waiting] == [chunks[1].pk]


def test_a_node_that_cannot_be_released_holds_up_no_other(two_runners, sent, caplog):
    first, second = two_runners()
    node_id = first().get_node().pk

    def fail_for_first(point):
        if point == "dispatch.claimed" and Chunk.objects.of(node_id).queued().exists():
            raise DataError("smallint out of range")

    with installed(first, second), listening(fail_for_first):
        assert releasing.release_everywhere() == 1

    assert states_of(second) == {Chunk.State.QUEUED}
    assert f"Releasing: node {node_id} failed" in caplog.text


def test_publications_are_counted_no_further_than_their_column_goes(documents, sent):
    runner = declare()
    with installed(runner):
        runner().run()
        for _ in range(2):
            Chunk.objects.update(state=Chunk.State.WAITING, publications=MOST_PUBLICATIONS)
            releasing.release_everywhere()
            Chunk.objects.update(published_at="2020-01-01T00:00Z")
            send_again()

    assert Chunk.objects.get().publications == MOST_PUBLICATIONS


def test_a_hook_that_raises_keeps_no_other_runners_messages(two_runners, sent, caplog):
    def get_timeout(self):
        raise KeyError("SCANNER")

    first, second = two_runners(get_timeout=get_timeout)
    Chunk.objects.update(state=Chunk.State.QUEUED, published_at="2020-01-01T00:00Z", publications=1)
    with installed(first, second):
        send_again()

    assert len(sent) == Chunk.objects.count()
    assert "tests.First: get_timeout() raises" in caplog.text


def test_chunks_follow_their_runner_to_another_queue(documents, sent):
    with installed(before := declare(QUEUE="old", BATCH_SIZE=1)):
        before().run()
    sent.clear()
    with installed(declare(QUEUE="new", BATCH_SIZE=1)):
        for _ in range(3):
            Chunk.objects.filter(state=Chunk.State.QUEUED).update(published_at="2020-01-01T00:00Z")
            send_again()
            Chunk.objects.filter(state=Chunk.State.QUEUED).update(state=Chunk.State.RUNNING)
            releasing.release_everywhere()

    assert {message.queue for message in sent} == {"new"}
    assert not Chunk.objects.filter(state=Chunk.State.QUEUED).exclude(queue="new").exists()


@pytest.mark.django_db(transaction=True)
def test_a_chunk_takes_seven_or_eight_statements_if_others_wait(sent):
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(12))
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        runner().backfill()
        for at in range(3):  # what a process asks once, and the duration of runs
            execute(sent[at].args[0])

        with CaptureQueriesContext(connection) as captured:
            execute(sent[3].args[0])

    statements = [each["sql"] for each in captured]
    counted = [
        sql
        for sql in statements
        if not re.search(r"^(BEGIN|COMMIT)\b(?! NOT)|SET .run_seconds. =", sql)
    ]
    # SQLite has one writer at a time, and no lock of a node. The others get three pairs at once.
    # MariaDB is also told, past Django, how long other transactions may be idle.
    most = {"sqlite": 8, "postgresql": 7, "mysql": 7}
    assert len(counted) == most[connection.vendor], counted


@pytest.mark.django_db(transaction=True)
def test_a_release_without_room_reads_the_waiting_chunks_once(documents, sent):
    with installed(runner := declare(BATCH_SIZE=1)):
        runner().backfill()
        node = runner().get_node()
        assert len(sent) == SPARE_CHUNKS < len(documents)
        release(node.pk, node.digest)  # what a process asks once

        with CaptureQueriesContext(connection) as captured:
            assert release(node.pk, node.digest).chunks == 0

    statements = [each["sql"].replace('"', "`") for each in captured]
    assert sum("`priority` DESC" in sql for sql in statements) == 1, statements


@pytest.mark.skipif(connection.vendor != "postgresql", reason="the others cannot be told so")
@pytest.mark.django_db(transaction=True)
def test_work_that_is_handed_out_does_not_wait_for_the_disk_and_results_do(documents, sent):
    def durability():
        with connection.cursor() as cursor:
            cursor.execute("SHOW synchronous_commit")
            return cursor.fetchone()[0]

    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        runner().backfill()
        with CaptureQueriesContext(connection) as captured:
            execute(sent[0].args[0])
            plan(Document._meta.label, [Document.objects.create(title="saved").pk])
        with transaction.atomic():
            start(queued(sent[1].args[0]))
            assert durability() == "on"  # of the caller's transaction

    marks = {
        "claimed": "FOR UPDATE SKIP LOCKED",  # the first statement of its transaction
        "note taken": 'DELETE FROM "autorun_pulse"',
        "started": '"started_at" =',
        "started at once": 'INSERT INTO "autorun_run"',
        "recorded": "s.new_status",
    }
    unflushed = "synchronous_commit = off"
    for name, mark in marks.items():
        found = {unflushed in each["sql"] for each in captured if mark in each["sql"]}
        assert found == {name != "recorded"}, name
    assert durability() == "on"
