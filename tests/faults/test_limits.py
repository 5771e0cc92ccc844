"""Limits over several processes: what they hold, and what becomes of a share whose holder dies."""

import pytest

from autorun.limits import Limit
from autorun.models import Chunk, Failure, Run
from tests.faults.driver import Lab

pytestmark = [pytest.mark.slow]

LIMITED = {"LIMIT": "service"}


@pytest.fixture(autouse=True)
def limit(request: pytest.FixtureRequest, lab: Lab, settings) -> None:
    """`@pytest.mark.parametrize("limit", [Limit(...)], indirect=True)` for all processes."""
    lab.settings["LIMITS"] = {"service": request.param}
    settings.AUTORUN = lab.settings


@pytest.mark.faults(51)
@pytest.mark.parametrize("options", [LIMITED])
@pytest.mark.parametrize("limit", [Limit(rate="3000/m")], indirect=True)
def test_four_processes_hold_a_rate_within_two_percent(lab: Lab):
    lab.write(1_000, does="sleep:0.03")
    lab.start_worker(concurrency=4)

    lab.runner.run()
    lab.until_done(1_000)

    lab.check()
    # On a busy machine, slow chunks are handed over at the end, a run in each.
    began = sorted(each.begin for each in lab.ledger.executions())[100:800]
    per_minute = 60 * (len(began) - 1) / (began[-1] - began[0])
    assert 0.98 * 3_000 < per_minute < 1.02 * 3_000


@pytest.mark.faults(51)
@pytest.mark.parametrize("options", [LIMITED | {"BATCH_SIZE": 3}])
@pytest.mark.parametrize("limit", [Limit(parallel=2)], indirect=True)
def test_no_more_is_done_at_once_than_a_limit_says(lab: Lab):
    lab.write(60, does="sleep:0.02")
    lab.start_worker(concurrency=2)
    lab.start_worker(concurrency=2)

    lab.runner.run()
    lab.save(10, does="sleep:0.02")
    lab.until_done(70)

    lab.check()
    executions = lab.ledger.executions()
    at_once = [
        sum(each.begin <= other.begin < (each.end or 0) for each in executions)
        for other in executions
    ]
    assert max(at_once) == 2


@pytest.mark.faults(51)
@pytest.mark.parametrize("options", [LIMITED | {"BATCH_SIZE": 1}])
@pytest.mark.parametrize("limit", [Limit(parallel=1)], indirect=True)
def test_the_share_of_a_dead_holder_comes_back_with_its_lease(lab: Lab):
    (first,) = lab.write(1, does="gate")
    lab.write(3, value="w")
    worker = lab.start_worker()
    lab.runner.run()
    lab.until(lambda: lab.ledger.began(first.pk))
    worker.kill()
    assert Chunk.objects.in_flight().count() == 1

    lab.start_worker()
    lab.open_gate()
    lab.until_done(4)

    lab.check()
    assert set(Failure.objects.values_list("run__object_id", flat=True)) <= {first.pk}
    assert Run.objects.filter(attempts=1).count() >= 3
