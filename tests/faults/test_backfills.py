"""Backfills that are killed, paused, cancelled, resumed, and that must not flood."""

import signal

import pytest

from autorun.models import Batch, Chunk, Run
from autorun.planning import batches
from tests.crashes import ENVIRONMENT
from tests.faultlab import steps
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab

pytestmark = [pytest.mark.slow]


@pytest.mark.faults(18)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 3}])
@pytest.mark.parametrize("point", ["plan.booked", "plan.committed", "backfill.window"])
def test_a_backfill_killed_in_its_second_window_goes_on_where_it_was(lab: Lab, point: str):
    lab.write(10)

    process = lab.call(
        "from tests.faultlab import steps; steps.plan()", **{ENVIRONMENT: f"{point}:2"}
    )

    assert process.wait() == -signal.SIGKILL
    batch = Batch.objects.get()
    assert batch.planned == (3 if point == "plan.booked" else 6)
    assert Run.objects.count() == batch.planned
    steps.heal()
    batch.refresh_from_db()
    assert (batch.state, batch.planned, batch.candidates) == (Batch.State.FINISHED, 10, 10)
    lab.check()
    assert set(lab.ledger.times().values()) == {1}


@pytest.mark.faults(18)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 5}])
def test_counts_are_exact_while_a_backfill_is_paused_resumed_and_cancelled(lab: Lab):
    lab.settings["WINDOW"] = 40
    lab.write(300, does="sleep:0.01")
    lab.start_worker(concurrency=2)
    batch = lab.runner.backfill()

    for number in (20, 60, 100):
        lab.until(lambda number=number: lab.runner.progress().succeeded >= number)
        assert batches.pause(batch)
        lab.until(
            lambda: (
                not Chunk.objects.filter(
                    state__in=(Chunk.State.QUEUED, Chunk.State.RUNNING)
                ).exists()
            )
        )
        lab.check_counts()
        assert batches.resume(batch)
    lab.until(lambda: lab.runner.progress().succeeded >= 140)
    batches.cancel(batch)
    lab.until(lambda: not lab.runner.progress().unfinished)
    lab.check_counts()
    counts = batches.counts(Batch.objects.get(pk=batch.pk))
    assert counts.succeeded + counts.cancelled == 300
    assert counts.left == 0

    lab.runner.run()
    lab.until_done(300)

    lab.check()
    assert set(lab.ledger.times().values()) == {1}


@pytest.mark.faults(28)
@pytest.mark.timeout(400)
def test_a_backfill_of_100_000_leaves_room_for_live_saves(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    lab.settings["WINDOW"] = 500
    lab.write(100_000, does="sleep:0.002")
    lab.start_worker(concurrency=2)
    batch = lab.runner.backfill()
    lab.until(lambda: lab.runner.progress().succeeded > 100)
    seconds = []

    for _ in range(5):
        (live,) = lab.save(1, value="live")

        def is_begun(pk: int = live.pk) -> bool:
            in_flight = Chunk.objects.filter(state__in=(Chunk.State.QUEUED, Chunk.State.RUNNING))
            left = sum(in_flight.annotate(left=Chunk.RUNS_LEFT).values_list("left", flat=True))
            assert left <= 500 + 2
            return Run.objects.filter(object_id=pk, status=Run.Status.SUCCEEDED).exists()

        seconds.append(lab.until(is_begun))

    assert lab.runner.progress().unfinished > 50_000
    assert max(seconds) < 10
    batches.cancel(batch)
    lab.until(lambda: not lab.runner.progress().unfinished)
    lab.check_counts()
    assert Run.objects.filter(is_current=True).count() == lab.runner.progress().succeeded
    assert Specimen.objects.count() == 100_005
