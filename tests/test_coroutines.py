"""Async bodies: where they run, what ends them, and what they leave behind."""

import asyncio
import contextvars
import functools
import gc
import signal
import threading
import time

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections

from autorun.declare.interruption import Interrupted, Interruptible, Termination, time_limit
from autorun.exceptions import RunTimeout
from autorun.state.coroutines import run
from tests.library.models import Document

LONG = 60
state = contextvars.ContextVar("state", default="initial")


def threads():
    return {each for each in threading.enumerate() if each.name.startswith("autorun-async")}


@pytest.fixture(autouse=True)
def _nothing_outlives_the_call():
    yield
    gc.collect()
    assert not threads()
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


async def forever():
    await asyncio.sleep(LONG)


@pytest.mark.once
class TestCall:
    def test_it_runs_in_the_calling_thread(self):
        async def body():
            return threading.get_ident()

        assert run(body) == threading.get_ident()

    def test_arguments_may_have_any_name(self):
        async def body(function):
            return function

        assert run(body, function=1) == 1

    def test_a_decorator_may_hide_that_it_is_async(self):
        async def body():
            return "awaited"

        @functools.wraps(body)
        def wrapper():
            return body()

        assert run(wrapper) == "awaited"
        assert run(lambda: "no coroutine") == "no coroutine"

    def test_its_context_is_a_copy(self):
        async def body():
            before = state.get()
            state.set("changed")
            return before, await sync_to_async(state.get)()

        token = state.set("the caller's")
        try:
            assert run(body) == ("the caller's", "changed")
            assert state.get() == "the caller's"
        finally:
            state.reset(token)

    @pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
    def test_what_it_raises_is_raised(self, error):
        async def body():
            raise error("as it was told")

        with pytest.raises(error, match="as it was told"):
            run(body)

    def test_tasks_and_generators_that_it_leaves_are_ended(self):
        ended = []

        async def left(name):
            try:
                await forever()
            finally:
                ended.append(name)

        async def generated():
            try:
                yield 1
                yield 2
            finally:
                ended.append("generator")

        async def body():
            tasks.append(asyncio.create_task(left("task")))
            generators.append(generated())
            await anext(generators[0])
            await asyncio.sleep(0)

        tasks, generators = [], []
        run(body)

        assert sorted(ended) == ["generator", "task"]

    def test_threads_that_it_leaves_are_waited_for(self):
        ended = []

        def slow():
            time.sleep(0.2)
            ended.append(1)

        async def body():
            asyncio.get_running_loop().run_in_executor(None, slow)
            tasks.append(asyncio.create_task(sync_to_async(slow)()))
            await asyncio.sleep(0.05)

        tasks = []
        run(body)

        assert len(ended) == 2

    def test_sync_code_in_it_may_call_async_code(self):
        async def inner():
            await asyncio.sleep(0)
            return await sync_to_async(threading.get_ident)()

        def outer():
            return threading.get_ident(), async_to_sync(inner)()

        async def body():
            return await sync_to_async(outer)()

        first, second = run(body)
        assert first == second != threading.get_ident()


@pytest.mark.once
@pytest.mark.slow
class TestEnd:
    def ended(self, function, *, after=0.2):
        began = time.monotonic()
        with pytest.raises(RunTimeout, match="too long"), time_limit(after, message="too long"):
            run(function)
        return time.monotonic() - began

    def test_at_its_time_limit_it_is_cancelled_and_may_clean_up(self):
        told = []

        async def body():
            try:
                await forever()
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                told.append("cleaned up")
                raise

        assert self.ended(body) < LONG / 2
        assert told == ["cleaned up"]

    def test_what_replaces_the_cancellation_does_not_hide_it(self):
        async def body():
            try:
                await forever()
            finally:
                raise ValueError

        self.ended(body)

    def test_one_that_blocks_the_loop_is_interrupted(self):
        async def body():
            time.sleep(LONG)  # noqa: ASYNC251

        assert self.ended(body) < LONG / 2

    def test_one_that_blocks_the_loop_again_and_again_is_interrupted(self):
        async def body():
            for _ in range(3):
                try:
                    time.sleep(LONG)  # noqa: ASYNC251
                except RunTimeout:
                    continue
            await forever()

        assert self.ended(body) < LONG / 2

    def test_one_that_swallows_its_cancellation_is_abandoned(self):
        turns = []

        async def body():
            while True:
                turns.append(1)
                try:
                    await forever()
                except asyncio.CancelledError:
                    continue

        assert self.ended(body) < LONG / 2
        before = len(turns)
        time.sleep(0.05)
        assert len(turns) == before

    def test_its_subtasks_end_with_it(self):
        ended = []

        async def part():
            try:
                await forever()
            finally:
                ended.append(1)

        async def body():
            await asyncio.gather(part(), part(), return_exceptions=True)
            await forever()

        self.ended(body)
        assert len(ended) == 2

    def test_async_code_in_sync_code_in_it_is_cancelled(self):
        async def body():
            await sync_to_async(async_to_sync(forever))()

        assert self.ended(body) < LONG / 2

    def test_without_signals_it_is_cancelled_as_well(self):
        times = []
        thread = threading.Thread(target=lambda: times.append(self.ended(forever)))
        thread.start()
        thread.join(LONG)

        assert times[0] < LONG / 2

    @pytest.mark.parametrize("kind", ["waits", "blocks"])
    def test_a_signal_to_end_raises_interrupted(self, kind):
        async def waits():
            await forever()

        async def blocks():
            time.sleep(LONG)  # noqa: ASYNC251

        before = signal.signal(signal.SIGTERM, lambda *_: None)
        main = threading.main_thread().ident
        timer = threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGTERM])
        timer.start()
        try:
            with (
                Termination() as termination,
                pytest.raises(Interrupted),
                Interruptible(termination),
            ):
                run({"waits": waits, "blocks": blocks}[kind])
        finally:
            timer.join()
            signal.signal(signal.SIGTERM, before)


@pytest.mark.django_db(transaction=True)
class TestConnections:
    def test_the_orm_is_async_only(self):
        async def body():
            with pytest.raises(SynchronousOnlyOperation):
                Document.objects.count()
            await Document.objects.acreate(title="title")
            return await sync_to_async(Document.objects.count)()

        assert run(body) == Document.objects.count() == 1

    def test_connections_of_its_threads_are_closed(self):
        kept = []

        def ask():
            Document.objects.count()
            kept.append(connections["default"])

        async def body():
            await sync_to_async(ask)()
            await asyncio.to_thread(ask)

        run(body)

        assert connection not in kept
        assert [each.connection for each in kept] == [None, None]

    def test_a_transaction_that_it_leaves_is_undone(self):
        def begin():
            connection.set_autocommit(False)
            Document.objects.create(title="title")

        async def body():
            await sync_to_async(begin)()

        run(body)

        assert not Document.objects.exists()

    def test_in_an_open_transaction_it_sees_its_rows(self):
        from django.db import transaction

        async def body():
            return await Document.objects.acount()

        with transaction.atomic():
            Document.objects.create(title="title")
            assert run(body) == 1
