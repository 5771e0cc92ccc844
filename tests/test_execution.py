"""Execution: runs from the moment a worker has them."""

import ctypes
import datetime as dt
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import repeat

import pytest
from django.db import OperationalError, connection
from django.db.models import F, Q
from django.test.utils import CaptureQueriesContext

from autorun import tasks
from autorun.control import interventions
from autorun.declare.interruption import Interrupted, Termination
from autorun.exceptions import LeaseLost
from autorun.execution import keeper as keeping, work as working
from autorun.execution.execute import execute, work_off as work_off_started
from autorun.execution.keeper import Keeper
from autorun.execution.results import Result, Tally, record
from autorun.execution.work import Work
from autorun.models import Chunk, Failure, Node, Run
from autorun.planning import batches
from autorun.state.clock import from_now
from autorun.state.counts import Progress
from autorun.state.leases import queued, start
from autorun.upkeep.rounds import upkeep
from tests.crashes import AWAY, failing_at
from tests.engine import current_runs, declare, installed, leased, offer, statuses, work_off
from tests.library.models import Document
from tests.waiting import until

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(4)]


def test_outputs_are_recorded(documents):
    runner = declare(ANALYSIS_CONFIGURATION={"factor": 2})
    with installed(runner):
        runner().run()
        work_off()

    run = current_runs()[documents[0].pk]
    assert run.outputs == {"value": "title 0", "factor": 2}
    assert run.attempts == 1
    assert abs(run.finished_at - dt.datetime.now(dt.UTC)) < dt.timedelta(minutes=1)


def test_a_message_delivered_five_times_runs_once(documents):
    calls = []
    runner = declare(lambda value: calls.append(value))
    with installed(runner):
        runner().run()
        chunk_id = Chunk.objects.get().pk
        for _ in range(5):
            execute(chunk_id)

    assert len(calls) == 4


def test_a_message_of_a_chunk_that_is_gone_does_nothing():
    execute(123)

    assert Run.objects.count() == 0


def test_a_failure_is_tried_again_and_then_failed_for_good(documents):
    def fail(value):
        if value == "title 1":
            raise ValueError(f"cannot read {value}")

    runner = declare(fail, MAX_ATTEMPTS=3, RETRY_BACKOFF=0)
    with installed(runner):
        runner().run()
        work_off()

        assert runner().progress().failed == 1
        assert runner().progress().succeeded == 3
        assert runner().run().planned == 0
    run = current_runs()[documents[1].pk]
    assert (run.status, run.attempts) == (Run.Status.FAILED, 3)
    failures = Failure.objects.filter(run=run).order_by("attempt")
    assert [failure.attempt for failure in failures] == [1, 2, 3]
    assert failures[0].exception_class == "ValueError"
    assert failures[0].message == "cannot read title 1"
    assert "raise ValueError" in failures[0].traceback


def test_a_retry_waits_for_its_backoff(documents):
    def fail(value):
        raise ValueError

    runner = declare(fail, RETRY_BACKOFF=100)
    with installed(runner):
        runner().run()
        work_off()
        waiting = Chunk.objects.get(state=Chunk.State.WAITING)
        assert waiting.size == 4
        Chunk.objects.filter(pk=waiting.pk).update(not_before=from_now(-1))
        work_off()

    assert set(Run.objects.values_list("attempts", flat=True)) == {2}


def test_a_broken_backoff_costs_no_attempt(documents, caplog):
    def fail(value):
        raise ValueError

    def broken(self, attempt):
        raise LookupError("no such backoff")

    runner = declare(fail, get_retry_backoff=broken, MAX_ATTEMPTS=2)
    with installed(runner):
        runner().run()
        work_off()

    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert "no such backoff" in caplog.text


def test_backoff_doubles_is_jittered_and_capped():
    runner = declare(RETRY_BACKOFF=10)()

    for attempt, seconds in [(1, 10), (2, 20), (3, 40), (30, 3600)]:
        assert 0.75 * seconds <= runner.get_retry_backoff(attempt) <= 1.25 * seconds


def test_retry_runs_failed_rows_again(documents):
    broken = True

    def sometimes(value):
        if broken:
            raise ValueError

    runner = declare(sometimes, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()
        broken = False
        batch = runner().retry(Document.objects.filter(title="title 1"))
        assert batch.planned == 1
        assert runner().retry().planned == 3
        work_off()

        assert runner().progress().succeeded == 4
        assert runner().progress().failed == 0


def test_failed_runs_outside_of_the_base_query_are_retried_by_key(documents):
    is_broken = True

    def fail(value):
        if is_broken:
            raise ValueError(value)

    runner = declare(fail, MAX_ATTEMPTS=1, BASE_QUERY=Q(title="title 0"))
    with installed(runner):
        runner().run(Document.objects.all())
        work_off()
        number = Run.objects.filter(status=Run.Status.FAILED).count()
        for _ in range(2):  # what was retried, and failed again, as well
            retried = interventions.retry_runs([list(Run.objects.all())])
            (batch,) = retried.batches
            tasks.backfill(batch.runner, batch=batch.pk)
            work_off()
            is_broken = False
        batch.refresh_from_db()

        assert (retried.runs, batch.candidates, batch.planned) == (number, number, number)
        assert runner().progress().succeeded == number == Document.objects.count()


def test_retry_leaves_rows_that_have_changed_to_what_makes_them_pending(documents):
    def fail(value):
        raise ValueError

    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()
        Document.objects.filter(title="title 1").update(title="changed")

        assert runner().retry().planned == 3
        assert runner().run().planned == 1


def test_force_runs_again_what_has_succeeded(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()

        assert runner().backfill(force=True).planned == 4
        work_off()
        assert runner().progress().succeeded == 4

    assert statuses() == [Run.Status.SUCCEEDED] * 8


def test_a_broken_hook_costs_no_run_an_attempt(documents):
    broken = False

    def filter_queryset(self, queryset, log_level=20):
        if broken:
            raise LookupError("no such shelf")
        return queryset

    runner = declare(filter_queryset=filter_queryset, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        broken = True
        work_off()
        broken = False
        parked = Chunk.objects.parked().get()
        assert "filter_queryset() raises LookupError: no such shelf" in parked.reason
        Chunk.objects.parked().update(not_before=from_now(-1))
        upkeep(in_any_case=True)
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 4
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


def test_a_deleted_rows_run_is_cancelled_and_makes_room(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        pk = documents[0].pk
        documents[0].delete()
        work_off()
        assert Run.objects.get(object_id=pk).status == Run.Status.CANCELLED
        Document.objects.create(pk=pk, title="again")
        assert runner().run().planned == 1


def test_a_row_that_no_longer_passes_the_filter_is_not_run(documents):
    calls = []
    runner = declare(
        lambda value: calls.append(value),
        filter_queryset=lambda self, queryset, log_level=20: queryset.exclude(state="hidden"),
    )
    with installed(runner):
        runner().run()
        Document.objects.filter(title="title 0").update(state="hidden")
        work_off()

    assert sorted(calls) == ["title 1", "title 2", "title 3"]


def test_a_row_changed_before_its_run_starts_runs_once_as_it_is_now(documents):
    calls = []
    runner = declare(lambda value: calls.append(value))
    with installed(runner):
        runner().run()
        Document.objects.filter(title="title 0").update(title="new")
        work_off()

        assert runner().run().planned == 0
    assert sorted(calls) == ["new", "title 1", "title 2", "title 3"]


def test_a_row_changed_while_it_runs_gets_exactly_one_follow_up(documents):
    calls = []

    def change(value):
        calls.append(value)
        Document.objects.filter(title="title 0").update(title="new")
        if value == "title 0":
            assert runner().run(Document.objects.filter(title="new")).planned == 1
        return value

    runner = declare(change)
    with installed(runner):
        runner().run(Document.objects.filter(title="title 0"))
        work_off()
        later = Chunk.objects.filter(state=Chunk.State.WAITING)
        later.update(not_before=None)
        work_off()

        assert runner().run(Document.objects.filter(title="new")).planned == 0
        assert runner().progress().succeeded == 1
    assert calls == ["title 0", "new"]
    runs = Run.objects.filter(object_id=documents[0].pk).order_by("pk")
    assert [(run.outputs, run.is_current) for run in runs] == [("title 0", None), ("new", True)]


def test_a_follow_up_waits_while_the_older_run_is_at_work(documents):
    seen = []

    def change(value):
        if value == "title 0":
            Document.objects.filter(title="title 0").update(title="new")
            runner().run()
            for chunk_id in Chunk.objects.filter(state=Chunk.State.QUEUED).values_list("pk"):
                execute(chunk_id[0])
            seen.append(Run.objects.filter(status=Run.Status.SUCCEEDED).count())

    runner = declare(change)
    with installed(runner):
        runner().run(Document.objects.filter(title="title 0"))
        work_off()

    assert seen == [3]
    assert Chunk.objects.get(state=Chunk.State.WAITING).not_before is not None


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"a": {"b": object()}}, 'outputs["a"]["b"]'),
        ({"mean": float("nan")}, 'outputs["mean"]'),
        ({"text": "x" * 2_000_000}, "MAX_OUTPUT_BYTES"),
        ({"text": "a\x00b"}, 'outputs["text"]'),
    ],
)
def test_outputs_that_cannot_be_stored_fail_that_run_only(documents, outputs, words):
    runner = declare(lambda value: outputs if value == "title 0" else value, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 3)
    assert words in Failure.objects.get().message


@pytest.mark.parametrize("leave", [sys.exit, lambda: exec("raise KeyError('x')")])
def test_a_body_that_leaves_in_any_way_fails_alone(documents, leave):
    def body(value):
        if value == "title 0":
            leave()

    runner = declare(body, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 3)


class Nasty(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "error",
    [ValueError("a\x00b"), ValueError("\ud800"), ValueError("x" * 5_000_000), Nasty()],
    ids=["nul", "surrogate", "huge", "nasty"],
)
def test_whatever_a_body_throws_is_recorded(documents, error):
    def fail(value):
        raise error

    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run(Document.objects.filter(title="title 0"))
        work_off()

    failure = Failure.objects.get()
    assert type(error).__name__ in failure.exception_class
    assert len(failure.message) <= 20_100


def test_a_body_that_takes_too_long_is_stopped(documents):
    def hang(value):
        if value == "title 0":
            while True:
                time.sleep(0.01)

    runner = declare(hang, TIMEOUT=0.2, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 3)
    assert "TIMEOUT" in Failure.objects.get().message


def test_a_keeper_outlives_an_error(documents, set_constants, caplog):
    raised = iter([ValueError("unexpected"), SystemExit(), KeyboardInterrupt(), LeaseLost()])

    class Faulty(Keeper):
        def _check(self):
            raise next(raised)

    set_constants(keeping, INTERVAL=0.01)
    runner = declare()
    with installed(runner):
        runner().run()
        lease = start(queued(Chunk.objects.get().pk))
        keeper = Faulty(Work(lease, runner(), runner().get_analysis()), follow_up=list)
        thread = threading.Thread(target=keeper._keep)
        thread.start()
        thread.join(5)

    assert not thread.is_alive()
    assert next(raised, None) is None
    with pytest.raises(LeaseLost):  # nothing more of it is begun
        keeper.work.next_call(Termination())
    assert caplog.text.count("its keeper continues") == 3


@pytest.mark.django_db(transaction=True)
def test_a_keeper_in_whose_thread_a_body_raises_keeps_the_lease(settings, caplog):
    settings.AUTORUN = {"HEARTBEAT": 0.1}

    def raise_in_keeper(value):
        (keeper,) = (each for each in threading.enumerate() if each.name == "autorun-keeper")
        raise_in = ctypes.pythonapi.PyThreadState_SetAsyncExc
        assert raise_in(ctypes.c_ulong(keeper.ident), ctypes.py_object(SystemExit)) == 1
        until(lambda: "its keeper continues" in caplog.text)
        before = Chunk.objects.get().expires_at
        until(lambda: Chunk.objects.get().expires_at > before)

    Document.objects.create(title="a")
    runner = declare(raise_in_keeper)
    with installed(runner):
        runner().run()
        work_off()

        assert runner().progress().succeeded == 1


def releases_fail():
    """A block in which the database is away whenever chunks are claimed."""
    return failing_at("dispatch.claimed", repeat(OperationalError("away")))


@pytest.mark.django_db(transaction=True)
def test_a_run_that_is_given_up_is_followed_up_although_nothing_could_be_released(
    documents, settings
):
    settings.AUTORUN = {"WINDOW": 1}
    followed_up = []
    runner = declare(TIMEOUT=0.1, MAX_ATTEMPTS=1, BATCH_SIZE=1)
    with installed(runner):
        runner().run(Document.objects.filter(title__in=("title 0", "title 1")))
        lease = start(Chunk.objects.queued().get())
        work = Work(lease, runner(), runner().get_analysis())
        work.assign()
        call = work.next_call(Termination())

        with releases_fail():
            assert Keeper(work, follow_up=lambda: followed_up.append(True))._fail(call)

    assert followed_up == [True]
    assert statuses(object_id=documents[0].pk) == [Run.Status.FAILED]


def test_what_cannot_be_released_ends_nothing_but_that(documents, settings, caplog):
    settings.AUTORUN = {"WINDOW": 4}
    runner = declare(BATCH_SIZE=4)
    with installed(runner):
        runner().run()
        Document.objects.create(title="waits")
        runner().run()
        with releases_fail():
            execute(Chunk.objects.queued().get().pk)

        assert runner().progress().succeeded == 4
    assert "releasing more failed after a chunk" in caplog.text


def test_sigterm_gives_the_chunk_back_without_using_up_an_attempt(documents):
    stopping = []

    def stop(value):
        if value == "title 1" and not stopping:
            stopping.append(value)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    runner = declare(stop, BATCH_SIZE=4)
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with installed(runner):
            runner().run()
            work_off()
            assert runner().progress().succeeded == 4
    finally:
        signal.signal(signal.SIGTERM, before)

    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert Failure.objects.count() == 0


@pytest.mark.parametrize(
    ("error", "recorded"), [(KeyboardInterrupt, "KeyboardInterrupt"), (Interrupted, "RuntimeError")]
)
def test_an_interrupt_that_nothing_asked_for_is_the_bodys_failure(documents, error, recorded):
    def body(value):
        if value == "title 1":
            raise error

    runner = declare(body, BATCH_SIZE=4, MAX_ATTEMPTS=2)
    with installed(runner):
        runner().run()
        work_off(retry_now=True)

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 3)
    assert set(Failure.objects.values_list("exception_class", flat=True)) == {recorded}


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also if a shell in the background has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("swallow", [(), BaseException])
def test_ctrl_c_ends_who_works_a_chunk_off_without_using_up_an_attempt(documents, ctrl_c, swallow):
    calls = []

    def interrupt(value):
        calls.append(value)
        with suppress(swallow):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)

    runner = declare(interrupt, BATCH_SIZE=4)
    with installed(runner):
        runner().run()
        with pytest.raises(KeyboardInterrupt):
            work_off()

    assert calls == ["title 0"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert Run.objects.filter(status=Run.Status.PENDING, attempts=0).count() == 4 - bool(swallow)
    assert not Chunk.objects.filter(state=Chunk.State.RUNNING).exists()


def test_a_chunk_is_started_once(documents):
    runner = declare()
    with installed(runner):
        lease = leased(runner)

        assert start(lease.chunk) is None


def test_runs_cancelled_as_their_chunk_is_started_are_counted(documents):
    runner = declare()
    with installed(runner):
        batch = runner().run()
        as_read = queued(Chunk.objects.get().pk)
        interventions.cancel_runs([list(Run.objects.order_by("pk")[:1])])

        work_off_started(Work(start(as_read), runner(), runner().get_analysis()))

    assert batches.counts(batch) == batches.BatchCounts(succeeded=3, failed=0, cancelled=1, left=0)


def test_a_failed_run_is_ignored_while_its_chunk_is_worked_on(documents, set_constants):
    set_constants(working, WRITE_EVERY=0)

    def body(value):
        if value == "title 0":
            raise ValueError
        if value == "title 2":
            assert (
                interventions.ignore_runs([list(Run.objects.filter(status=Run.Status.FAILED))]) == 1
            )

    runner = declare(body, MAX_ATTEMPTS=1)
    with installed(runner):
        batch = runner().run()
        work_off()

        assert runner().progress() == Progress(succeeded=3, ignored=1)
    assert batches.counts(batch) == batches.BatchCounts(succeeded=3, failed=0, cancelled=1, left=0)


def test_a_worker_that_lost_its_lease_writes_nothing(documents):
    runner = declare()
    with installed(runner):
        lease = leased(runner)
        Chunk.objects.update(token=F("token") + 1)
        run = Run.objects.first()
        result = Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, '"zombie"')

        with pytest.raises(LeaseLost):
            record(lease, [result], Tally(), size=1, is_last=True)

    assert statuses() == [Run.Status.PENDING] * 4
    assert Chunk.objects.get().succeeded == 0


@pytest.mark.parametrize(
    ("run_seconds", "sizes"), [(0.001, [1, 4, 4, 4, 4, 4, 4, 4, 2]), (None, [1] * 31)]
)
def test_one_slow_row_leaves_its_neighbours_in_chunks_that_suit_them(run_seconds, sizes):
    Document.objects.bulk_create(Document(title=f"title {number}") for number in range(31))
    runner = declare()
    with installed(runner):
        Node.objects.filter(pk=runner().get_node().pk).update(run_seconds=run_seconds)
        runner().run()
        lease = start(queued(Chunk.objects.get().pk))
        work = Work(lease, runner(), runner().get_analysis())
        work.assign()
        work.next_call(Termination())
        work.began_at -= 3
        work.hand_over()

    left = Chunk.objects.exclude(pk=lease.chunk.pk).order_by("pk").values_list("size", flat=True)
    assert [1, *left] == sizes


def test_a_hand_over_that_the_database_refuses_loses_no_run(documents):
    works = []

    def body(value):
        if value == "title 1":
            with failing_at("finish.updated", [AWAY]), pytest.raises(OperationalError):
                works[0].hand_over()

    runner = declare(body)
    with installed(runner):
        runner().run()
        lease = start(queued(Chunk.objects.get().pk))
        works.append(Work(lease, runner(), runner().get_analysis()))
        work_off_started(works[0])

        assert runner().progress().succeeded == 4
    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_a_hand_over_that_arrived_without_an_answer_is_not_run_here_too(documents, monkeypatch):
    works, calls = [], []

    def arrives_without_an_answer(*args, **kwargs):
        record(*args, **kwargs)
        raise OperationalError("server closed the connection unexpectedly")

    def body(value):
        calls.append(value)
        if value == "title 1":
            with monkeypatch.context() as patch:
                patch.setattr("autorun.execution.work.record", arrives_without_an_answer)
                with pytest.raises(OperationalError):
                    works[0].hand_over()

    runner = declare(body)
    with installed(runner):
        batch = runner().run()
        lease = start(queued(Chunk.objects.get().pk))
        works.append(Work(lease, runner(), runner().get_analysis()))
        work_off_started(works[0])
        work_off()

        assert sorted(calls) == [f"title {n}" for n in range(4)]
        assert runner().progress().succeeded == runner().progress().total == 4
    assert batches.counts(batch) == batches.BatchCounts(4, 0, 0, left=0)


def test_results_of_runs_that_were_handed_over_without_an_answer_are_left_out(documents):
    runner = declare()
    with installed(runner):
        batch = runner().run()
        lease = start(queued(Chunk.objects.get().pk))
        runs = list(Run.objects.order_by("pk"))
        done = [Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, "1") for run in runs]
        moved = [Result.moved(run) for run in runs]
        record(lease, [done[0], *moved[2:]], Tally(), size=1, is_last=False)

        tally = record(lease, [done[0], done[1], done[2], moved[3]], Tally(), size=2, is_last=True)

        assert (tally.succeeded, tally.moved) == (2, 2)
        assert batches.counts(batch) == batches.BatchCounts(2, 0, 0, left=2)
        work_off()
        assert runner().progress().succeeded == runner().progress().total == 4
    assert not Chunk.objects.annotate(left=Chunk.RUNS_LEFT).exclude(left=0).exists()


def test_results_recorded_twice_count_once(documents):
    runner = declare()
    with installed(runner):
        lease = leased(runner)
        run = Run.objects.first()
        result = Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, "1")
        for _ in range(2):
            record(lease, [result], Tally(), size=1, is_last=True)

    assert Chunk.objects.get().succeeded == 1


def test_a_chunk_whose_analysis_is_gone_is_parked_with_the_reason(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        chunk_id = Chunk.objects.get().pk
    offer(chunk_id)

    chunk = Chunk.objects.get()
    assert chunk.state == Chunk.State.PARKED
    assert "EchoRunner" in chunk.reason
    assert statuses() == [Run.Status.PENDING] * 4


def test_a_chunk_that_a_worker_cannot_run_is_requeued_for_one_that_can(documents, sent):
    """While a new version is rolled out, the next message may reach a worker that has it."""
    runner = declare()
    with installed(runner):
        runner().run()
        chunk_id = Chunk.objects.get().pk
    execute(chunk_id)

    (message,) = sent
    assert (message.args, message.time_limit) == ((chunk_id,), None)
    assert Chunk.objects.get().state == Chunk.State.QUEUED
    assert Chunk.objects.get().publications == 2
    with installed(runner):
        execute(chunk_id)
    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_an_urgent_chunk_that_a_worker_cannot_run_is_left_as_it_is(documents):
    known, unknown = declare(TITLE="Known"), declare(NAME="UnknownRunner", TITLE="Unknown")
    with installed(known):
        known().run()
        with installed(unknown):
            unknown().run()
        urgent, other = Chunk.objects.get(runner="tests.UnknownRunner"), Chunk.objects.first()
        Chunk.objects.filter(pk=urgent.pk).update(priority=Chunk.Priority.LIVE)
        before = Chunk.objects.filter(pk=urgent.pk).values().get()
        execute(other.pk)

    assert Chunk.objects.filter(pk=urgent.pk).values().get() == before
    assert Chunk.objects.get(pk=other.pk).state == Chunk.State.FINISHED


def test_runs_of_an_older_version_run_under_that_version(documents):
    one = declare(lambda value: "one", VERSION="1.0")
    two = declare(lambda value: "two", VERSION="2.0")
    with installed(one):
        one().run()
        with installed(two):
            work_off()

    assert set(Run.objects.values_list("outputs", flat=True)) == {"one"}


def test_an_urgent_chunk_goes_before_the_one_a_message_is_about(documents):
    calls = []
    runner = declare(lambda value: calls.append(value), BATCH_SIZE=1)
    with installed(runner):
        runner().backfill(Document.objects.filter(title="title 0"))
        backfilled = Chunk.objects.filter(state=Chunk.State.QUEUED).first().pk
        runner().run(Document.objects.filter(title="title 3"))
        execute(backfilled)

    assert calls[0] == "title 3"
    assert len(calls) == 2


@pytest.mark.parametrize("timeout", [3600, None])
def test_an_urgent_chunk_that_may_outlast_the_message_waits_for_its_own(documents, timeout):
    short = declare(TIMEOUT=1, NAME="ShortRunner", TITLE="Short")
    long = declare(TIMEOUT=timeout, NAME="LongRunner", TITLE="Long")
    with installed(short, long):
        short().backfill()
        long().run()
        backfilled, urgent = (Chunk.objects.get(runner=each.get_label()) for each in (short, long))
        execute(backfilled.pk)

    backfilled.refresh_from_db()
    urgent.refresh_from_db()
    assert (backfilled.state, urgent.state) == (Chunk.State.FINISHED, Chunk.State.QUEUED)


def test_a_chunk_delayed_by_urgent_ones_for_too_long_is_sent_again(documents, settings, sent):
    settings.AUTORUN = {"LEASE": 0.5}
    runner = declare(lambda value: time.sleep(0.6), BATCH_SIZE=1)
    with installed(runner):
        runner().backfill(Document.objects.filter(title="title 0"))
        backfilled = Chunk.objects.filter(state=Chunk.State.QUEUED).first()
        runner().run(Document.objects.filter(title="title 3"))
        execute(backfilled.pk)

    assert [message.args for message in sent] == [(backfilled.pk,)]
    assert statuses().count(Run.Status.SUCCEEDED) == 1


def test_the_nodes_run_time_is_measured(documents):
    runner = declare(lambda value: time.sleep(0.01))
    with installed(runner):
        runner().run()
        work_off()

        assert 0.01 <= runner().get_node().run_seconds < 1


@pytest.mark.parametrize("async_body", [True])
def test_async_bodies_run(documents, async_body):
    async def body(value):
        return {"value": value}

    runner = declare(body)
    with installed(runner):
        runner().run()
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_recording_successes_leaves_the_indexed_columns_of_runs_alone(documents):
    """SQLite would write their indexes anew, although the values are the same."""
    runner = declare(lambda value: None)

    with installed(runner), CaptureQueriesContext(connection) as queries:
        runner().run()
        work_off()

    changes = [each["sql"].partition("build_id")[0].rpartition(" SET ")[2] for each in queries]
    [recorded] = [each for each in changes if "s.new_outputs" in each]
    assert "chunk_id =" not in recorded
    assert "is_current =" not in recorded
    assert statuses() == [Run.Status.SUCCEEDED] * 4
