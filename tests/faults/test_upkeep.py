"""Upkeep beside a worker's pool: what it costs, and what becomes of it when processes die."""

import os
import re
import signal
from pathlib import Path

import pytest

from autorun.models import Chunk, Run
from autorun.observe.at_work import workers_at_work
from autorun.state import draining
from autorun.state.clock import from_now
from autorun.state.pulses import beat_of
from tests.faults.driver import Lab, Process

pytestmark = [pytest.mark.slow]

POOLS = [
    pytest.param(("--pool", "prefork", "--max-tasks-per-child", "1"), 2, id="prefork"),
    pytest.param(("--pool", "threads"), 0, id="threads"),
    pytest.param(("--pool", "solo"), 0, id="solo"),
    pytest.param(("--pool", "gevent"), 0, id="gevent"),
]


@pytest.mark.faults(38)
@pytest.mark.parametrize(("pool", "processes"), POOLS)
def test_a_worker_at_rest_gets_no_message_and_uses_no_place_in_its_pool(
    lab_of_each_broker: Lab, pool: tuple[str, ...], processes: int
):
    lab = lab_of_each_broker
    worker = lab.start_worker(*pool)
    lab.until(lambda: len(worker.children()) == processes)
    first = worker.children()
    lab.save(1)
    lab.until_done(1)
    # The process of the task has ended, and there is another one.
    lab.until(
        lambda: len(children := worker.children()) == processes and not {*first[1:]} & {*children}
    )
    received, at_work = messages(worker), worker.children()

    wait_for_rounds(lab, 6)

    assert messages(worker) == received
    assert worker.children() == at_work
    assert "Upkeep:" not in worker.log.read_text()


@pytest.mark.faults(38)
def test_a_worker_whose_processes_end_after_a_task_keeps_its_upkeep_and_its_connection(lab: Lab):
    worker = lab.start_worker("--max-tasks-per-child", "1")
    upkeep = upkeep_of(lab, worker)
    for _ in range(5):
        lab.save(1)
        lab.until_done()
    wait_for_rounds(lab, 2)

    assert upkeep in worker.children()
    assert "no database" not in worker.log.read_text()
    assert "has died" not in worker.log.read_text()
    lab.check()


@pytest.mark.faults(38)
def test_upkeep_whose_process_is_killed_has_another_one(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    worker = lab.start_worker()
    upkeep = upkeep_of(lab, worker)

    os.kill(upkeep, signal.SIGKILL)

    lab.until(lambda: len(worker.children()) == 2 and upkeep not in worker.children())
    wait_for_rounds(lab, 2)


@pytest.mark.faults(38)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGQUIT])
def test_upkeep_ends_with_its_worker(lab: Lab, number: int):
    worker = lab.start_worker()
    processes = worker.children()
    assert upkeep_of(lab, worker) in processes
    lab.until(draining.seen)

    worker.signal(number)  # to the main process alone

    worker.wait()
    lab.until(lambda: not any(map(is_alive, processes)))
    assert draining.seen() == {}


@pytest.mark.faults(38)
def test_a_round_that_its_process_does_not_end_is_made_by_whoever_ends_a_chunk(lab: Lab):
    """Its only worker's upkeep is frozen, in the middle of a round or not."""
    worker = lab.start_worker()
    os.kill(upkeep_of(lab, worker), signal.SIGSTOP)
    lab.write(2)
    lab.runner.run()
    lab.until_done(2)
    chunk = Chunk.objects.latest("pk")
    lost = Run.objects.filter(chunk=chunk)
    Chunk.objects.filter(pk=chunk.pk).update(
        state=Chunk.State.RUNNING, expires_at=from_now(-1), finished_at=None, succeeded=0
    )
    lost.update(status=Run.Status.PENDING, finished_at=None)

    def is_rescued() -> bool:
        lab.save(1)
        return not Chunk.objects.filter(pk=chunk.pk, state=Chunk.State.RUNNING).exists()

    lab.until(is_rescued)
    lab.until_done()
    lab.check()


@pytest.mark.faults(38)
@pytest.mark.parametrize("options", [{"TIMEOUT": 120}])
@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_drained_worker_finishes_its_run_and_leaves_the_others_until_it_is_undrained(
    lab_of_each_broker: Lab, pool: str
):
    lab = lab_of_each_broker
    lab.start_worker("--pool", pool)
    lab.save(1, does="gate")
    lab.until(Chunk.objects.running().exists)
    name = workers_at_work()[0].name
    lab.write(20)
    lab.runner.run()  # the broker may have given it messages already

    draining.drain(name)
    second = lab.start_worker("--pool", pool)
    lab.save(3)
    lab.until(lambda: lab.runner.progress().succeeded >= 3)
    before = workers_at_work()[0].state
    lab.open_gate()
    lab.until_done(24)

    assert (before, workers_at_work()[0].state) == ("draining", "drained")
    assert Chunk.objects.filter(worker__startswith=f"{name}:").count() == 1

    second.kill()
    draining.undrain(name)
    lab.save(2)
    lab.until_done(26)
    lab.check()


@pytest.mark.faults(38)
def test_a_drained_worker_that_is_restarted_takes_chunks_again(lab: Lab):
    worker = lab.start_worker()
    lab.save(1)
    lab.until_done(1)
    draining.drain(workers_at_work()[0].name)
    lab.until(lambda: "Canceling queue" in worker.log.read_text())
    lab.save(1)

    worker.signal(signal.SIGTERM)
    worker.wait()
    worker.start()

    lab.until_done(2)
    assert workers_at_work()[0].state == ""


def messages(worker: Process) -> int:
    return len(re.findall(r"Task \S+ received", worker.log.read_text()))


def wait_for_rounds(lab: Lab, number: int) -> None:
    """Wait until so many rounds more have begun."""
    for _ in range(number):
        before = beat_of("upkeep")
        lab.until(lambda before=before: beat_of("upkeep") != before)


def upkeep_of(lab: Lab, worker: Process) -> int:
    """The process of a worker's upkeep: the first that it has forked."""
    lab.until(lambda: len(worker.children()) == 2)
    return worker.children()[0]


def is_alive(pid: int) -> bool:
    path = Path(f"/proc/{pid}/stat")
    return path.exists() and path.read_text().rpartition(")")[2].split()[0] != "Z"
