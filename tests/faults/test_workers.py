"""Workers that die, stop, hang and are told to end."""

import os
import signal

import pytest

from autorun.models import Chunk, Failure, Run, SpilledTrigger
from autorun.state.clock import from_now
from tests.crashes import ENVIRONMENT
from tests.faults.driver import Lab

pytestmark = [pytest.mark.slow]

#: Seconds after which Redis gives what a dead worker had fetched to another one.
PATIENCE = {"AUTORUN_TEST_VISIBILITY": "3"}


@pytest.mark.faults(7)
@pytest.mark.parametrize("victim", ["child", "machine"])
def test_rows_of_a_killed_worker_are_done_by_another_and_cost_one_attempt(
    lab_of_each_broker: Lab, victim: str
):
    lab = lab_of_each_broker
    lab.environment |= PATIENCE
    worker = lab.start_worker()
    rows = lab.save(3, does="gate")
    lab.until(lambda: lab.ledger.executions())

    if victim == "child":
        (pid,) = {each.pid for each in lab.ledger.executions()}
        lab.open_gate()
        os.kill(pid, signal.SIGKILL)
    else:
        worker.kill()
        lab.open_gate()
        lab.start_worker()
    lab.until_done(3)

    lab.check()
    begun = lab.ledger.executions()[0].row
    assert Run.objects.get(object_id=begun).attempts == 2
    assert max(Run.objects.values_list("attempts", flat=True)) == 2
    assert len(rows) == len(set(lab.ledger.times()))


@pytest.mark.faults(7, 11)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 4}])
@pytest.mark.parametrize("does", ["kill", "os_exit", "segfault"])
def test_a_body_that_kills_its_worker_fails_with_that_reason_and_its_neighbours_succeed(
    lab: Lab, does: str
):
    lab.write(2)
    (poison,) = lab.write(1, does=does)
    lab.write(2, value="w")
    lab.start_worker()

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(4), seconds=120)

    lab.check()
    run = Run.objects.get(object_id=poison.pk)
    assert run.attempts == 3
    assert len(lab.ledger.began(poison.pk)) == 3
    failures = Failure.objects.filter(run=run)
    assert {failure.exception_class for failure in failures} == {"autorun.exceptions.WorkerLost"}
    assert "stopped answering" in failures.first().message


@pytest.mark.faults(50)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 4, "CALL": 4}])
def test_a_row_that_kills_its_worker_in_a_call_of_many_fails_alone(lab: Lab):
    lab.write(1)
    (poison,) = lab.write(1, does="kill")
    lab.write(2, value="w")
    lab.start_worker()

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(3), seconds=120)

    run = Run.objects.get(object_id=poison.pk)
    assert (run.status, run.attempts) == (Run.Status.FAILED, 3)
    failures = Failure.objects.filter(run=run)
    assert {failure.exception_class for failure in failures} == {"autorun.exceptions.WorkerLost"}


@pytest.mark.faults(7)
def test_a_pool_goes_on_when_its_idle_processes_are_killed(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    worker = lab.start_worker(concurrency=2)
    for number in range(1, 11):
        # Some of them or all, that of upkeep included.
        killed = worker.children()[: 1 + number % 3]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        lab.until(lambda before=killed: len({*worker.children()} - {*before}) == 3)

        lab.save(2, value=f"v{number}-")
        lab.until_done(2 * number)

    lab.check()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(7)
def test_saved_rows_whose_planner_is_killed_are_planned_by_another(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    lab.environment |= PATIENCE
    worker = lab.start_worker(**{ENVIRONMENT: "plan.booked"})
    lab.save(3)
    lab.until(SpilledTrigger.objects.exists)

    worker.kill()
    lab.start_worker()

    lab.until_done(3)
    lab.check()


@pytest.mark.faults(11)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3, "TIMEOUT": 1, "MAX_ATTEMPTS": 1}])
@pytest.mark.parametrize("does", ["sleep:60", "hang", "deaf", "exit", "memory"])
def test_a_body_that_does_not_come_back_fails_with_the_reason_and_others_go_on(lab: Lab, does: str):
    """`hang` catches what is meant to stop it; `deaf` keeps even the lease from being held."""
    lab.write(1)
    (stuck,) = lab.write(1, does=does, value="stuck")
    lab.write(1, value="w")
    lab.start_worker()

    lab.runner.run()
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(2), seconds=90)

    lab.check()
    failure = Failure.objects.filter(run__object_id=stuck.pk).latest("pk")
    assert failure.exception_class.endswith(
        {"exit": "SystemExit", "deaf": "WorkerLost", "memory": "MemoryError"}.get(
            does, "RunTimeout"
        )
    )


@pytest.mark.faults(11)
@pytest.mark.parametrize("options", [{"TIMEOUT": 1, "MAX_ATTEMPTS": 1}])
@pytest.mark.parametrize("does", ["hang", "deaf"])
def test_a_saved_row_whose_body_does_not_come_back_keeps_no_process_for_ever(lab: Lab, does: str):
    lab.start_worker(concurrency=1)
    lab.save(1, does=does, value="stuck")
    lab.until(lambda: lab.ledger.executions())
    lab.save(2)

    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(2), seconds=90)

    lab.check()


@pytest.mark.faults(8)
@pytest.mark.parametrize("kind", ["warm", "soft"])
def test_a_worker_that_is_told_to_end_loses_no_attempt(lab_of_each_broker: Lab, kind: str):
    lab = lab_of_each_broker
    environment = {"REMAP_SIGTERM": "SIGQUIT"} if kind == "soft" else {}
    worker = lab.start_worker(concurrency=2, **environment)
    lab.save(2, does="sleep:1")
    lab.save(2, does="gate", value="w")
    lab.until(lambda: len(lab.ledger.executions()) >= 2)

    worker.signal(signal.SIGTERM)
    if kind == "warm":
        lab.open_gate()
    worker.wait(60)
    lab.open_gate()
    lab.start_worker(concurrency=2)
    lab.until_done(4)

    lab.check()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert not Failure.objects.exists()


@pytest.mark.faults(8, 31)
@pytest.mark.parametrize("options", [{"MAX_ATTEMPTS": 1}])
def test_a_run_during_which_several_workers_in_turn_are_told_to_end_loses_no_attempt(lab: Lab):
    lab.environment |= {"REMAP_SIGTERM": "SIGQUIT"}
    lab.write(1, does="gate")
    lab.runner.run()
    for number in range(5):
        worker = lab.start_worker()
        lab.until(lambda begun=number: len(lab.ledger.executions()) > begun)
        worker.signal(signal.SIGTERM)
        worker.wait(60)
    lab.open_gate()
    lab.start_worker()
    lab.until_done(1)

    lab.check()
    assert Run.objects.get().attempts == 1
    assert not Failure.objects.exists()


@pytest.mark.faults(11, 31)
@pytest.mark.parametrize(
    ("options", "does"),
    [
        ({"BATCH_SIZE": 5, "MAX_ATTEMPTS": 2}, "term:self"),
        ({"BATCH_SIZE": 5, "MAX_ATTEMPTS": 1}, "term:child"),
        ({"BATCH_SIZE": 5, "MAX_ATTEMPTS": 1, "CALL": 5}, "term:self"),
    ],
)
def test_a_body_that_has_its_process_told_to_end_fails_and_its_neighbours_do_not_wait(
    lab: Lab, does: str
):
    lab.write(2)
    (poison,) = lab.write(1, does=does)
    lab.write(2, value="w")
    lab.start_worker()
    attempts = lab.runner.MAX_ATTEMPTS

    lab.runner.run()
    lab.save(1, value="saved")
    lab.until(lambda: lab.runner.progress().succeeded == 5)
    has_waited_for = len(lab.ledger.began(poison.pk))
    lab.until(lambda: pauses_have_passed() and lab.runner.progress().failed == 1, seconds=300)

    lab.check()
    assert has_waited_for < 9
    assert Run.objects.get(object_id=poison.pk).attempts == attempts
    assert len(lab.ledger.began(poison.pk)) == 9 * attempts
    failures = Failure.objects.filter(run__object_id=poison.pk)
    assert {failure.exception_class for failure in failures} == {"autorun.exceptions.WorkerLost"}
    assert "sends SIGTERM" in failures.first().message
    assert Failure.objects.count() == attempts


def pauses_have_passed() -> bool:
    Chunk.objects.waiting().filter(not_before__gt=from_now(0)).update(not_before=from_now(0))
    return True


@pytest.mark.faults(8)
def test_a_replaced_pool_process_finishes_its_runs_in_a_warm_shutdown(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    worker = lab.start_worker("--max-tasks-per-child", "1")
    replaced = set(worker.children())
    lab.save(1)
    lab.until_done(1)
    lab.until(lambda: len(set(worker.children()) - replaced) == 1)
    lab.write(1, does="sleep:6", value="w")
    lab.runner.run()
    lab.until(lambda: len(lab.ledger.executions()) == 2)

    worker.signal(signal.SIGTERM)
    worker.wait(60)

    lab.check()
    assert lab.is_done(2)
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert not Failure.objects.exists()


@pytest.mark.faults(8)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 2}])
def test_pool_processes_that_end_after_so_many_tasks_lose_no_attempt(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    lab.start_worker("--max-tasks-per-child", "1", concurrency=2)
    lab.save(4, does="sleep:0.2")
    lab.write(8, does="sleep:0.2", value="w")
    lab.runner.backfill()
    lab.until_done(12)

    lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert len({each.pid for each in lab.ledger.executions()}) > 2


@pytest.mark.faults(9)
def test_a_worker_that_was_frozen_past_its_lease_writes_nothing(lab: Lab):
    worker = lab.start_worker()
    lab.save(1, does="gate")
    lab.until(lambda: lab.ledger.executions())

    worker.freeze()
    other = lab.start_worker()
    lab.until(lambda: len(lab.ledger.executions()) == 2)
    lab.open_gate()
    lab.until_done(1)
    before = list(Run.objects.values())
    worker.thaw()
    lab.until(lambda: all(each.end for each in lab.ledger.executions()))
    lab.until(lambda: "Results not yet recorded are lost" in worker.log.read_text())

    lab.check(zombies=True)
    assert list(Run.objects.values()) == before
    assert Run.objects.get().attempts == 2
    assert str(lab.ledger.executions()[1].pid) in {str(pid) for pid in other.children()}


@pytest.mark.faults(8)
@pytest.mark.parametrize(
    "options",
    [
        {"BATCH_SIZE": 8, "TIMEOUT": 60, "MAX_ATTEMPTS": 1},
        {"BATCH_SIZE": 8, "TIMEOUT": None, "MAX_ATTEMPTS": 1},
    ],
    ids=["limited", "unlimited"],
)
def test_a_soft_time_limit_of_the_projects_fails_no_run(lab: Lab):
    """It is for a message, that is for a chunk of many runs."""
    lab.write(8, does="sleep:0.5")
    lab.start_worker("--soft-time-limit", "2")

    lab.runner.run()
    lab.until_done(8)

    lab.check()
    assert not Failure.objects.exists()
