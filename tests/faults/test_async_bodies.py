"""Async bodies that take too long, are told to end, or meet a pool that cannot run them."""

import signal

import pytest
from django.db import connection

from autorun.models import Chunk, Failure, Run
from tests.faults.driver import Lab
from tests.faults.test_connections import LONG, queries_running

pytestmark = [pytest.mark.slow]

ASYNC = {"ASYNC": True, "BATCH_SIZE": 3}
#: Ways to take long that end without the end of their process.
ENDED = [f"sleep:{LONG}", f"block:{LONG}", f"orm:query:{LONG}", "swallow"]
#: Nothing but the end of the process ends them.
DEAF = [f"thread:{LONG}", "hang"]


@pytest.mark.faults(31, 36)
@pytest.mark.parametrize("options", [ASYNC | {"TIMEOUT": 1, "MAX_ATTEMPTS": 2}])
@pytest.mark.parametrize("does", [*ENDED, *DEAF])
def test_an_async_body_ends_at_its_time_limit_before_its_next_attempt(lab: Lab, does: str):
    lab.write(1)
    (slow,) = lab.write(1, does=does, value="slow")
    lab.write(1, value="w")
    lab.start_worker(concurrency=2)

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(2))

    lab.check()
    failures = Failure.objects.values_list("exception_class", "run__object_id")
    assert list(failures) == [("autorun.exceptions.RunTimeout", slow.pk)] * 2
    assert len(lab.ledger.began(slow.pk)) == 2
    pids = {each.pid for each in lab.ledger.began(slow.pk)}
    assert does in ENDED or len(pids) == 2  # the first one's process has ended
    assert not queries_running()


@pytest.mark.faults(31, 36)
@pytest.mark.parametrize("options", [ASYNC])
@pytest.mark.parametrize("does", ENDED)
def test_an_async_body_that_is_told_to_end_is_given_back_and_uses_no_attempt(lab: Lab, does: str):
    lab.environment |= {"REMAP_SIGTERM": "SIGQUIT"}
    lab.write(1)
    (slow,) = lab.write(1, does=does, value="slow")
    lab.write(1, value="w")
    worker = lab.start_worker()
    lab.runner.run()
    lab.until(lambda: lab.ledger.began(slow.pk))

    worker.signal(signal.SIGTERM)
    worker.wait(60)

    assert not queries_running()
    runs = Run.objects.filter(object_id=slow.pk)
    assert list(runs.values_list("status", "attempts")) == [(Run.Status.PENDING, 0)]
    assert not Failure.objects.exists()
    assert "returned chunk" in worker.log.read_text()
    assert lab.ledger.began(slow.pk)[0].end is not None


#: Ways in which a sync body waits for a coroutine.
WAITING = [f"to_sync:{LONG}", f"loop:{LONG}"]


@pytest.mark.faults(31, 36)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3, "TIMEOUT": 1, "MAX_ATTEMPTS": 2}])
@pytest.mark.parametrize("does", [*WAITING, f"to_sync_block:{LONG}"])
def test_a_coroutine_that_a_sync_body_waits_for_ends_with_it_at_its_time_limit(lab: Lab, does: str):
    lab.write(1)
    (slow,) = lab.write(1, does=does, value="slow")
    lab.write(1, value="w")
    lab.start_worker()

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(2))

    lab.check()
    failures = Failure.objects.values_list("exception_class", "run__object_id")
    assert list(failures) == [("autorun.exceptions.RunTimeout", slow.pk)] * 2
    pids = {each.pid for each in lab.ledger.began(slow.pk)}
    assert does in WAITING or len(pids) == 2  # the first one's process has ended
    assert_coroutines_ended_before_the_next_began(lab)


@pytest.mark.faults(31, 36)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3}])
@pytest.mark.parametrize("does", WAITING)
def test_a_coroutine_that_a_sync_body_waits_for_ends_with_it_if_it_is_told_to_end(
    lab: Lab, does: str
):
    lab.environment |= {"REMAP_SIGTERM": "SIGQUIT"}
    (slow,) = lab.write(1, does=does, value="slow")
    worker = lab.start_worker()
    lab.runner.run()
    lab.until(lambda: any(line["event"] == "coroutine" for line in lab.ledger.lines()))

    worker.signal(signal.SIGTERM)
    worker.wait(60)

    runs = Run.objects.filter(object_id=slow.pk)
    assert list(runs.values_list("status", "attempts")) == [(Run.Status.PENDING, 0)]
    assert not Failure.objects.exists()
    assert_coroutines_ended_before_the_next_began(lab)


def assert_coroutines_ended_before_the_next_began(lab: Lab) -> None:
    events = [line["event"] for line in lab.ledger.lines() if line["event"].startswith("corout")]
    assert events == ["coroutine", "coroutine_end"] * (len(events) // 2)


@pytest.mark.faults(36)
@pytest.mark.parametrize("options", [ASYNC])
@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_async_bodies_leave_nothing_to_the_next_one(lab: Lab, pool: str):
    """Forty rows in one process, of which some leave tasks and transactions."""
    lab.write(10, does="orm:leave:begin")
    lab.write(10, does="task", value="w")
    lab.write(10, does="orm:query:0.001,thread:0.01", value="x")
    lab.start_worker("--pool", pool)

    lab.runner.run()
    lab.save(10, does="sleep:0.01", value="saved")
    lab.until_done(40)

    lab.check()
    assert not Failure.objects.exists()
    assert set(lab.ledger.times().values()) == {1}
    assert sessions() <= 6


@pytest.mark.faults(36)
@pytest.mark.parametrize("options", [ASYNC | {"TIMEOUT": 1, "MAX_ATTEMPTS": 1}])
def test_an_async_body_ends_at_its_time_limit_on_threads(lab: Lab):
    lab.start_worker("--pool", "threads", concurrency=2)
    lab.save(2, does=f"sleep:{LONG}")
    lab.save(2, value="w")

    lab.until(lambda: lab.runner.progress().failed == 2 and lab.is_done(2))

    lab.check()
    assert all(each.end - each.begin < LONG / 2 for each in lab.ledger.executions())


@pytest.mark.faults(36)
@pytest.mark.parametrize("options", [ASYNC])
def test_async_bodies_on_gevent_wait_for_another_pool(lab: Lab):
    pytest.importorskip("gevent", reason="gevent is not installed")
    worker = lab.start_worker("--pool", "gevent", concurrency=10)
    assert "Exercise v1.0 is an async function" in worker.log.read_text()

    lab.save(3, does="sleep:0.1")
    lab.runner.run()
    lab.until(lambda: Chunk.objects.parked().exists())

    assert "--pool prefork" in Chunk.objects.parked().first().reason
    assert not lab.ledger.executions()

    worker.kill()
    lab.start_worker()
    lab.until_done(3)

    lab.check()
    assert not Failure.objects.exists()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


def sessions() -> int:
    """How many connections there are to the database."""
    if connection.vendor != "postgresql":
        return 0
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND backend_type = 'client backend'"
        )
        return cursor.fetchone()[0]
