"""The page of a run: why it ran, and what happened when."""

from typing import Any

import pytest

from autorun.admin.stories import Story, other_runs, outcome_of, runs_behind
from autorun.models import Batch, Failure, Run
from autorun.observe.explanation import ALL
from autorun.observe.listing import RunFilter
from autorun.planning.named import plan_keys
from tests.engine import declare, installed, work_off
from tests.library.models import Document

pytestmark = pytest.mark.django_db


@pytest.fixture
def document() -> Document:
    return Document.objects.create(title="a")


def fail_if_bad(value: Any) -> Any:
    if "bad" in value:
        raise ValueError(value)


def told(runner: Any, run: Run | None = None) -> Story:
    """The story of a run, or of the newest."""
    if run is None:
        run = Run.objects.select_related("chunk__batch", "node").latest("pk")
    instance = Document.objects.filter(pk=run.object_id).first()
    return Story(run, runner, instance, other_runs(run), ALL)


def why(runner: Any) -> str:
    return told(runner).why


def test_the_first_run_of_a_row(document):
    with installed(echo := declare()):
        echo().run()

        assert why(echo()) == (
            "A run() call found the row pending. First recorded run of this row."
        )


def test_a_run_of_a_row_that_changed(document):
    with installed(echo := declare()):
        echo().run()
        work_off()
        first = Run.objects.get()
        Document.objects.update(title="b")
        plan_keys(echo(), [document.pk])

        assert why(echo()) == f"The row was saved. The row had changed since run {first.pk}."


def test_a_run_for_a_success_upstream(document):
    upstream = declare(NAME="Upstream")
    downstream = declare(NAME="Downstream", TITLE="Down", DEPENDS_ON=(upstream,))
    with installed(upstream, downstream):
        upstream().run()
        work_off()
        run = Run.objects.select_related("chunk__batch", "node").latest("pk")

        assert run.chunk.runner == "tests.Downstream"
        assert why(downstream()) == (
            "The runner depends on tests.Upstream, which had a new success on the row. "
            "First recorded run of this row."
        )
        assert list(RunFilter(trigger="dependency").runs()) == [run]
        assert [each.chunk.runner for each in runs_behind(downstream(), document)] == [
            "tests.Upstream",
            "tests.Downstream",
        ]


def test_what_was_adopted_is_no_success_upstream(document):
    with installed(echo := declare()):
        echo().adopt()

        assert "without running it" in why(echo())
        assert not RunFilter(trigger="dependency").runs().exists()


def test_a_run_that_another_has_taken_the_place_of(document):
    with installed(failing := declare(fail_if_bad, MAX_ATTEMPTS=1)):
        Document.objects.update(title="bad")
        failing().run()
        work_off()
        first = Run.objects.get()
        failing().retry()
        second = Run.objects.latest("pk")
        first.refresh_from_db()
        on_the_same = told(failing(), first).now
        Document.objects.update(title="good")
        failing().run()
        third = Run.objects.latest("pk")
        first.refresh_from_db()

        assert (outcome_of(first), outcome_of(third)) == ("failed", "")
        assert on_the_same == (
            f"It failed, no attempts left. Run {second.pk} on the same input has replaced it."
        )
        assert told(failing(), first).now == (
            f"It failed, no attempts left. Run {third.pk} on a newer input has replaced it."
        )


def test_a_run_that_was_forced(document):
    with installed(echo := declare()):
        echo().run()
        work_off()
        first = Run.objects.get()
        echo().backfill(force=True)

        assert why(echo()) == (
            f"Started by backfill {Batch.objects.latest('pk').pk} (all rows, again). "
            f"It was forced: run {first.pk} had succeeded on the same input."
        )


def test_a_run_that_was_retried(document):
    Document.objects.update(title="bad")
    with installed(failing := declare(fail_if_bad, MAX_ATTEMPTS=1)):
        failing().run()
        work_off()
        first = Run.objects.get()
        failing().retry()

        assert why(failing()) == (
            f"Started by backfill {Batch.objects.latest('pk').pk} (failed rows). "
            f"It was retried: run {first.pk} had failed on the same input."
        )


def test_a_run_that_was_cancelled_before_its_start_is_passed_over(document):
    with installed(echo := declare()):
        from autorun.control import interventions

        echo().run()
        interventions.cancel_runner(echo.get_label(), reason="")
        echo().run()

        assert why(echo()).endswith("First recorded run of this row.")


def test_a_row_whose_input_could_not_be_prepared_before(document):
    def get_instance_representation(self, instance):
        return 1 / (instance.title != "bad")

    Document.objects.update(title="bad")
    options = {"INPUT_FIELDS": None, "get_instance_representation": get_instance_representation}
    with installed(echo := declare(**options)):
        echo().run()
        unprepared = Run.objects.get()
        before = told(echo())
        Document.objects.update(title="good")
        echo().run()

        assert before.why.startswith("Its input could not be prepared")
        words = [event.words for event in before.events]
        assert "before its first attempt it failed: ZeroDivisionError" in words
        assert why(echo()).endswith(
            f"In run {unprepared.pk} the input of the row could not be prepared."
        )


@pytest.mark.parametrize(
    ("settle", "words"),
    [
        ("adopt", "The row was adopted: recorded as done without running it."),
        ("ignore", "The row is ignored until its input changes."),
    ],
)
def test_a_row_that_was_adopted_or_ignored(document, settle, words):
    with installed(echo := declare()):
        getattr(echo(), settle)()

        assert why(echo()) == words


def test_the_attempts_before_a_retry_are_told_by_how_they_failed(document):
    Document.objects.update(title="bad")
    with installed(failing := declare(fail_if_bad, MAX_ATTEMPTS=2, RETRY_BACKOFF=0)):
        failing().run()
        work_off()
        Failure.objects.filter(attempt=1).update(worker="first@host")
        story = told(failing())

    words = [event.words for event in story.events]
    again = "queued for attempt 2 (earlier queue times are not kept)"
    assert {"attempt 1 failed on first@host: ValueError", again} < set(words)
    assert "planned" not in words
    assert any(each.startswith("attempt 2 failed") for each in words)
    assert words[-1] == "failed, no attempts left"
