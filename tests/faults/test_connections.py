"""User code that leaves its connections in any state, or is ended in the middle of a query."""

import signal

import pytest
from django.db import connection

from autorun.models import Failure, Run
from tests.faultlab import leftovers, tasks
from tests.faults.driver import Lab

pytestmark = [pytest.mark.slow]

LEFTOVERS = leftovers.names(connection.vendor)
#: How long a query takes that is to be ended, in seconds, or in tens of millions of rows.
LONG = 30
BY_PYTHON = {"INPUT_FIELDS": None}


@pytest.mark.faults(32)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 100, "MAX_ATTEMPTS": 1}])
def test_what_bodies_leave_in_a_connection_befalls_neither_autorun_nor_the_next_body(lab: Lab):
    """All in one process: each way twice, a row that only works after each."""
    lab.start_worker(concurrency=1)
    for name in LEFTOVERS:
        lab.write(1, does=f"leave:{name}", value=name)
        lab.write(1, value=f"after {name}")
    lab.runner.run()
    for name in LEFTOVERS:
        lab.save(1, does=f"leave:{name}", value=f"saved {name}")
        lab.save(1, value=f"saved after {name}")

    lab.until(lambda: lab.runner.progress().failed == 2 and lab.is_done(4 * len(LEFTOVERS) - 2))
    lab.check()
    failures = Failure.objects.values_list("exception_class", "message")
    assert set(failures) == {("ZeroDivisionError", "as it was told")}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert len({each.pid for each in lab.ledger.executions()}) == 1
    assert "Traceback" not in lab.processes[0].log.read_text()


@pytest.mark.faults(32)
@pytest.mark.parametrize("options", [BY_PYTHON])
def test_what_hooks_leave_in_a_connection_befalls_neither_autorun_nor_other_rows(lab: Lab):
    lab.start_worker(concurrency=1)
    names = [name for name in LEFTOVERS if name != "broken"]
    for name in names:
        lab.write(1, does=f"represent:leave:{name}", value=name)
        lab.save(1, does=f"represent:leave:{name}", value=f"saved {name}")
        lab.save(1, value=f"saved after {name}")
    lab.until(lambda: lab.runner.progress().succeeded == 2 * len(names))

    lab.call("from tests.faultlab.steps import plan; plan()")

    lab.until_done(3 * len(names))
    lab.check()
    assert not Failure.objects.exists()


@pytest.mark.faults(32)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 100}])
def test_what_a_task_of_the_project_leaves_in_a_connection_befalls_no_row(lab: Lab):
    """What is done in its transaction would never be committed."""
    worker = lab.start_worker(concurrency=1)
    names = ["begin", "broken", "driver", "closed_outside", "savepoints"]
    if connection.vendor != "sqlite":  # where these lock out every writer
        names += ["atomic", "autocommit"]
    for number, name in enumerate(names, 1):
        tasks.leave.delay(name)
        lab.save(1, value=f"saved after {name}")
        lab.until_done(2 * number - 1, seconds=20)
        lab.write(1, value=f"after {name}")
        tasks.leave.delay(name)
        lab.runner.run()
        lab.until_done(2 * number, seconds=20)

    lab.check()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert len({each.pid for each in lab.ledger.executions()}) == 1
    assert "A task left the connection 'default' in use" in worker.log.read_text()


@pytest.mark.faults(32)
@pytest.mark.parametrize("options", [BY_PYTHON])
@pytest.mark.parametrize("does", ["leave:unnoticed", "represent:leave:unnoticed"])
def test_a_session_that_is_changed_unnoticed_costs_a_connection_and_no_attempt(lab: Lab, does: str):
    lab.start_worker(concurrency=1)

    for number in range(3):
        lab.save(2, does=does, value=f"{number} leaves ")
        lab.save(2, value=f"{number} after ")
        lab.until_done(4 * (number + 1))

    lab.check()
    assert not Failure.objects.exists()
    assert len({each.pid for each in lab.ledger.executions()}) == 1


@pytest.mark.faults(31)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3, "TIMEOUT": 1, "MAX_ATTEMPTS": 1}])
@pytest.mark.parametrize("does", [f"query:{LONG}", f"atomic_query:{LONG}"])
def test_a_body_that_times_out_in_a_query_fails_so_and_its_neighbours_keep_theirs(
    lab: Lab, does: str
):
    lab.write(1)
    (slow,) = lab.write(1, does=does, value="slow")
    lab.write(1, value="w")
    lab.start_worker()

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(2), seconds=40)

    lab.check()
    assert Failure.objects.get().exception_class == "autorun.exceptions.RunTimeout"
    assert Failure.objects.get().run.object_id == slow.pk
    assert set(lab.ledger.times().values()) == {1}
    lab.until(lambda: not queries_running(), seconds=10)


@pytest.mark.faults(31)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3}])
@pytest.mark.parametrize("does", [f"query:{LONG}", f"atomic_query:{LONG}"])
def test_a_body_that_is_told_to_end_in_a_query_is_given_back_and_uses_no_attempt(
    lab: Lab, does: str
):
    lab.environment |= {"REMAP_SIGTERM": "SIGQUIT"}
    lab.write(1)
    (slow,) = lab.write(1, does=does, value="slow")
    lab.write(1, value="w")
    worker = lab.start_worker()
    lab.runner.run()
    lab.until(lambda: lab.ledger.began(slow.pk))

    worker.signal(signal.SIGTERM)
    worker.wait(60)

    lab.until(lambda: not queries_running(), seconds=10)
    runs = Run.objects.filter(object_id=slow.pk)
    assert list(runs.values_list("status", "attempts")) == [(Run.Status.PENDING, 0)]
    assert not Failure.objects.exists()
    assert "returned chunk" in worker.log.read_text()


@pytest.mark.faults(31)
@pytest.mark.parametrize("options", [BY_PYTHON | {"TIMEOUT": 1, "MAX_ATTEMPTS": 1}])
@pytest.mark.parametrize("how", ["saved", "swept"])
def test_a_representation_that_times_out_in_a_query_fails_its_row_and_the_next_is_planned(
    lab: Lab, how: str
):
    lab.start_worker()
    lab.write(1)
    (slow,) = lab.write(1, does=f"represent:query:{LONG}", value="slow")
    lab.write(1, value="w")

    if how == "swept":
        lab.call("from tests.faultlab.steps import plan; plan()")
    else:
        for row in lab.runner.get_base_queryset():
            row.save()

    # In this process the row is fine, and so pending.
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.runner.progress().succeeded == 2)
    failure = Failure.objects.get()
    assert (failure.run.object_id, failure.exception_class) == (
        slow.pk,
        "autorun.exceptions.RunTimeout",
    )
    lab.until(lambda: not queries_running(), seconds=10)


def queries_running() -> int:
    """How many of the long ones the server has not ended."""
    if connection.vendor == "sqlite":
        return 0
    sql = {
        "postgresql": "SELECT COUNT(*) FROM pg_stat_activity WHERE state = 'active' "
        f"AND query = 'SELECT pg_sleep({LONG})' AND datname = current_database()",
        "mysql": "SELECT COUNT(*) FROM information_schema.processlist WHERE db = DATABASE() "
        f"AND info = 'SELECT SLEEP({LONG})'",
    }
    with connection.cursor() as cursor:
        cursor.execute(sql[connection.vendor])
        return cursor.fetchone()[0]
