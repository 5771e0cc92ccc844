"""User code that raises, is slow, or returns nonsense, and what that costs others."""

import math
import time

import pytest
from django.db import connection

from autorun.models import Chunk, Failure, Run, SpilledTrigger
from autorun.planning.named import plan_for_all, plan_keys
from autorun.state.clock import from_now
from autorun.upkeep import rounds
from tests.engine import declare, installed, work_off
from tests.faults.driver import Lab
from tests.library.models import Document


def query_nowhere(runner):
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


def raise_anything(runner):
    raise LookupError("as it was told")


def take_time(runner):
    time.sleep(0.02)
    return {}


@pytest.mark.faults(30)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("hook", [query_nowhere, raise_anything, take_time])
def test_a_configuration_that_cannot_be_created_keeps_no_other_runner_from_its_work(hook):
    """Release with limits, dependents and rescue all ask which runners share a node."""
    calls = []

    def create(runner):
        calls.append(connection.in_atomic_block)
        return hook(runner)

    first = declare(NAME="FirstRunner", TITLE="First", MAX_PARALLEL=1, BATCH_SIZE=1)
    broken = declare(NAME="BrokenRunner", TITLE="Broken", create_configuration=create)
    other = declare(NAME="OtherRunner", TITLE="Other", DEPENDS_ON=(first,))
    of_broken = declare(NAME="PastRunner", TITLE="Past", DEPENDS_ON=(broken,))
    with installed(first, broken, other, of_broken):
        documents = [Document.objects.create(title=f"title {n}") for n in range(3)]
        first().run()
        running = Chunk.objects.get(state=Chunk.State.QUEUED)
        Chunk.objects.filter(pk=running.pk).update(
            state=Chunk.State.RUNNING, token=1, expires_at=from_now(-1)
        )
        report = rounds.upkeep(in_any_case=True)
        Chunk.objects.update(not_before=None)
        rounds.upkeep(in_any_case=True)
        while work_off():
            rounds.upkeep(in_any_case=True)
        plan_for_all([broken()], [document.pk for document in documents])

        assert report.rescued == 1
        assert first().progress().succeeded == len(documents)
        assert other().progress().succeeded == len(documents)
    assert calls
    assert not any(calls)
    assert len(calls) < 5


@pytest.mark.faults(29)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": None}])
@pytest.mark.parametrize("does", ["segfault", "kill"])
def test_a_representation_that_kills_its_process_fails_its_row_and_upkeep_goes_on(
    lab: Lab, does: str
):
    lab.start_worker()
    lab.save(2)
    (lethal,) = lab.save(1, does=f"represent:{does}", value="lethal")
    lab.save(2, value="w")

    lab.until(lambda: lab.runner.progress().failed == 1 and lab.runner.progress().succeeded == 4)
    assert not SpilledTrigger.objects.exists()
    failure = Failure.objects.get()
    assert failure.run.object_id == lethal.pk
    assert failure.exception_class == "autorun.exceptions.WorkerLost"


@pytest.mark.faults(40)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("given", [math.inf, math.nan, -1, "soon", None, 1e300, LookupError])
def test_a_backoff_that_is_none_costs_time_and_no_attempt(given, caplog):
    def fail(value):
        raise ValueError

    runner = declare(fail, get_retry_backoff=returning(given), MAX_ATTEMPTS=2)
    with installed(runner):
        Document.objects.create(title="title")
        runner().run()
        work_off()
        Chunk.objects.update(not_before=from_now(-1))
        rounds.upkeep(in_any_case=True)
        work_off()

        assert runner().progress().failed == 1
    assert Failure.objects.count() == 2
    assert "get_retry_backoff" in caplog.text


@pytest.mark.faults(40)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("given", [math.inf, math.nan, 0, -1, "soon", 1e300, LookupError])
def test_a_timeout_that_is_none_is_replaced_and_uses_no_attempt(given, caplog):
    runner = declare(get_timeout=returning(given), get_schedule=returning(given))
    with installed(runner):
        Document.objects.create(title="title")
        runner().run()
        work_off()

        assert runner().progress().succeeded == 1
    assert Run.objects.get().attempts == 1
    assert ("get_timeout" in caplog.text) == (given not in (math.inf, 1e300))


def returning(given):
    def hook(runner, *_):
        if isinstance(given, type):
            raise given
        return given

    return hook


@pytest.mark.faults(40)
@pytest.mark.django_db
def test_an_argument_that_can_never_fit_fails_its_row_at_once():
    def add(value: int):
        return value + 1

    runner = declare(add)
    with installed(runner):
        document = Document.objects.create(title="no number")
        plan_keys(runner(), [document.pk])
        work_off()

        assert runner().progress().failed == 1
    assert Failure.objects.get().exception_class == "autorun.exceptions.ConfigurationError"
