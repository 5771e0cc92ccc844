"""Bodies that end as neither success nor failure: NotApplicable and RetryLater."""

import datetime as dt
from email.utils import format_datetime

import pytest
from django.core.management import call_command
from django.urls import reverse
from django.utils import timezone

from autorun import testing
from autorun.control import interventions
from autorun.exceptions import NotApplicable, RetryLater
from autorun.models import Chunk, Failure, Node, Run
from autorun.observe.listing import RunFilter
from autorun.planning import batches
from autorun.planning.cancelling import cancel_unstarted
from autorun.planning.counting import count_rows
from autorun.planning.reasons import Reason
from autorun.signals import run_failed, run_succeeded
from autorun.state.counts import BatchCounts, Progress
from autorun.upkeep import folding
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db

NOT_APPLICABLE = Run.Status.NOT_APPLICABLE


def judge(value, **_):
    """Rows whose title begins with a dash have no pixels."""
    if value.startswith("-"):
        raise NotApplicable("no pixel data")
    return value


def make(*titles):
    return [Document.objects.create(title=title) for title in titles]


def run(runner_class):
    batch = runner_class().run()
    work_off()
    return batch


def test_a_row_may_be_not_applicable_which_is_neither_success_nor_failure():
    good, bad = make("good", "-")
    runner_class = declare(judge)
    with installed(runner_class):
        batch = run(runner_class)
        runner = runner_class()

        assert runner.progress() == Progress(succeeded=1, not_applicable=1)
        assert batches.counts(batch) == BatchCounts(succeeded=1, not_applicable=1)
        assert not runner.pending().exists()
        explained = runner.explain(bad)
    assert (explained.code, explained.is_pending) == ("not_applicable", False)
    assert explained.reason.endswith("until the row changes: no pixel data.")
    ended = current_runs()[bad.pk]
    assert (ended.status, ended.attempts, ended.outputs) == (NOT_APPLICABLE, 1, "no pixel data")
    assert not Failure.objects.exists()
    assert current_runs()[good.pk].outputs == "good"


def test_a_row_that_is_not_applicable_is_looked_at_again_when_it_changes():
    make("-")
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)
        Document.objects.update(title="good")
        run(runner_class)

        assert runner_class().progress() == Progress(succeeded=1)
        Document.objects.update(title="-")
        run(runner_class)
        assert runner_class().progress() == Progress(not_applicable=1)
    assert statuses() == [NOT_APPLICABLE, Run.Status.SUCCEEDED, NOT_APPLICABLE]


def test_a_dependent_does_not_run_on_a_row_that_is_not_applicable():
    (document,) = make("-")
    first = declare(judge, NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,))
    with installed(first, second):
        run(first)

        assert second().run().planned == 0
        reason = second().explain(document).reason
    assert "which is not applicable to it" in reason


def test_rows_that_are_not_applicable_can_be_run_again():
    make("-", "good")
    calls = []
    runner_class = declare(lambda value: (calls.append(value), judge(value)))
    with installed(runner_class):
        run(runner_class)
        calls.clear()
        assert runner_class().backfill(only="failed").planned == 0
        assert runner_class().backfill(only="all").planned == 0
        rows = count_rows(runner_class()).rows
        assert rows[Reason.NOT_APPLICABLE] == rows[Reason.DONE] == 1

        assert runner_class().backfill(only="not_applicable").planned == 1
        work_off()
        assert calls == ["-"]
        assert runner_class().progress() == Progress(succeeded=1, not_applicable=1)
        retried = interventions.retry_runs([list(Run.objects.current())])
        assert (retried.runs, retried.ignored) == (1, 1)


def test_a_cancelled_rerun_makes_the_row_not_applicable_again():
    make("-")
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)
        runner_class().backfill(force=True)
        assert runner_class().progress().not_applicable == 0

        cancel_unstarted(Chunk.objects.all())

        assert runner_class().progress() == Progress(not_applicable=1)


def test_rows_that_are_not_applicable_are_folded(set_constants):
    set_constants(folding, FEW=1)
    make("-", "-", "good")
    runner_class = declare(judge, BATCH_SIZE=1)
    with installed(runner_class):
        batch = run(runner_class)
        runner_class().ignore(Document.objects.none())
        before = runner_class().progress()

        assert folding.fold(runner_class().get_node().pk, quiet=0) == 3

        assert runner_class().progress() == before == Progress(succeeded=1, not_applicable=2)
        assert RunFilter(state="not_applicable").number() == 2
        assert RunFilter(state="ignored").number() == 0
    assert Node.objects.get().folded_not_applicable == 2
    assert batches.counts(batch) == BatchCounts(succeeded=1, not_applicable=2)


def test_runs_are_filtered_by_not_applicable():
    make("-", "good")
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)

        found = [each for runs in RunFilter(state="not_applicable").each() for each in runs]
    assert [each.status for each in Run.objects.filter(pk__in=[each.pk for each in found])] == [
        NOT_APPLICABLE
    ]
    assert not list(RunFilter(state="cancelled").each())
    assert not list(RunFilter(state="ignored").each())


def test_many_rows_that_are_not_applicable_do_not_hold_the_runner_up():
    make(*["-"] * 30)
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)

        assert runner_class().progress() == Progress(not_applicable=30)


def test_no_signal_is_sent_for_a_row_that_is_not_applicable():
    make("-")
    heard = []

    def note(**values):
        heard.append(values)

    run_succeeded.connect(note)
    run_failed.connect(note)
    runner_class = declare(judge)
    try:
        with installed(runner_class):
            run(runner_class)
    finally:
        run_succeeded.disconnect(note)
        run_failed.disconnect(note)
    assert not heard


def test_a_long_reason_is_cut_and_may_contain_anything():
    make("x")

    def body(value):
        raise NotApplicable("\0\ud800" + "y" * 10_000)

    runner_class = declare(body)
    with installed(runner_class):
        run(runner_class)
    assert 500 < len(Run.objects.get().outputs) <= 1_000


def test_the_pages_and_the_command_line_show_what_is_not_applicable(admin_client, capsys):
    make("-", "good")
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)
        call_command("autorun", "status", runner_class.get_label())
        told = capsys.readouterr().out
        ended = Run.objects.get(status=NOT_APPLICABLE)
        pages = [
            admin_client.get(reverse("admin:autorun_node_runner", args=[runner_class.get_label()])),
            admin_client.get(reverse("admin:autorun_run_changelist") + "?state=not_applicable"),
            admin_client.get(reverse("admin:autorun_run_change", args=[ended.pk])),
            admin_client.get(reverse("admin:autorun_batch_changelist")),
        ]
    assert "1 done, 1 not applicable" in told
    assert all("not applicable" in page.content.decode() for page in pages)
    assert "no pixel data" in pages[2].content.decode()


def test_a_test_can_assert_that_a_row_is_not_applicable():
    good, bad = make("good", "-")
    runner_class = declare(judge)
    with installed(runner_class):
        run(runner_class)

        assert testing.assert_not_applicable(runner_class, bad, reason="no pixel data").pk
        with pytest.raises(AssertionError, match="gave the reason 'no pixel data', not 'other'"):
            testing.assert_not_applicable(runner_class, bad, reason="other")
        with pytest.raises(AssertionError, match="is not recorded as not applicable"):
            testing.assert_not_applicable(runner_class, good)


def later(seconds=30, reason="", **options):
    def body(value):
        raise RetryLater(seconds, reason, **options)

    return body


def test_retry_later_uses_no_attempt_and_waits():
    (document,) = make("a")
    runner_class = declare(later(30, "quota exceeded"))
    with installed(runner_class):
        runner_class().run()
        work_off()
        chunk = Chunk.objects.waiting().get()
        explained = runner_class().explain(document)
        shown = runner_class().progress()
        found = [each for runs in RunFilter(state="postponed").each() for each in runs]
        assert not list(RunFilter(state="waiting").each())

    seconds = (chunk.not_before - timezone.now()).total_seconds()
    assert 20 < seconds <= 30
    assert chunk.postponed_by == "RetryLater: quota exceeded"
    assert shown == Progress(postponed=1)
    assert (explained.code, len(found)) == ("postponed", 1)
    assert explained.reason.endswith("RetryLater: quota exceeded.")
    assert Run.objects.get().attempts == 0
    assert not Failure.objects.exists()


def test_a_postponed_run_goes_on_and_succeeds():
    make("a")
    answers = [RetryLater(1), None]

    def body(value):
        if error := answers.pop(0):
            raise error
        return value

    runner_class = declare(body, MAX_ATTEMPTS=1)
    with installed(runner_class):
        batch = runner_class().run()
        work_off(retry_now=True)

        assert runner_class().progress() == Progress(succeeded=1)
    assert Run.objects.get().attempts == 1
    batch.refresh_from_db()
    assert batch.state == batch.State.FINISHED


def test_rows_that_wait_equally_long_share_a_chunk_whatever_they_say():
    make(*"abcd")

    def body(value):
        raise RetryLater(30, f"row {value}")

    runner_class = declare(body)
    with installed(runner_class):
        run(runner_class)

    assert Chunk.objects.waiting().get().size == 4


def test_postponed_rows_never_hold_the_runner_up():
    make(*["x"] * 30)
    runner_class = declare(later())
    with installed(runner_class):
        run(runner_class)

        assert runner_class().progress() == Progress(postponed=30)
    assert not Chunk.objects.parked().exists()


def test_with_limit_the_other_rows_of_the_chunk_wait_as_well():
    make(*"abcd")
    calls = []

    def body(value):
        calls.append(value)
        raise RetryLater(30, limit=True)

    runner_class = declare(body)
    with installed(runner_class):
        run(runner_class)

        assert runner_class().progress() == Progress(postponed=4)
    assert len(calls) == 1


def test_the_seconds_are_bounded_and_may_be_a_header():
    soon = timezone.now() + dt.timedelta(seconds=90)

    assert RetryLater(0).seconds == RetryLater(-5).seconds == 1
    assert RetryLater(0.2).seconds == 1
    assert RetryLater(1e9).seconds == RetryLater(float("inf")).seconds == 24 * 3600
    assert RetryLater("120").seconds == 120
    assert 80 < RetryLater(format_datetime(soon.astimezone(dt.UTC), usegmt=True)).seconds <= 90
    for wrong in ("soon", None, float("nan")):
        with pytest.raises(ValueError, match="Retry-After"):
            RetryLater(wrong)
