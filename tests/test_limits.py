"""LIMITS: runs at once and calls in a time, over the runners that share a limit."""

import datetime as dt
import math
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from autorun.analysis import Analysis
from autorun.declare import registry
from autorun.declare.nodes import node_of
from autorun.dispatch.limiting import (
    Pace,
    calls_at_once,
    forget_clocks,
    hold_back,
    reserve,
    shared,
)
from autorun.dispatch.releasing import release, release_after, release_everywhere
from autorun.dispatch.room import SPARE_CHUNKS
from autorun.dispatch.sizes import chunk_size
from autorun.execution import execute as execution
from autorun.execution.execute import execute
from autorun.limits import Limit
from autorun.models import Chunk, Node, Pulse, Run
from autorun.observe.doctor import backlog
from autorun.observe.held_up import limits_in_use
from autorun.runner import QuerySetRunner
from autorun.state import pulses
from tests.crashes import armed
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(10)]


@pytest.fixture
def limits(settings):
    """`limits(openai=Limit(...))` sets them."""

    def change(**limits: Limit) -> None:
        settings.AUTORUN = {"LIMITS": limits}

    return change


def limited(name: str = "EchoRunner", **options: Any) -> type[QuerySetRunner]:
    """A runner with the limit, and a node of its own."""
    return declare(NAME=name, TITLE=name, LIMIT="openai", **options)


def chunks_waiting(runner: type[QuerySetRunner], number: int, **options: Any) -> Node:
    node = node_of(runner())
    for _ in range(number):
        Chunk.objects.create(node=node, runner=runner().label, **{"size": 1} | options)
    return node


def queued(node: Node) -> int:
    return Chunk.objects.queued().of(node).count()


def test_a_time_is_moved_on_from_itself_or_from_now(django_assert_num_queries):
    with django_assert_num_queries(1):
        assert pulses.move_on("rate", 2) == pytest.approx(2, abs=0.2)
    assert pulses.move_on("rate", 0.5) == pytest.approx(2.5, abs=0.3)
    pulses.note("rate", pulses.from_now(-100))
    assert pulses.move_on("rate", 3) == pytest.approx(3, abs=0.2)
    assert pulses.move_on("rate", -1) == pytest.approx(2, abs=0.3)
    assert abs((Pulse.objects.get().beat_at - pulses.beat_of("rate")).total_seconds()) == 0


def test_a_later_time_that_was_noted_stays():
    pulses.note_at_least("held", pulses.from_now(60))
    pulses.note_at_least("held", pulses.from_now(30))

    assert pulses.move_on("held", 0) == pytest.approx(60, abs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "limits nothing"),
        ({"parallel": 0}, "parallel is 0"),
        ({"parallel": True}, "parallel is True"),
        ({"rate": "3000/x"}, "rate is '3000/x'"),
        ({"rate": "-1/m"}, "rate is '-1/m'"),
        ({"rate": "0/m"}, "rate is '0/m'"),
        ({"rate": 50}, "rate is 50"),
    ],
)
def test_a_limit_that_is_none_says_what_to_write(options, message):
    with pytest.raises(ValueError, match=message) as raised:
        Limit(**options)

    assert "Write Limit(" in str(raised.value)


def test_a_limit_holds_over_the_runners_that_name_it(limits):
    limits(openai=Limit(parallel=3))
    one, other, free = limited("OneRunner"), limited("OtherRunner"), declare(TITLE="Free")
    with installed(one, other, free):
        nodes = [chunks_waiting(each, 4) for each in (one, other, free)]
        for node in nodes:
            release(node.pk)

        assert [queued(node) for node in nodes] == [2, 1, 2]
        Chunk.objects.filter(state=Chunk.State.QUEUED).update(state=Chunk.State.RUNNING)
        assert release_everywhere() == 2  # of the free one
        assert [queued(node) for node in nodes[:2]] == [0, 0]


def test_a_smaller_max_parallel_holds_within_a_limit(limits):
    limits(openai=Limit(parallel=3))
    with installed(small := limited(MAX_PARALLEL=1)):
        assert release(chunks_waiting(small, 4).pk).chunks == 1


def test_a_limit_that_is_changed_counts_at_the_next_release(limits):
    limits(openai=Limit(parallel=1))
    with installed(runner := limited()):
        node = chunks_waiting(runner, 4)
        assert [release(node.pk).chunks for _ in range(2)] == [1, 0]

        limits(openai=Limit(parallel=2))
        assert [release(node.pk).chunks for _ in range(2)] == [1, 0]


def test_a_saved_row_of_another_runner_gets_the_next_share(limits):
    limits(openai=Limit(parallel=2))
    backfilled, saved = limited("BackfilledRunner"), limited("SavedRunner")
    with installed(backfilled, saved):
        first = chunks_waiting(backfilled, 10)
        release(first.pk)
        second = chunks_waiting(saved, 1, priority=Chunk.Priority.LIVE)
        done = Chunk.objects.queued().first()
        Chunk.objects.filter(pk=done.pk).update(state=Chunk.State.FINISHED)

        assert release(first.pk).chunks == 0
        release_after(done)
        assert (queued(first), queued(second)) == (1, 1)


@pytest.mark.parametrize("not_waiting", ["paused", "held up", "due later"])
def test_no_share_is_kept_for_a_saved_row_that_cannot_start(limits, not_waiting):
    limits(openai=Limit(parallel=1))
    backfilled, saved = limited("BackfilledRunner"), limited("SavedRunner")
    with installed(backfilled, saved):
        node = chunks_waiting(saved, 1, priority=Chunk.Priority.LIVE)
        if not_waiting == "paused":
            Node.objects.filter(pk=node.pk).update(paused_at=timezone.now())
        elif not_waiting == "held up":
            chunks_waiting(saved, 1, state=Chunk.State.PARKED, not_before=timezone.now())
        else:
            Chunk.objects.update(not_before=timezone.now() + dt.timedelta(hours=1))

        assert release(chunks_waiting(backfilled, 10).pk).chunks == 1


def test_runners_that_share_a_limit_take_turns(limits):
    limits(openai=Limit(parallel=1))
    one, other = limited("OneRunner"), limited("OtherRunner")
    with installed(one, other):
        nodes = [chunks_waiting(each, 30) for each in (one, other)]
        release(nodes[0].pk)
        done = Counter[int]()
        for _ in range(30):
            chunk = Chunk.objects.queued().get()
            done[chunk.node_id] += 1
            Chunk.objects.filter(pk=chunk.pk).update(state=Chunk.State.FINISHED)
            release_after(chunk)

        assert min(done[node.pk] for node in nodes) > 3


def test_no_more_goes_out_than_a_rate_allows_soon(limits):
    limits(openai=Limit(rate="20/s"))
    with installed(runner := limited()):
        node = chunks_waiting(runner, 20, size=5)

        assert release(node.pk).chunks == SPARE_CHUNKS
        Chunk.objects.queued().update(state=Chunk.State.RUNNING)
        reserve(shared("openai"), 300)
        assert release(node.pk).chunks == 0
        reserve(shared("openai"), -300)
        assert release(node.pk).chunks == 2 * SPARE_CHUNKS


def test_a_limit_that_is_held_back_lets_nothing_out(limits):
    limits(openai=Limit(parallel=20))
    one, other = limited("OneRunner"), limited("OtherRunner")
    with installed(one, other):
        hold_back(one(), 60)

        assert release(chunks_waiting(one, 1).pk).chunks == 0
        assert release(chunks_waiting(other, 1).pk).chunks == 0
        forget_clocks()
        assert release_everywhere() == 2


def test_a_chunk_takes_no_longer_than_a_rate_allows(limits):
    limits(openai=Limit(rate="5/s"))
    with installed(declare(), limited("LimitedRunner"), limited("LargeRunner", BATCH_SIZE=100)):
        sizes = [
            chunk_size(registry.get(f"tests.{name}"), 0, seconds=0.001)
            for name in ("EchoRunner", "LimitedRunner", "LargeRunner")
        ]

    assert sizes == [250, 5, 5]


def test_a_limit_costs_one_statement_a_chunk(limits, documents, set_constants):
    limits(openai=Limit(rate="1000/s"))
    # On a busy machine the time of a run changes enough to be written.
    set_constants(execution, WORTH_WRITING=math.inf)
    numbers = []
    for runner in (declare(), limited("LimitedRunner")):
        with installed(runner):
            runner().run()
            work_off()  # what is done once in a process
            Document.objects.bulk_create([Document(title="new") for _ in range(10)])
            runner().run()
            chunk = Chunk.objects.queued().get()
            with CaptureQueriesContext(connection) as queries:
                execute(chunk.pk)
            numbers.append(len(queries))
            assert not runner().progress().unfinished

    assert numbers[1] - numbers[0] == 1


def test_calls_start_as_far_apart_as_the_rate_says(limits, documents):
    limits(openai=Limit(rate="50/s"))
    began: list[float] = []

    def note(value: Any) -> None:
        began.append(time.monotonic())

    with installed(runner := limited(function=note)):
        runner().run()
        execute(Chunk.objects.queued().get().pk)

        assert runner().progress().succeeded == 10
    assert began[-1] - began[0] > 0.17
    assert reserve(shared("openai"), 0) < 0.1  # no more is reserved than was called


@pytest.mark.parametrize(("rate", "most"), [("10/s", 11), ("300/s", 306), ("600/m", 612)])
def test_no_more_calls_start_within_the_unit_of_a_rate_than_it_says(limits, rate, most):
    limits(openai=Limit(rate=rate))
    with installed(limited()):
        bound = shared("openai")
        pulses.note(bound.clock, pulses.from_now(-100))  # nobody has called for long
        starts, latest = [], 0.0
        for pace in (paces := [Pace(bound) for _ in range(4)]) * (most // 4 + 10):
            asked_at = time.monotonic()
            starts.append(pace.take_turn(1_000) + time.monotonic())
            latest = max(
                latest, time.monotonic() - asked_at
            )  # by as much it may seem to start late
            if pace is paces[0]:
                pace.take_turn(0)  # it has reserved more than it needs

    span = bound.unit_seconds - latest
    within = [sum(first <= each < first + span for each in starts) for first in starts]
    assert most // 2 < max(within) <= most < len(starts)


def test_a_chunk_that_would_wait_long_in_a_worker_waits_in_the_database(limits, documents):
    limits(openai=Limit(parallel=20))
    with installed(runner := limited()):
        runner().run()
        hold_back(runner(), 600)
        execute(Chunk.objects.queued().get().pk)

        assert runner().progress().waiting == 10
        until = Chunk.objects.waiting().get().not_before - timezone.now()
        assert until.total_seconds() == pytest.approx(600, abs=30)
        assert set(Run.objects.values_list("attempts", flat=True)) == {0}


def test_a_call_that_is_put_off_leaves_its_turn_to_others(limits, documents):
    limits(openai=Limit(rate="2/m"))
    with installed(runner := limited()):
        runner().run()
        reserve(bound := shared("openai"), 1)
        execute(Chunk.objects.queued().first().pk)

        assert runner().progress().waiting == 10
        assert 29 < reserve(bound, 0) < 31


def test_a_test_does_not_wait_for_a_rate(limits, documents):
    limits(openai=Limit(rate="1/h"))
    with installed(runner := limited()):
        runner().run()
        work_off()

        assert runner().progress().succeeded == 10


def test_status_and_explain_say_what_a_limit_keeps_waiting(limits, documents, capsys, admin_client):
    limits(openai=Limit(parallel=1, rate="3000/m"))
    with installed(runner := limited(BATCH_SIZE=1)):
        runner().run()
        Chunk.objects.queued().update(state=Chunk.State.RUNNING, worker="w@host", succeeded=0)

        expected = "openai: 1 of 1 in use, 0 of 3,000 calls this minute, 9 runs wait"
        assert runner().explain(documents[-1]).reason == f"Waiting for the limit {expected}."
        call_command("autorun", "status", "--no-pending")
        assert expected in capsys.readouterr().out
        (found,) = limits_in_use()
        assert [str(each) for each in found.holders] == ["tests.EchoRunner on w@host: 1 run"]
        assert next(backlog.examine_limits()).level == "ok"
        page = admin_client.get(reverse("admin:autorun_health_changelist")).text
        assert "1 of 1" in page
        assert "0 of 3,000" in page
        assert "tests.EchoRunner on w@host: 1 run" in page
        Chunk.objects.filter(state=Chunk.State.RUNNING).update(
            state=Chunk.State.FINISHED, succeeded=1, finished_at=timezone.now()
        )
        assert str(limits_in_use()[0]).startswith("openai: 0 of 1 in use, 1 of 3,000 calls")

        hold_back(runner(), 3600)
        assert "9 runs wait, held back until" in runner().explain(documents[-1]).reason
        (finding,) = backlog.examine_limits()
        assert finding.level == "warning"
        assert "held back until" in finding.message


def test_calls_that_a_concurrent_body_makes_at_once_count_against_its_limits(limits):
    limits(openai=Limit(parallel=10))

    async def ask(value: Any) -> None: ...

    one = limited("OneRunner", ANALYSIS=Analysis("Ask", "1.0", ask, concurrency=4))
    many = limited("ManyRunner", ANALYSIS=Analysis("Ask", "1.1", ask, concurrency=40))
    with installed(one, many):
        nodes = [chunks_waiting(one, 4, size=100), chunks_waiting(many, 1, size=100)]
        for node in nodes:
            release(node.pk)

        assert [queued(node) for node in nodes] == [2, 0]
        assert calls_at_once("tests.ManyRunner") == 10
        assert [limit.in_use for limit in limits_in_use()] == [8]
        Chunk.objects.queued().update(state=Chunk.State.FINISHED)
        release(nodes[1].pk)
        assert queued(nodes[1]) == 1


def test_a_limit_that_is_not_in_the_settings_lets_one_run_out_at_a_time(limits):
    limits(other=Limit(parallel=3))
    with installed(runner := limited()):
        assert release(chunks_waiting(runner, 4).pk).chunks == 1


@pytest.mark.django_db(transaction=True)
def test_two_runners_released_at_once_exceed_no_limit(limits):
    limits(openai=Limit(parallel=1))
    one, other = limited("OneRunner"), limited("OtherRunner")
    has_claimed, has_released = threading.Event(), threading.Event()

    def claimed() -> None:
        has_claimed.set()
        has_released.wait(0.5)  # what the other one does not, as it waits for this one

    def release_one(node: Node) -> int:
        try:
            return release(node.pk).chunks
        finally:
            connection.close()

    with installed(one, other):
        nodes = [chunks_waiting(each, 1) for each in (one, other)]
        with armed("dispatch.claimed", act=claimed), ThreadPoolExecutor(2) as threads:
            first = threads.submit(release_one, nodes[0])
            assert has_claimed.wait(10)
            second = threads.submit(release_one, nodes[1])
            second.add_done_callback(lambda _: has_released.set())

            assert (first.result(), second.result()) == (1, 0)
