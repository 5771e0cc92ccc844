"""STOP_AFTER: so many failures pause the batch that was requested, or else the runner."""

from io import StringIO

import django
import pytest
from django.contrib.auth.models import User
from django.core import mail
from django.core.management import call_command
from django.urls import reverse

from autorun.control.interventions import resume_runner
from autorun.models import Batch, Chunk, Node, Run
from autorun.notifications import mail_admins
from autorun.observe.checks.values import check_values
from autorun.observe.doctor.backlog import examine_held_up, examine_paused
from autorun.observe.notifying import notify_soon
from autorun.planning import batches
from autorun.planning.on_demand import sweep_now
from autorun.runner import Failures
from autorun.state.clock import from_now
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db
FAILED_HALF = "5 of the last 10 rows have failed, the last with ValueError"


def fail_odd(value):
    if int(value) % 2:
        raise ValueError(f"{value} is secret")
    return value


def make(number=60, body=fail_odd, **options):
    Document.objects.bulk_create([Document(title=f"{n:03}") for n in range(number)])
    defaults = {"STOP_AFTER": Failures(5, of=10), "MAX_ATTEMPTS": 1, "BATCH_SIZE": 4}
    return declare(body, **defaults | options)


@pytest.mark.parametrize("size", [1, 4, 60, None])
def test_a_batch_that_fails_so_much_is_paused_with_the_reason(size):
    with installed(runner := make(BATCH_SIZE=size)):
        batch = runner().backfill()
        work_off()
        progress = runner().progress()
        batch.refresh_from_db()

    assert (batch.state, runner().get_node().paused_at) == (Batch.State.PAUSED, None)
    assert "rows have failed, the last with ValueError" in batch.reason
    assert 5 <= progress.failed <= 8  # chunks in flight go on
    assert progress.unfinished >= 40


@pytest.mark.parametrize("number", [6, 30])
def test_fewer_failures_pause_nothing(number):
    with installed(runner := make(STOP_AFTER=Failures(number, of=10))):
        batch = runner().backfill()
        work_off()
        batch.refresh_from_db()

    assert (batch.state, batch.reason) == (Batch.State.FINISHED, "")


def test_failures_of_a_sweep_pause_the_runner():
    with installed(runner := make()):
        batch = sweep_now(runner())
        work_off()
        batch.refresh_from_db()
        node = Node.objects.get()

    assert batch.reason == ""
    assert node.paused_at is not None
    assert "rows have failed, the last with ValueError" in node.paused_because


def test_after_a_resume_only_later_failures_count():
    with installed(runner := make(10, BATCH_SIZE=1)):
        sweep_now(runner())
        work_off()
        assert Node.objects.get().paused_because == FAILED_HALF
        # Ended chunks that had started before the stop.
        Chunk.objects.update(started_at=from_now(-60))
        assert resume_runner(runner())
        Document.objects.create(title="001")
        sweep_now(runner())
        work_off()
        node = Node.objects.get()

    assert (node.paused_at, node.paused_because) == (None, "")
    assert runner().progress().failed == 6


def test_a_resumed_batch_says_no_reason_and_goes_on():
    with installed(runner := make(BATCH_SIZE=60)):
        batch = runner().backfill()
        work_off()
        batch.refresh_from_db()
        assert batches.resume(batch)
        batch.refresh_from_db()
        resumed = batch.state, batch.reason
        failed = runner().progress().failed
        work_off()
        batch.refresh_from_db()

    assert resumed == (Batch.State.RUNNING, "")
    assert (failed, runner().progress().failed) == (5, 10)
    assert batch.state == Batch.State.PAUSED


def test_rows_that_all_fail_alike_pause_it_as_well():
    def fail(value):
        raise OSError(28, "No space left on device")

    with installed(runner := make(body=fail, MAX_ATTEMPTS=3, BATCH_SIZE=None)):
        batch = runner().backfill()
        work_off()
        batch.refresh_from_db()

    assert batch.state == Batch.State.PAUSED
    assert batch.reason == "20 of the last 20 rows have failed, the last with OSError"
    assert not Run.objects.filter(status=Run.Status.FAILED).exists()


def test_a_chunk_without_failures_asks_nothing(django_assert_max_num_queries):
    from autorun.execution.brake import Brake

    with installed(runner := make(1)):
        runner().backfill()
        brake = Brake(runner(), Chunk.objects.get(), succeeded=3)
        with django_assert_max_num_queries(0):
            assert not brake.why_to_stop(_success(), is_last=True)


def _success():
    class Success:
        status, failure = Run.Status.SUCCEEDED, None

    return Success()


@pytest.mark.parametrize("is_batch", [True, False])
def test_the_reason_is_shown_everywhere(is_batch, client, settings):
    settings.AUTORUN = settings.AUTORUN | {"ON_FAILURE": mail_admins}
    ada = "ada@example.com"
    settings.ADMINS = [("Ada", ada)] if django.VERSION < (6,) else [ada]
    with installed(runner := make(BATCH_SIZE=60)):
        batch = runner().backfill() if is_batch else sweep_now(runner())
        work_off()
        findings = list(examine_held_up() if is_batch else examine_paused())
        client.force_login(User.objects.create_superuser("ada"))
        name, of = ("batch_change", batch.pk) if is_batch else ("node_runner", runner.get_label())
        page = client.get(reverse(f"admin:autorun_{name}", args=[of])).content.decode()
        printed = StringIO()
        call_command("autorun", "status", runner.get_label(), stdout=printed)
        run = Run.objects.filter(status=Run.Status.PENDING).last()
        waiting = runner().explain(Document.objects.get(pk=run.object_id))
        notify_soon(runner())

    texts = [page, printed.getvalue(), findings[0].message, waiting.reason, mail.outbox[-1].body]
    for text in texts:
        assert "rows have failed, the last with ValueError" in text
    assert waiting.code == "paused"
    assert "failed, paused: " in mail.outbox[-1].subject


@pytest.mark.parametrize(
    "value", [20, Failures(0, of=10), Failures(11, of=10), Failures(5, of=20_000), Failures(1.5)]
)
def test_a_check_names_other_values(value):
    with installed(runner := make(0, STOP_AFTER=value)):
        (found,) = check_values(runner())

    assert found.id == "autorun.E014"
    assert "STOP_AFTER" in found.msg
    assert "Failures(20, of=100)" in found.hint
