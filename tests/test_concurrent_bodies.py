"""Async bodies that are called for several rows at a time: `@analysis(..., concurrency=20)`."""

import asyncio
import contextvars
import gc
import os
import signal
import threading
import time

import pytest
from asgiref.sync import sync_to_async
from django.db import connection

from autorun.analysis import Analysis
from autorun.declare.nodes import node_of
from autorun.dispatch.sizes import chunk_size, size_of_rest
from autorun.exceptions import NotApplicable, RetryLater
from autorun.execution.execute import execute
from autorun.models import Chunk, Failure, Run
from autorun.observe.checks.declarations import check_declaration
from autorun.state.counts import Progress
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)

LONG = 60
state = contextvars.ContextVar("state", default=0)


@pytest.fixture(autouse=True)
def _nothing_outlives_the_chunk():
    yield
    gc.collect()
    assert not [each for each in threading.enumerate() if each.name.startswith("autorun-async")]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def make(count):
    Document.objects.bulk_create(Document(title=str(number)) for number in range(count))
    return list(Document.objects.order_by("pk"))


def concurrent(body, at_once=10, **options):
    analysis = Analysis("Concurrent", "1.0", body, concurrency=at_once)
    return declare(ANALYSIS=analysis, **{"BATCH_SIZE": 100, "MAX_ATTEMPTS": 1, **options})


async def sleep(value):
    await asyncio.sleep(0)


def run(runner_class):
    with installed(runner_class):
        runner_class().run()
        work_off()
        return runner_class().progress()


def test_rows_are_worked_on_at_the_same_time_but_no_more_than_allowed():
    documents = make(30)
    now = most = 0

    async def body(value):
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return value

    assert run(concurrent(body)) == Progress(succeeded=30)

    assert most == 10
    runs = current_runs()
    assert [runs[each.pk].outputs for each in documents] == [str(n) for n in range(30)]


@pytest.mark.parametrize(
    ("seconds", "parallel", "size", "of_rest"),
    [(0.5, 0, 40, 40), (8, 0, 20, 20), (0.5, 5, 10, 10), (0.01, 0, 240, 60)],
)
def test_a_chunk_has_work_for_all_calls_at_once(seconds, parallel, size, of_rest):
    make(1)
    runner_class = concurrent(sleep, at_once=20, BATCH_SIZE=None, MAX_PARALLEL=parallel)
    with installed(runner_class):
        runner = runner_class()
        node = node_of(runner)
        node.run_seconds = seconds
        node.save()

        assert chunk_size(runner, node.pk) == size
        assert size_of_rest(runner, node, 500, seconds=1) == of_rest


def test_a_hundred_waits_take_little_more_than_one():
    make(100)

    async def body(value):
        await asyncio.sleep(0.1)

    runner_class = concurrent(body, at_once=100)
    with installed(runner_class):
        runner_class().run()
        chunk_id = Chunk.objects.queued().get().pk
        began = time.monotonic()
        execute(chunk_id)
        seconds = time.monotonic() - began

        assert runner_class().progress() == Progress(succeeded=100)
    assert seconds < 2.5  # one after the other, they would take ten


def test_every_row_ends_in_its_own_way():
    make(6)

    async def body(value):
        await asyncio.sleep(0.01)
        if value == "1":
            raise ValueError("bad")
        if value == "2":
            raise NotApplicable("no pixels")
        if value == "3":
            raise RetryLater(30)
        if value == "4":
            raise SystemExit(3)
        return object() if value == "5" else value

    progress = run(concurrent(body))

    assert progress == Progress(succeeded=1, failed=3, not_applicable=1, postponed=1)
    kinds = {each.exception_class.rpartition(".")[2] for each in Failure.objects.all()}
    assert kinds == {"ValueError", "SystemExit", "OutputError"}


def test_a_representation_that_raises_fails_its_row_alone():
    make(5)

    def represent(self, row):
        if row.title == "3":
            raise LookupError("no file")
        return row.title

    async def body(value):
        return value

    runner_class = concurrent(body, get_instance_representation=represent)

    assert run(runner_class) == Progress(succeeded=4, failed=1)


def test_each_row_has_its_own_time_limit_and_can_clean_up():
    make(8)
    cleaned_up = []

    async def body(value):
        try:
            await asyncio.sleep(LONG if value == "3" else 0.02)
        finally:
            cleaned_up.append(value)
        return value

    progress = run(concurrent(body, at_once=2, TIMEOUT=0.3))

    assert progress == Progress(succeeded=7, failed=1)
    assert "3" in cleaned_up
    failure = Failure.objects.get()
    assert "RunTimeout" in failure.exception_class
    assert failure.message == "The run took longer than 0.3 s, the runner's TIMEOUT."


def test_a_row_that_blocks_the_loop_beyond_its_limit_fails_alone():
    make(4)

    async def body(value):
        if value == "2":
            time.sleep(LONG)  # noqa: ASYNC251
        await asyncio.sleep(0)
        return value

    began = time.monotonic()
    progress = run(concurrent(body, TIMEOUT=0.5))

    assert progress == Progress(succeeded=3, failed=1)
    assert "RunTimeout" in Failure.objects.get().exception_class
    assert time.monotonic() - began < LONG / 2


def test_each_row_has_its_own_context():
    make(10)

    async def body(value):
        before = state.get()
        state.set(before + 1)
        await asyncio.sleep(0.01)
        return [before, state.get()]

    assert run(concurrent(body)) == Progress(succeeded=10)
    assert all(each.outputs == [0, 1] for each in Run.objects.all())
    assert state.get() == 0


def test_the_orm_works_in_each_row():
    make(20)

    async def body(value: Document) -> str:
        await asyncio.sleep(0.001)
        found = await Document.objects.aget(pk=value.pk)
        count = await Document.objects.acount()
        alias = await sync_to_async(lambda: connection.alias)()
        return f"{found.title} of {count} in {alias}"

    assert run(concurrent(body)) == Progress(succeeded=20)
    outputs = sorted(Run.objects.values_list("outputs", flat=True))
    assert outputs[0] == "0 of 20 in default"


def test_results_are_written_while_others_go_on(set_constants):
    from autorun.execution import work

    set_constants(work, WRITE_EVERY=0.0)
    make(3)
    seen = []

    async def body(value):
        if value == "0":
            for _ in range(500):
                if await Run.objects.succeeded().aexists():
                    break
                await asyncio.sleep(0.01)
            seen.append(await Run.objects.succeeded().acount())
        return value

    assert run(concurrent(body)) == Progress(succeeded=3)
    assert seen[0] >= 1


def test_sigterm_gives_all_rows_back_without_using_up_an_attempt():
    make(6)
    stopping, cleaned_up = [], []

    async def body(value):
        if stopping and value != "3":
            return value
        try:
            if value == "3" and not stopping:
                stopping.append(value)
                os.kill(os.getpid(), signal.SIGTERM)
            elif not stopping:
                await asyncio.sleep(LONG)
        finally:
            cleaned_up.append(value)
        return value

    runner_class = concurrent(body)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with installed(runner_class):
            runner_class().run()
            execute(Chunk.objects.queued().get().pk)
            assert statuses() == [Run.Status.PENDING] * 6
            assert set(Run.objects.values_list("attempts", flat=True)) == {0}
            assert {"0", "1", "2"} <= set(cleaned_up)
            work_off()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert statuses() == [Run.Status.SUCCEEDED] * 6


def test_tasks_that_a_row_leaves_are_ended_with_the_chunk():
    make(2)
    left = []

    async def forever():
        try:
            await asyncio.sleep(LONG)
        finally:
            left.append("ended")

    async def body(value):
        body.task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        return value

    assert run(concurrent(body)) == Progress(succeeded=2)
    assert left == ["ended", "ended"]


@pytest.mark.django_db(transaction=False)
def test_in_an_open_transaction_rows_are_worked_on_one_after_the_other():
    make(4)

    async def body(value: Document) -> str:
        return (await Document.objects.aget(pk=value.pk)).title

    assert run(concurrent(body)) == Progress(succeeded=4)


def test_concurrency_is_for_async_functions_of_one_row():
    def sync(value):
        return value

    async def batched(value):
        return value

    runner_class = concurrent(sync)
    with installed(runner_class):
        (found,) = check_declaration(runner_class())
    assert found.id == "autorun.E034"
    assert "has concurrency=10, but is not async" in found.msg
    both = declare(ANALYSIS=Analysis("Both", "1.0", batched, batch=2, concurrency=2))
    with installed(both):
        (found,) = check_declaration(both())
    assert "but takes batches" in found.msg
    make(2)
    assert run(concurrent(sync)) == Progress(succeeded=2)
