"""A runner whose rows all fail alike waits, and one chunk at a time tries again."""

from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from autorun.dispatch.holding import next_try
from autorun.execution.brake import FAILURES, PATIENCE, Brake
from autorun.models import Chunk, Failure, Run
from autorun.observe.doctor.backlog import examine_held_up
from autorun.observe.held_up import held_up
from autorun.state.clock import from_now
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = [pytest.mark.django_db, pytest.mark.faults(11)]
#: Chunks that a release sends ahead of the busy workers, of which there is none.
MOST_IN_FLIGHT = 3
FULL = "[Errno 28] No space left on device"


class Disk:
    """A body that fails while the disk is full, and for rows that are bad."""

    def __init__(self):
        self.is_full = True
        self.bad = ()
        self.executed = []

    def __call__(self, value):
        self.executed.append(value)
        if self.is_full or value in self.bad:
            raise OSError(28, "No space left on device")
        return value


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def make(disk):
    def body(value):
        return disk(value)

    def made(number, **options):
        titles = [f"{n:03}" for n in range(number)]
        Document.objects.bulk_create([Document(title=title) for title in titles])
        return declare(body, **options)

    return made


def try_again():
    Chunk.objects.held_up().update(not_before=from_now(-1))
    return work_off()


@pytest.mark.parametrize("size", [None, 1, 7])
@pytest.mark.parametrize("attempts", [1, 3])
@pytest.mark.slow
def test_an_outage_fails_no_run_for_good(make, disk, size, attempts):
    with installed(runner := make(49, BATCH_SIZE=size, MAX_ATTEMPTS=attempts)):
        runner().run()
        work_off()
        # Chunks that ended before have failed their runs, if these have one attempt.
        lost = runner().progress().failed
        assert lost < FAILURES if size == 1 else lost <= 14
        if attempts > 1 or size is None:
            assert lost == 0
        executed = len(disk.executed)
        assert executed <= FAILURES + MOST_IN_FLIGHT * (size or 1)
        assert try_again() == 1
        assert len(disk.executed) == executed + 1

        disk.is_full = False
        try_again()
        work_off(retry_now=True)

        assert runner().progress().succeeded == 49 - lost
    assert not held_up()
    assert set(Run.objects.values_list("attempts", flat=True)) <= {1, 2, 3}


def test_the_reason_is_shown(make, disk, client):
    with installed(runner := make(60, BATCH_SIZE=5)):
        runner().run()
        work_off()
        (finding,) = examine_held_up()
        client.force_login(User.objects.create_superuser("ada"))
        shown = client.get(reverse("admin:autorun_node_runner", args=["tests.EchoRunner"]))
        printed = StringIO()
        call_command("autorun", "status", "tests.EchoRunner", stdout=printed)
        waits = runner().explain(Document.objects.last())

    for text in (shown.content.decode(), printed.getvalue(), finding.message, waits.reason):
        assert f"The last {FAILURES} rows have failed alike: OSError: {FULL}" in text
    assert waits.code == "waiting"


def test_rows_that_are_saved_meanwhile_wait_too(make, disk):
    with installed(runner := make(FAILURES)):
        runner().run()
        work_off()
        executed = len(disk.executed)
        document = Document.objects.create(title="new")
        runner().run()
        work_off()

        assert len(disk.executed) == executed
        assert "Held up" in runner().explain(document).reason
        disk.is_full = False
        try_again()
        work_off(retry_now=True)

        assert runner().progress().succeeded == FAILURES + 1


@pytest.mark.parametrize("size", [10, 40, None])
@pytest.mark.parametrize("bad", [slice(0, 40), slice(0, 80, 2), slice(20, 60)])
@pytest.mark.slow
def test_bad_rows_do_not_keep_good_ones_from_being_done(make, disk, size, bad):
    disk.is_full = False
    with installed(runner := make(80, BATCH_SIZE=size, MAX_ATTEMPTS=2)):
        disk.bad = [f"{n:03}" for n in range(80)][bad]
        runner().run()
        work_off(retry_now=True)
        for _ in range(20):
            if runner().progress().failed == 40:
                break
            try_again()
            work_off(retry_now=True)

        progress = runner().progress()
    assert (progress.succeeded, progress.failed, progress.unfinished) == (40, 40, 0)
    assert Failure.objects.count() == 80


def test_rows_that_fail_for_ever_fail_visibly_in_the_end(make, disk):
    with installed(runner := make(60, MAX_ATTEMPTS=1, BATCH_SIZE=30)):
        runner().run()
        work_off()
        assert runner().progress().failed == 0
        Chunk.objects.held_up().update(created_at=from_now(-PATIENCE - 1))
        try_again()

        assert runner().progress().failed == 60
    assert len(disk.executed) == 60 + 2 * FAILURES


def test_bad_rows_after_all_good_ones_fail_visibly_in_the_end(make, disk):
    disk.is_full = False
    with installed(runner := make(80, MAX_ATTEMPTS=2, BATCH_SIZE=10)):
        disk.bad = [f"{n:03}" for n in range(40, 80)]
        runner().run()
        work_off(retry_now=True)
        assert held_up("tests.EchoRunner")
        Chunk.objects.held_up().update(created_at=from_now(-PATIENCE - 1))
        try_again()
        work_off(retry_now=True)

        progress = runner().progress()
    assert (progress.succeeded, progress.failed, progress.unfinished) == (40, 40, 0)


def test_without_failures_the_brake_takes_no_statement(make, disk, monkeypatch):
    disk.is_full = False
    made = []
    monkeypatch.setattr(Brake, "__init__", lambda *_, **__: made.append(1))
    with installed(runner := make(FAILURES)):
        runner().run()
        with CaptureQueriesContext(connection) as captured:
            work_off()

        assert runner().progress().succeeded == FAILURES
    assert not made
    statements = [each["sql"] for each in captured]
    assert statements
    assert not [sql for sql in statements if "autorun_failure" in sql or "exempt:" in sql]


def test_another_runner_goes_on(make, disk):
    with installed(runner := make(49), other := declare(NAME="Other", TITLE="Other")):
        runner().run()
        other().run()
        work_off()

        assert other().progress().succeeded == 49
        assert runner().progress().succeeded == 0


def test_chunks_that_are_cancelled_during_a_release_hold_nothing_up(make):
    runner = make(1)

    with installed(runner):
        assert next_try(runner().get_node().pk, runner.get_label(), Chunk.objects.waiting()) is None
