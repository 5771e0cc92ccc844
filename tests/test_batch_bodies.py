"""Bodies that take many rows at once: `@analysis(..., batch=64)`."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest

from autorun.analysis import Analysis, analysis
from autorun.declare.interruption import Termination
from autorun.dispatch.messages import longest
from autorun.dispatch.sizes import chunk_size
from autorun.exceptions import (
    ImproperAnalysis,
    NotApplicable,
    RetryLater,
    SmallerBatch,
)
from autorun.execution.calls import Portions
from autorun.execution.execute import execute
from autorun.execution.keeper import Keeper
from autorun.execution.work import Work
from autorun.models import Chunk, Failure, Node, Run
from autorun.state.counts import Progress
from autorun.state.leases import queued, start
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db


def make(count):
    Document.objects.bulk_create(Document(title=str(number)) for number in range(count))
    return list(Document.objects.order_by("pk"))


def batched(body, rows=64, **options):
    return declare(
        ANALYSIS=Analysis("Batched", "1.0", body, batch=rows), **{"BATCH_SIZE": 640, **options}
    )


def run(runner_class, **options):
    with installed(runner_class):
        runner_class().run()
        work_off(**options)
        return runner_class().progress()


class Calls:
    """A body that notes what it was called with, and fails on some values."""

    def __init__(self, *bad):
        self.bad = {str(value) for value in bad}
        self.made = []

    def body(self):
        def body(value: list[str]) -> list[str]:
            self.made.append(list(value))
            if found := self.bad.intersection(value):
                raise ValueError(f"cannot read {sorted(found)}")
            return [f"read {each}" for each in value]

        return body

    @property
    def sizes(self):
        return [len(each) for each in self.made]


def test_a_batch_body_takes_a_list_and_returns_one_as_long():
    documents = make(150)
    calls = Calls()

    assert run(batched(calls.body())) == Progress(succeeded=150)

    assert calls.sizes == [64, 64, 22]
    runs = current_runs()
    assert [runs[each.pk].outputs for each in documents] == [
        f"read {number}" for number in range(150)
    ]


@pytest.mark.faults(50)
@pytest.mark.parametrize("place", [0, 1, 31, 32, 62, 63])
def test_one_bad_row_costs_at_most_eight_calls_more_and_fails_alone(place):
    documents = make(64)
    calls = Calls(place)

    progress = run(batched(calls.body(), MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=63, failed=1)
    assert len(calls.made) <= 1 + 8
    failure = Failure.objects.get()
    assert failure.run.object_id == documents[place].pk
    assert failure.message == f"cannot read ['{place}']"
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(50)
def test_many_bad_rows_fail_each_with_its_reason_in_few_calls():
    make(64)
    bad = range(0, 60, 4)
    calls = Calls(*bad)

    progress = run(batched(calls.body(), MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=49, failed=15)
    assert {each.message for each in Failure.objects.all()} == {
        f"cannot read ['{number}']" for number in bad
    }
    assert len(calls.made) <= 127


def test_an_outage_holds_the_runner_up_and_fails_no_row():
    make(64)
    calls = Calls(*range(64))

    progress = run(batched(calls.body(), MAX_ATTEMPTS=1), rounds=1)

    assert progress == Progress(parked=64)


def test_an_exception_in_the_list_is_of_its_row_alone():
    documents = make(5)
    answers = [
        "good",
        ValueError("bad"),
        NotApplicable("no pixels"),
        RetryLater(30, "later"),
        {1, 2},
    ]

    progress = run(batched(lambda value: answers, MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=2, failed=1, not_applicable=1, postponed=1)
    assert Failure.objects.get().message == "bad"
    assert current_runs()[documents[2].pk].outputs == "no pixels"


def test_an_exception_class_in_the_list_means_the_same_as_if_raised():
    make(4)
    answers = [NotApplicable, KeyError, RetryLater, "good"]

    run(batched(lambda value: answers[: len(value)], MAX_ATTEMPTS=1))

    assert statuses() == [
        Run.Status.NOT_APPLICABLE,
        Run.Status.FAILED,
        Run.Status.FAILED,
        Run.Status.SUCCEEDED,
    ]
    kinds = Failure.objects.order_by("run__object_id").values_list("exception_class", flat=True)
    assert list(kinds) == ["KeyError", "autorun.exceptions.OutputError"]  # RetryLater needs seconds


def test_outputs_that_cannot_be_stored_fail_their_row_alone():
    make(3)

    progress = run(batched(lambda value: ["a", object(), "c"], MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=2, failed=1)
    assert "OutputError" in Failure.objects.get().exception_class


@pytest.mark.parametrize(
    "returned", [("a", "b"), np.array(["a", "b"]), np.array([[1.0, 2.0], [3.0, 4.0]])]
)
def test_tuples_and_arrays_are_lists(returned):
    make(2)

    assert run(batched(lambda value: returned)) == Progress(succeeded=2)


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        (None, "NoneType"),
        ("ab", "str"),
        ({"a": 1, "b": 2}, "dict"),
        ((each for each in "ab"), "generator"),
    ],
)
def test_what_is_not_a_list_is_named_after_one_call(returned, kind):
    make(2)
    calls = []

    def body(value):
        calls.append(value)
        return returned

    progress = run(batched(body, MAX_ATTEMPTS=1))

    assert progress == Progress(failed=2)
    assert len(calls) == 1
    failure = Failure.objects.first()
    assert failure.exception_class == "autorun.exceptions.OutputError"
    expected = f"Batched v1.0 returned {kind}, not a list. It takes 64 rows at once"
    assert failure.message.startswith(expected)


@pytest.mark.faults(50)
def test_a_list_of_the_wrong_length_fails_the_rows_at_fault():
    make(8)

    progress = run(batched(lambda value: [each for each in value if each != "3"], MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=7, failed=1)
    assert Failure.objects.get().message.startswith("Batched v1.0 returned 0 values for 1 row.")


def test_smaller_batch_halves_at_once_and_blames_nobody():
    make(64)
    sizes = []

    def body(value):
        sizes.append(len(value))
        if len(value) > 20:
            raise SmallerBatch
        return value

    assert run(batched(body)) == Progress(succeeded=64)

    assert sizes == [64, 32, 16, 16, 16, 16]
    assert not Failure.objects.exists()


def test_a_single_row_that_asks_for_a_smaller_batch_fails_with_a_sentence():
    make(2)

    def body(value):
        raise SmallerBatch

    assert run(batched(body, MAX_ATTEMPTS=1)) == Progress(failed=2)
    assert "for a single row" in Failure.objects.first().message


def test_retry_later_postpones_all_rows_of_the_call():
    make(100)

    def body(value):
        raise RetryLater(30, "too many requests", limit=True)

    assert run(batched(body)) == Progress(postponed=100)
    assert set(Chunk.objects.waiting().values_list("size", flat=True)) <= {64, 36, 100}


@pytest.mark.faults(50)
def test_a_representation_that_raises_fails_its_row_alone():
    make(8)

    def represent(self, row):
        if row.title == "3":
            raise LookupError("no file")
        return row.title

    calls = Calls()
    runner_class = batched(calls.body(), MAX_ATTEMPTS=1, get_instance_representation=represent)

    assert run(runner_class) == Progress(succeeded=7, failed=1)
    assert calls.sizes == [7]


def test_a_value_that_does_not_fit_the_annotation_fails_its_row_alone():
    Document.objects.bulk_create(Document(title=title) for title in ("1", "2", "x", "4"))

    def body(value: list[int]) -> list[int]:
        return value

    def represent(self, row):
        return int(row.title) if row.title.isdigit() else row.title

    runner_class = batched(body, get_instance_representation=represent)

    assert run(runner_class) == Progress(succeeded=3, failed=1)


def test_a_batch_body_gets_instances():
    make(3)

    def body(value: list[Document]) -> list[int]:
        return [each.pk for each in value]

    assert run(batched(body)) == Progress(succeeded=3)
    assert all(each.outputs == each.object_id for each in Run.objects.all())


def test_an_async_batch_body_is_awaited():
    make(3)

    async def body(value):
        await asyncio.sleep(0)
        return value

    assert run(batched(body)) == Progress(succeeded=3)


@pytest.mark.faults(50)
def test_the_time_limit_is_that_of_a_call_and_finds_the_row_that_hangs():
    make(8)

    def body(value):
        if "5" in value:
            time.sleep(30)
        return value

    progress = run(batched(body, TIMEOUT=0.1, MAX_ATTEMPTS=1))

    assert progress == Progress(succeeded=7, failed=1)
    assert "RunTimeout" in Failure.objects.get().exception_class


def test_retries_of_one_backoff_stay_together():
    make(64)
    calls = []

    def body(value):
        calls.append(len(value))
        return [ValueError("not yet")] * len(value) if len(calls) == 1 else value

    runner_class = batched(body, rows=16, BATCH_SIZE=16, MAX_ATTEMPTS=2)

    assert run(runner_class, retry_now=True) == Progress(succeeded=64)
    assert calls == [16] * 5


def test_chunks_are_multiples_of_a_batch(settings):
    make(1)
    runner_class = batched(lambda value: value, rows=64, BATCH_SIZE=None)
    with installed(runner_class):
        runner = runner_class()
        node = runner.get_node().pk
        assert chunk_size(runner, node) == 192  # a window is four chunks
        assert chunk_size(runner, node, seconds=0.002) == 192
        assert chunk_size(runner, node, seconds=10) == 64
        settings.AUTORUN = {"WINDOW": 40}
        assert chunk_size(runner, node) == 40
        Node.objects.update(run_seconds=1)
        settings.AUTORUN = {"TIMEOUT": 100}
        runner.run()
        assert longest(Chunk.objects.get()) == 700  # a call, and six halvings


@pytest.mark.faults(50)
def test_sigterm_gives_a_call_back_without_using_up_an_attempt():
    make(4)
    stopping = []

    def stop(value):
        if not stopping:
            stopping.append(value)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        return value

    runner_class = batched(stop)
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with installed(runner_class):
            runner_class().run()
            execute(Chunk.objects.queued().get().pk)
            assert statuses() == [Run.Status.PENDING] * 4
            work_off()
    finally:
        signal.signal(signal.SIGTERM, before)

    assert statuses() == [Run.Status.SUCCEEDED] * 4
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(50)
def test_a_call_that_ignores_its_limit_costs_an_attempt_and_each_row_is_tried_alone():
    make(3)
    runner_class = batched(lambda value: value, rows=2, TIMEOUT=0.1, MAX_ATTEMPTS=1)
    with installed(runner_class):
        runner_class().run()
        work = Work(
            start(queued(Chunk.objects.get().pk)), runner_class(), runner_class().get_analysis()
        )
        work.assign()
        call = work.next_call(Termination())

        assert Keeper(work, follow_up=list)._fail(call)

        waiting = Chunk.objects.exclude(state=Chunk.State.FINISHED)
        assert sorted(waiting.values_list("size", flat=True)) == [1, 1, 1]
        assert sorted(Run.objects.values_list("attempts", flat=True)) == [0, 1, 1]
        work_off()
        assert runner_class().progress() == Progress(succeeded=3)


@pytest.mark.parametrize("wrong", [0, -1, True, "64", 2.5, 10_001])
def test_a_batch_is_a_whole_number(wrong):
    with pytest.raises(ImproperAnalysis, match="batch must be an integer from 1 to 10,000"):
        analysis("Wrong", version="1.0", batch=wrong)


def test_calls_grow_again_after_many_bad_rows():
    portions = Portions(8)
    portions.raised(8)
    portions.blamed()
    portions.raised(8)
    assert (portions.next, portions.suspects) == (4, 8)
    portions.blamed()
    assert portions.next == 4
    portions.returned(4)
    assert portions.next == 8
