"""`explain()` of a row in each of its states; it agrees with `pending()`."""

import datetime as dt
import re
import uuid
from typing import Any

import pytest
from django.db import connections
from django.db.models import Q
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.planning import batches
from tests.engine import declare, echo, installed, work_off
from tests.library.models import Country, Document, DraftDocument, Photo, Report, Tag

pytestmark = pytest.mark.django_db


def represented(self, instance):
    return {"title": instance.title}


def broken(value: Any) -> Any:
    raise ValueError(f"no such scanner\nas {value}")


PLANNERS = pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="database"),
        pytest.param(
            {"INPUT_FIELDS": None, "get_instance_representation": represented}, id="python"
        ),
    ],
)


def explained(runner: Any, instance: Any) -> Any:
    """The explanation, once it is certain that `pending()` says the same."""
    explanation = runner.explain(instance)
    assert explanation.is_pending == runner.pending().filter(pk=instance.pk).exists()
    assert explanation.reason.endswith(".")
    return explanation


@pytest.fixture
def document() -> Document:
    return Document.objects.create(title="a")


@PLANNERS
def test_the_way_of_a_row(document, options):
    runner = declare(**options)
    with installed(runner):
        never = explained(runner(), document)
        runner().run()
        queued = explained(runner(), document)
        work_off()
        succeeded = explained(runner(), document)
        Document.objects.filter(pk=document.pk).update(title="b")
        changed = explained(runner(), document)

    assert [each.code for each in (never, queued, succeeded, changed)] == [
        *("never_ran", "queued", "succeeded", "changed")
    ]
    assert "manage.py autorun sweep tests.EchoRunner" in never.reason
    assert never.run is None
    assert succeeded.run.status == Run.Status.SUCCEEDED
    assert f"{timezone.localtime(succeeded.run.finished_at):%Y-%m-%d %H:%M:%S}" in succeeded.reason


@PLANNERS
def test_a_row_that_changed_while_its_run_was_queued(document, options):
    runner = declare(**options)
    with installed(runner):
        runner().run()
        Document.objects.filter(pk=document.pk).update(title="b")

        explanation = explained(runner(), document)

    assert (explanation.is_pending, explanation.code) == (True, "changed")
    assert "in progress" in explanation.reason


def test_a_cancelled_run_is_named_with_the_result_before_it(document):
    with installed(runner := declare()):
        runner().run()
        work_off()
        Document.objects.filter(pk=document.pk).update(title="b")
        batches.cancel(runner().backfill())
        after_a_result = explained(runner(), document)
        other = Document.objects.create(title="c")
        batches.cancel(runner().backfill(Document.objects.filter(pk=other.pk)))
        after_nothing = explained(runner(), other)

    assert (after_a_result.code, after_nothing.code) == ("never_ran", "never_ran")
    assert re.search(
        r"cancelled before it was done on this row \(previous result: succeeded at \S+ \S+ UTC\);",
        after_a_result.reason,
    )
    assert "cancelled before it was done on this row; the" in after_nothing.reason


def test_running_names_the_worker(document):
    runner = declare()
    with installed(runner):
        runner().run()
        Chunk.objects.update(
            state=Chunk.State.RUNNING, worker="w1@lab:7", started_at=timezone.now()
        )

        explanation = explained(runner(), document)

    assert explanation.code == "running"
    assert "w1@lab:7" in explanation.reason


def test_retrying_names_the_attempt_and_the_error(document):
    runner = declare(broken, RETRY_BACKOFF=1000)
    with installed(runner):
        runner().run()
        work_off()

        explanation = explained(runner(), document)

    assert explanation.code == "retrying"
    assert "attempt 2 of 3" in explanation.reason
    assert re.search(
        r"3\. Attempt 1 failed on \S+: ValueError: no such scanner\.$", str(explanation)
    )


@PLANNERS
def test_failed_names_the_error_and_what_to_do(document, options):
    runner = declare(broken, MAX_ATTEMPTS=1, **options)
    with installed(runner):
        runner().run()
        work_off()

        explanation = explained(runner(), document)

    assert explanation.code == "failed"
    assert re.search(
        r"after 1 attempt \(no attempts left\) at [-\d]+ [:\d]+ UTC on \S+: ValueError: no such "
        r"scanner\. To retry it, run `",
        explanation.reason,
    )
    assert "manage.py autorun retry tests.EchoRunner" in explanation.reason


def test_a_lost_worker_is_named_by_the_message_only(document):
    runner = declare(broken, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()
        Failure.objects.update(
            exception_class="autorun.exceptions.WorkerLost",
            message="The worker w1@lab:7 stopped answering.",
            worker="recorder@lab:8",
        )

        explanation = explained(runner(), document)

    assert (
        "WorkerLost: The worker w1@lab:7 stopped answering. To retry it, run `manage"
        in explanation.reason
    )
    assert "recorder" not in explanation.reason


def test_an_input_that_cannot_be_prepared(document):
    def get_instance_representation(self, instance):
        raise FileNotFoundError("a.nii")

    runner = declare(INPUT_FIELDS=None, get_instance_representation=get_instance_representation)
    with installed(runner):
        before = explained(runner(), document)
        runner().run()
        after = explained(runner(), document)

    assert (before.code, after.code) == ("unprepared", "failed")
    assert "FileNotFoundError: a.nii" in before.reason
    assert "FileNotFoundError: a.nii" in after.reason


def test_waiting_for_room(document, settings):
    runner = declare(BATCH_SIZE=1)
    settings.AUTORUN = {"WINDOW": 1}
    other = Document.objects.create(title="b")
    with installed(runner):
        runner().run()

        codes = {explained(runner(), each).code for each in (document, other)}

    assert codes == {"queued", "waiting"}


def test_a_parked_run_tells_why(document):
    runner = declare()
    with installed(runner):
        runner().run()
        Chunk.objects.update(state=Chunk.State.PARKED, reason="No analysis of that name.")

        explanation = explained(runner(), document)

    assert explanation.code == "parked"
    assert explanation.reason == "Parked: No analysis of that name."


def test_a_paused_runner(document):
    runner = declare()
    with installed(runner):
        runner().get_node()
        Node.objects.update(paused_at=timezone.now())
        before = explained(runner(), document)
        runner().run()
        after = explained(runner(), document)

    assert (before.code, after.code) == ("never_ran", "paused")
    assert "paused since" in before.reason


def test_a_paused_batch(document):
    runner = declare()
    with installed(runner):
        batch = runner().backfill()
        Chunk.objects.update(state=Chunk.State.WAITING)
        Batch.objects.filter(pk=batch.pk).update(state=Batch.State.RUNNING)
        batches.pause(batch)

        explanation = explained(runner(), document)

    assert explanation.code == "paused"
    assert f"batch {batch.pk}" in explanation.reason


def test_ignored_and_adopted(document):
    other = Document.objects.create(title="b")
    runner = declare()
    with installed(runner):
        runner().ignore(Document.objects.filter(pk=document.pk))
        runner().adopt(Document.objects.filter(pk=other.pk))

        ignored, adopted = explained(runner(), document), explained(runner(), other)

    assert (ignored.code, adopted.code) == ("ignored", "succeeded")
    assert "adopted" in adopted.reason


def test_outside_of_the_base_query(document):
    with installed(runner := declare(BASE_QUERY=Q(title="b"))):
        assert explained(runner(), document).code == "not_in_base_query"


@PLANNERS
def test_left_out_by_the_filter(document, options):
    def filter_queryset(self, queryset, log_level=0):
        return queryset.filter(title="a")

    with installed(runner := declare(filter_queryset=filter_queryset, **options)):
        runner().run()
        work_off()
        Document.objects.filter(pk=document.pk).update(title="b")

        explanation = explained(runner(), document)

    assert explanation.code == "filtered_out"
    assert "Echo v1.0 succeeded at" in explanation.reason


def test_a_queued_run_of_a_row_that_is_filtered_out_meanwhile(document):
    with installed(runner := declare(BASE_QUERY=Q(title="a"))):
        runner().run()
        Document.objects.filter(pk=document.pk).update(title="b")

        explanation = explained(runner(), document)

    assert explanation.code == "queued"
    assert "will be cancelled" in explanation.reason


def test_a_run_of_a_given_queryset_outside_of_the_base_query(document):
    with installed(runner := declare(BASE_QUERY=Q(title="b"))):
        runner().run(Document.objects.all())

        explanation = explained(runner(), document)

    assert explanation.code == "queued"
    assert "cancelled" not in explanation.reason


@PLANNERS
def test_dependencies(document, options):
    upstream = declare(NAME="Upstream", TITLE="First")
    downstream = declare(NAME="Downstream", TITLE="Second", DEPENDS_ON=(upstream,), **options)
    with installed(upstream, downstream):
        before = explained(downstream(), document)
        upstream().run()
        during = explained(downstream(), document)
        work_off()
        after = explained(downstream(), document)

    assert [each.code for each in (before, during)] == ["dependency", "dependency"]
    assert before.reason == "Waiting for tests.Upstream, which has not run on the row."
    assert during.reason == "Waiting for tests.Upstream, which is in progress."
    assert after.code == "succeeded"


@pytest.mark.parametrize(
    ("options", "excluding"),
    [
        ({"BASE_QUERY": Q(title="other")}, "base queryset"),
        ({"filter_queryset": lambda self, rows, log_level: rows.none()}, "filter_queryset()"),
    ],
)
def test_a_dependency_that_does_not_cover_the_row(document, options, excluding):
    upstream = declare(NAME="Upstream", TITLE="First", **options)
    downstream = declare(NAME="Downstream", TITLE="Second", DEPENDS_ON=(upstream,))
    with installed(upstream, downstream):
        explanation = explained(downstream(), document)

    assert explanation.code == "dependency"
    assert explanation.reason == (
        f"Waiting for tests.Upstream, whose {excluding} excludes the row."
    )


def test_rows_that_are_not_there(document):
    with installed(runner := declare()):
        never_saved = runner().explain(Document(title="x"))
        built = runner().explain(Document(pk=99, title="x"))
        pk = document.pk
        Document.objects.filter(pk=pk).delete()
        deleted = runner().explain(document)

    assert [each.code for each in (never_saved, built, deleted)] == [
        *("unsaved", "unsaved", "deleted")
    ]
    assert not any(each.is_pending for each in (never_saved, built, deleted))


@pytest.mark.parametrize(
    ("model", "fields"),
    [(Photo, {"caption": "a"}), (Country, {"code": "it"}), (Report, {"title": "a"})],
)
def test_keys_of_every_kind(model, fields):
    instance = model.objects.create(**fields)
    runner = declare(DATA_MODEL=model, INPUT_FIELDS=("pk",))
    with installed(runner):
        before = explained(runner(), instance)
        runner().run()
        work_off()
        after = explained(runner(), instance)

    assert (before.code, after.code) == ("never_ran", "succeeded")


def test_proxies_children_and_other_models(document):
    proxy = DraftDocument.objects.get(pk=document.pk)
    report = Report.objects.create(title="r")
    with installed(runner := declare()):
        assert explained(runner(), proxy).code == "never_ran"
        assert explained(runner(), report).code == "never_ran"
        for other in (Tag(pk=3), document.pk, [document], Document):
            with pytest.raises(
                TypeError, match=r"processes rows of library\.Document, not .*\. Give"
            ):
                runner().explain(other)


def test_a_run_that_is_planned_takes_four_queries(document):
    with installed(runner := declare()):
        runner().run()
        with CaptureQueriesContext(connections["default"]) as queries:
            runner().explain(document)

    assert len(queries) <= 4


def test_times_are_those_of_the_project(document, settings):
    settings.TIME_ZONE = "Asia/Tokyo"
    with installed(runner := declare(echo)):
        runner().run()
        work_off()
        Run.objects.update(finished_at=dt.datetime(2026, 5, 1, 20, 30, tzinfo=dt.UTC))

        assert "2026-05-02 05:30:00" in runner().explain(document).reason


def test_a_uuid_that_no_row_has():
    with installed(runner := declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))):
        assert runner().explain(Photo(pk=uuid.uuid4())).code == "unsaved"
