"""What is released, in which order, and within which limits."""

import pytest
from django.db import transaction

from autorun import dispatch
from autorun.dispatch import message_for, release
from autorun.exceptions import BrokerUnavailable
from autorun.models import Chunk, Node
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(10)]


def in_flight() -> int:
    return sum(Chunk.objects.filter(state=Chunk.State.QUEUED).values_list("size", flat=True))


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
        runner().backfill(window=3)

        assert in_flight() == 3
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


def test_a_second_dispatcher_releases_nothing_beyond_the_limits(documents, settings):
    settings.AUTORUN = {"WINDOW": 4}
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().run()
        release(batch.node_id)

        assert in_flight() == 4


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
    documents, monkeypatch, django_capture_on_commit_callbacks
):
    sent = []
    monkeypatch.setattr(dispatch, "publish", sent.extend)
    runner = declare()
    with (
        installed(runner),
        django_capture_on_commit_callbacks(execute=True),
        transaction.atomic(),
    ):
        runner().run()
        assert sent == []

    assert [message.args for message in sent] == [(Chunk.objects.get().pk,)]


def test_what_no_broker_takes_waits_again(
    documents, monkeypatch, django_capture_on_commit_callbacks, caplog
):
    def refuse(messages):
        raise BrokerUnavailable("refused")

    monkeypatch.setattr(dispatch, "publish", refuse)
    runner = declare()
    with installed(runner), django_capture_on_commit_callbacks(execute=True):
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
    assert message.options() == {"queue": "slow", "priority": 7, "time_limit": 50}


def test_the_last_resort_is_for_all_runs_of_a_chunk_that_belong_together(documents, settings):
    settings.AUTORUN = {"LEASE": 10, "TIMEOUT": 30}
    runner = declare(BATCH_SIZE=10)
    with installed(runner):
        runner().run()

        assert message_for(Chunk.objects.get()).time_limit == 320


@pytest.mark.parametrize(("seconds", "size"), [(0.001, 250), (0.1, 10), (10, 1), (None, 100)])
def test_a_chunk_is_about_a_second_of_work(documents, seconds, size, settings):
    from autorun import sizing

    settings.AUTORUN = {"WINDOW": 1_000}
    runner = declare()
    with installed(runner):
        node = runner().get_node()
        Node.objects.filter(pk=node.pk).update(run_seconds=seconds)
        sizing.forget_measurements()

        assert sizing.chunk_size(runner(), node.pk) == size
        sizing.forget_measurements()
