"""Real workers on real brokers: from a save to a recorded result."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest
from celery import current_app
from django.db import transaction

from autorun.models import Chunk, Failure, Run
from autorun.observe.doctor import messaging
from autorun.triggers.delivery import wait_until_idle
from tests.conftest import StartWorker
from tests.library.models import Photo
from tests.library.runners import CaptionRunner, LengthRunner

pytestmark = [pytest.mark.slow, pytest.mark.services, pytest.mark.django_db(transaction=True)]


def wait_for(condition: Callable[[], bool], *, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            runs = list(Run.objects.values("status", "attempts", "chunk__state"))
            pytest.fail(f"Not so after {seconds:.0f} s: {runs}")
        time.sleep(0.05)


def succeeded(number: int) -> Callable[[], bool]:
    return lambda: Run.objects.filter(status=Run.Status.SUCCEEDED).count() >= number


def test_saves_changes_silent_writes_and_dependents(broker, start_worker: StartWorker):
    start_worker()

    with transaction.atomic():
        photos = [Photo.objects.create(caption=f"caption {n}") for n in range(20)]
        with suppress(ZeroDivisionError), transaction.atomic():
            Photo.objects.create(caption="rolled back")
            raise ZeroDivisionError
    wait_for(succeeded(40))  # both runners: the second depends on the first

    photos[0].caption = "changed"
    photos[0].save(update_fields=["caption"])
    wait_for(succeeded(42))

    Photo.objects.bulk_create([Photo(caption=f"silent {n}") for n in range(30)])
    assert CaptionRunner().pending().count() == 30
    CaptionRunner().run()
    wait_for(succeeded(102))

    assert wait_until_idle()
    assert Run.objects.filter(is_current=True).count() == 100
    assert Run.objects.count() == 102
    assert CaptionRunner().progress().succeeded == 50
    assert LengthRunner().progress().succeeded == 50
    assert CaptionRunner().pending().count() == 0
    wait_for(lambda: not Chunk.objects.exclude(state=Chunk.State.FINISHED).exists())


def test_the_doctor_waits_for_a_worker_that_is_slow_to_answer(broker, start_worker):
    start_worker()
    (stats,) = current_app.control.inspect(timeout=5, limit=1).stats().values()
    os.kill(stats["pid"], signal.SIGSTOP)
    thaw = threading.Timer(
        2 * messaging.ANSWER_TIMEOUTS[0], os.kill, (stats["pid"], signal.SIGCONT)
    )
    thaw.start()

    findings = list(messaging.examine_broker())
    thaw.join()

    assert {each.level for each in findings} == {"ok"}, findings
    assert any("Listening" in each.message for each in findings)


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_failed_attempt_keeps_what_it_logged_and_printed(broker, start_worker, pool):
    start_worker("--pool", pool)

    Photo.objects.create(caption="unreadable")
    wait_for(Failure.objects.exists)

    tail = Failure.objects.earliest("pk").log_tail
    assert tail == "opening it\nWARNING tests.library.analyses: it has no pixels"
