"""Chunks of backfills that end early because saved rows wait in the same worker."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from celery import current_app
from django.db.models import F
from kombu import Message
from kombu.utils.imports import symbol_by_name
from kombu.utils.json import dumps

from autorun.execution import giving_way, keeper
from autorun.execution.execute import execute
from autorun.execution.giving_way import SavedRows
from autorun.models import Chunk, Run
from tests.engine import declare, installed, work_off
from tests.library.models import Document
from tests.waiting import until

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sent(sent: list[Any]) -> list[Any]:
    return sent


@pytest.fixture(autouse=True)
def _soon(set_constants: Any) -> Iterator[None]:
    set_constants(giving_way, LEAST_WORK=0.0, LEAST_WAIT=0.0)
    set_constants(keeper, LOOK_EVERY=0.005)
    yield
    for each in list(giving_way._waiting):
        giving_way._note(each, None)


def fetched(message_id: str = "one", **headers: Any) -> SavedRows:
    """A message about a saved row as a worker's main process fetches it."""
    task = current_app.tasks["autorun.plan"]
    headers = {"id": message_id, "task": task.name, **headers}
    message = Message(dumps([[], {}, {}]), headers=headers, content_type="application/json")
    request: SavedRows = symbol_by_name(task.Request)(message, app=current_app, task=task)
    return request


def backfilled(runner: Any, rows: int = 4) -> Chunk:
    """A chunk of a backfill, which a message names."""
    Document.objects.bulk_create(Document(title=f"title {number}") for number in range(rows))
    runner().backfill()
    return Chunk.objects.get()


def sizes() -> list[tuple[int, int]]:
    """Of each chunk, the runs it ended with and those it left to another."""
    return list(Chunk.objects.order_by("pk").values_list(F("size") - F("moved"), "moved"))


def body_that_waits_for_a_save(value: str) -> str:
    if value == "title 1":
        fetched()
        until(lambda: Chunk.objects.count() == 2)
    return value


def test_a_chunk_leaves_the_rest_to_another_if_a_saved_row_waits():
    with installed(runner := declare(body_that_waits_for_a_save)):
        chunk = backfilled(runner)

        execute(chunk.pk)

    assert sizes() == [(2, 2), (2, 0)]
    assert Run.objects.succeeded().count() == 2


def test_one_chunk_gives_way_to_each_message():
    chunk = Chunk(priority=Chunk.Priority.BACKFILL)
    fetched("one")
    first = [giving_way.gives_way(chunk, 0.0) for _ in range(2)]
    fetched("two")

    assert (first, giving_way.gives_way(chunk, 0.0)) == ([True, False], True)


def test_a_chunk_that_comes_before_a_saved_row_is_sent_again(sent):
    with installed(runner := declare()):
        chunk = backfilled(runner)
        request, before = fetched(), list(sent)

        execute(chunk.pk)
        request.on_accepted(1, time.monotonic())
        states = list(Chunk.objects.values_list("state", flat=True))
        work_off()

    assert states == [Chunk.State.QUEUED]
    assert sent == [*before, before[-1]]
    assert Run.objects.succeeded().count() == 4


@pytest.mark.parametrize(
    ("priority", "headers"),
    [
        pytest.param(Chunk.Priority.LIVE, {}, id="it has saved rows itself"),
        pytest.param(
            Chunk.Priority.SWEEP, {"eta": "2040-01-01T00:00:00Z"}, id="the message is for later"
        ),
    ],
)
def test_a_chunk_goes_on(priority, headers):
    fetched(**headers)

    assert not giving_way.gives_way(Chunk(priority=priority), 0.0)


def test_a_chunk_goes_on_beside_a_message_that_a_process_takes_at_once(set_constants):
    set_constants(giving_way, LEAST_WAIT=60.0)
    fetched()

    assert not giving_way.gives_way(Chunk(priority=Chunk.Priority.SWEEP), 0.0)


def test_a_message_that_no_process_takes_does_not_keep_chunks_waiting(set_constants):
    set_constants(giving_way, LONGEST_WAIT=0.05)
    chunk = Chunk(priority=Chunk.Priority.SWEEP)
    fetched("lost")
    until(lambda: not giving_way.are_rows_waiting(chunk))

    fetched("new")

    assert giving_way.are_rows_waiting(chunk)


def test_a_chunk_with_a_batch_size_stays_whole():
    def body(value: str) -> str:
        if value == "title 1":
            fetched()
            threading.Event().wait(0.05)
        return value

    with installed(runner := declare(body, BATCH_SIZE=4)):
        execute(backfilled(runner).pk)

    assert sizes() == [(4, 0)]
