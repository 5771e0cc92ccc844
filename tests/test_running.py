"""`running()` in a body, and runs that are cancelled while they run."""

import asyncio
import threading
import time
from typing import Any

import pytest
from django.core.management import call_command

import autorun
from autorun.analysis import Analysis
from autorun.control.interventions import cancel_runs
from autorun.dispatch.releasing import release_everywhere
from autorun.exceptions import RunCancelled
from autorun.execution import keeper
from autorun.execution.execute import execute
from autorun.models import Chunk, Failure, Run
from autorun.state.clock import from_now
from autorun.upkeep.rescue import rescue_expired
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _quick_heartbeat(settings) -> None:
    settings.AUTORUN = {"HEARTBEAT": 0.1}


def execute_all() -> None:
    """As a worker does, outside of transactions, so that the keeper's thread sees the chunks."""
    release_everywhere()
    for chunk_id in Chunk.objects.queued().values_list("pk", flat=True):
        execute(chunk_id)


def cancel(*keys: int) -> int:
    return cancel_runs([list(Run.objects.current().filter(object_id__in=keys))])


def hang(seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_run_that_is_cancelled_while_it_runs_ends_without_an_attempt():
    first, second = (Document.objects.create(title=f"{n}") for n in range(2))
    ended: list[BaseException] = []

    def body(value: str) -> str:
        if value == "0":
            assert cancel(first.pk) == 1
            try:
                hang()
            except RunCancelled as error:
                ended.append(error)
                raise
        return value

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

        assert len(ended) == 1
        assert Run.objects.get(object_id=first.pk).status == Run.Status.CANCELLED
        assert Run.objects.get(object_id=first.pk).attempts == 0
        assert current_runs()[second.pk].status == Run.Status.SUCCEEDED
        assert not Failure.objects.exists()
        assert [*runner().pending()] == [first]
        assert runner().progress().total == 1


def test_a_body_that_is_told_has_time_to_clean_up():
    document = Document.objects.create(title="a")
    cleaned_up: list[int] = []

    def body(value: str) -> None:
        cancel(document.pk)
        try:
            hang()
        finally:
            time.sleep(0.5)  # several heartbeats
            cleaned_up.append(1)

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

    assert statuses() == [Run.Status.CANCELLED]
    assert cleaned_up == [1]


def test_a_result_is_current_again_if_its_rerun_is_cancelled_while_it_runs():
    document = Document.objects.create(title="a")
    is_rerun = threading.Event()

    def body(value: str) -> str:
        if is_rerun.is_set():
            cancel(document.pk)
            hang()
        return value

    with installed(runner := declare(body)):
        runner().run()
        execute_all()
        kept = Run.objects.get()
        is_rerun.set()
        runner().backfill(force=True)
        execute_all()

        assert current_runs() == {document.pk: kept}
        assert runner().progress().succeeded == runner().progress().total == 1


def test_a_run_of_a_running_chunk_that_has_not_started_never_does():
    documents = [Document.objects.create(title=f"{n}") for n in range(3)]
    began: list[str] = []

    def body(value: str) -> None:
        began.append(value)
        if value == "0":
            cancel(documents[1].pk)
            hang(0.5)

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

        assert began == ["0", "2"]
        assert runner().progress().succeeded == 2
        assert [*runner().pending()] == [documents[1]]


@pytest.mark.slow
def test_a_body_that_ignores_it_is_given_up(set_constants):
    set_constants(keeper, GRACE=0.5)
    document = Document.objects.create(title="a")

    def body(value: str) -> str:
        cancel(document.pk)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            try:
                time.sleep(0.05)
            except RunCancelled:
                assert autorun.running().is_cancelled()
        return value

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

        assert statuses() == [Run.Status.CANCELLED]
        assert not Chunk.objects.unfinished().exists()
        assert not Failure.objects.exists()


def test_an_async_body_is_cancelled():
    document = Document.objects.create(title="a")
    cleaned_up: list[int] = []

    async def body(value: str) -> None:
        await asyncio.to_thread(cancel, document.pk)
        try:
            await asyncio.sleep(20)
        finally:
            cleaned_up.append(autorun.running().key)

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

    assert statuses() == [Run.Status.CANCELLED]
    assert cleaned_up == [document.pk]


def test_one_of_several_calls_at_a_time_is_cancelled():
    first, *others = [Document.objects.create(title=f"{n}") for n in range(4)]
    cleaned_up: list[int] = []

    async def body(value: str) -> str:
        if value == "0":
            await asyncio.to_thread(cancel, first.pk)
            try:
                await asyncio.sleep(20)
            finally:
                cleaned_up.append(autorun.running().key)
        await asyncio.sleep(0.3)  # several heartbeats
        return value

    concurrent = Analysis("Wait", "1.0", body, concurrency=4)
    with installed(runner := declare(ANALYSIS=concurrent)):
        runner().run()
        execute_all()

        assert cleaned_up == [first.pk]
        assert Run.objects.get(object_id=first.pk).status == Run.Status.CANCELLED
        assert Run.objects.get(object_id=first.pk).attempts == 0
        assert {current_runs()[each.pk].attempts for each in others} == {1}
        assert runner().progress().succeeded == 3
        assert not Chunk.objects.unfinished().exists()
        assert not Failure.objects.exists()


@pytest.mark.parametrize("fails", [True, False])
def test_what_ends_before_its_worker_learns_of_it(settings, fails):
    settings.AUTORUN = {"HEARTBEAT": 15}
    document = Document.objects.create(title="a")

    def body(value: str) -> str:
        cancel(document.pk)
        return value if not fails else str(1 / 0)

    with installed(runner := declare(body, MAX_ATTEMPTS=1)):
        runner().run()
        execute_all()

        expected = Run.Status.CANCELLED if fails else Run.Status.SUCCEEDED
        assert statuses() == [expected]
        assert runner().progress().total == (0 if fails else 1)


def test_a_run_whose_worker_dies_before_it_learns_of_it_is_cancelled():
    Document.objects.create(title="a")
    with installed(runner := declare()):
        runner().run()
        Chunk.objects.update(state=Chunk.State.RUNNING, token=5, expires_at=from_now(-1))
        assert cancel(*current_runs()) == 1
        assert rescue_expired(at_most=5) == 1

        assert statuses() == [Run.Status.CANCELLED]
        assert not runner().progress().total


def test_the_command_cancels_what_is_running(capsys):
    Document.objects.bulk_create([Document(title="a"), Document(title="b")])

    def body(value: str) -> None:
        call_command("autorun", "cancel", "tests.EchoRunner", "--running")
        hang()

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

    assert statuses() == [Run.Status.CANCELLED] * 2
    assert "0 runs cancelled, 2 runs in progress will stop within " in capsys.readouterr().out
    call_command("autorun", "cancel", "tests.EchoRunner", "--running")
    assert capsys.readouterr().out.endswith(": 0 runs cancelled.\n")


def test_a_body_says_how_far_it_has_got():
    document = Document.objects.create(title="a")
    seen: list[Any] = []

    def body(value: str) -> None:
        run = autorun.running()
        seen.extend([run.key, run.attempt, run.run_id, run.is_cancelled()])
        run.progress(0.4, "registering")
        deadline = time.monotonic() + 20
        while Chunk.objects.get().doing is None and time.monotonic() < deadline:
            time.sleep(0.02)
        seen.append(runner().explain(document).reason)

    with installed(runner := declare(body)):
        runner().run()
        execute_all()

    run = Run.objects.get()
    assert run.status == Run.Status.SUCCEEDED
    assert seen[:4] == [document.pk, 1, run.pk, False]
    assert seen[4].endswith("40 % done: registering.")


def test_outside_of_a_run_there_is_nothing_to_say():
    run = autorun.running()
    run.progress(2, "nothing")

    assert (run.run_id, run.key, run.attempt, run.is_cancelled()) == (None, None, 1, False)


def test_nothing_is_said_of_a_run_that_is_over():
    Document.objects.create(title="a")
    kept: list[Any] = []
    with installed(runner := declare(lambda value: kept.append(autorun.running()))):
        runner().run()
        work_off()

    kept[0].progress(0.5)
    assert kept[0].is_cancelled()
    assert autorun.running().key is None
