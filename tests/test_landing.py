"""Outputs that are written to the project's own rows, in the transaction of the success."""

import datetime as dt
import uuid
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any, TypedDict

import pytest
from django.db import connection, connections, transaction
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext

from autorun.exceptions import RunTimeout
from autorun.execution import landing
from autorun.execution.brake import FAILURES
from autorun.execution.execute import execute
from autorun.models import Chunk, Failure, Run
from autorun.observe.checks import check_all
from autorun.state.clock import from_now
from autorun.upkeep import rounds
from tests.crashes import Crash, armed
from tests.engine import current_runs, declare, installed, statuses, work_off
from tests.library.models import Country, Document, Photo, Report, Site, Summary

SUCCEEDED, FAILED, PENDING = Run.Status.SUCCEEDED, Run.Status.FAILED, Run.Status.PENDING


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(5)]


def executed(function: Any, **options: Any) -> list[Run.Status]:
    runner = declare(function, **options)
    with installed(runner):
        runner().run()
        work_off()
    return statuses()


def shouted(value: str) -> dict[str, Any]:
    return {"shout": value.upper(), "size": {"length": len(value)}}


def ids(checks: Any) -> list[str]:
    return [each.id for each in checks if "EchoRunner" in str(each.obj)]


@pytest.mark.django_db
def test_outputs_are_written_to_the_fields_of_their_rows(documents):
    saved = []
    receiver = lambda instance, **_: saved.append(instance)  # noqa: E731
    post_save.connect(receiver, sender=Document, weak=False)
    runner = declare(shouted, OUTPUT_FIELDS={"shout": "body", "size__length": "state"})
    with installed(runner):
        runner().run()
        work_off()
        pending = runner().pending().count()
    post_save.disconnect(receiver, sender=Document)

    for document in documents:
        document.refresh_from_db()
        assert (document.body, document.state) == (document.title.upper(), "7")
    assert (saved, pending) == ([], 0)
    assert current_runs()[documents[0].pk].outputs == shouted("title 0")


@pytest.mark.django_db
def test_many_rows_take_one_update(documents):
    runner = declare(lambda value: value, OUTPUT_FIELDS="body", STORE_OUTPUTS=False)
    with installed(runner):
        runner().run()
        with CaptureQueriesContext(connection) as queries:
            work_off()

    updates = [each for each in queries if "library_document" in each["sql"]]
    assert len([each for each in updates if each["sql"].startswith("UPDATE")]) == 1
    assert set(Run.objects.values_list("outputs", flat=True)) == {None}
    assert Document.objects.get(pk=documents[3].pk).body == "title 3"


@pytest.mark.django_db
@pytest.mark.parametrize("model", [Photo, Country])
def test_rows_with_uuid_and_text_keys(model):
    field = {Photo: "caption", Country: "name"}[model]
    rows = (
        [model.objects.create(pk=pk) for pk in (uuid.uuid4(), uuid.uuid4())]
        if (model is Photo)
        else [model.objects.create(pk=pk) for pk in ("de", "fr")]
    )

    ended = executed(
        lambda value: str(value).upper(),
        DATA_MODEL=model,
        INPUT_FIELDS=("pk",),
        OUTPUT_FIELDS=field,
    )

    assert ended == [SUCCEEDED] * 2
    for row in rows:
        row.refresh_from_db()
        assert getattr(row, field) == str(row.pk).upper()


@pytest.mark.django_db
def test_fields_of_a_parent_are_updated_in_its_table():
    report = Report.objects.create(title="annual", pages=1)

    executed(
        lambda value: {"pages": 7, "text": value},
        DATA_MODEL=Report,
        OUTPUT_FIELDS={"pages": "pages", "text": "body"},
    )

    report.refresh_from_db()
    assert (report.pages, report.body) == (7, "annual")


VALUES = {
    "label": "é'%s",
    "words": 3,
    "ratio": 0.25,
    "price": Decimal("12.50"),
    "read_on": dt.date(2031, 5, 4),
    "read_at": dt.datetime(2031, 5, 4, 3, 2, 1, tzinfo=dt.UTC),
    "took": dt.timedelta(days=1, seconds=2),
    "is_good": True,
    "details": {"a": [1, None]},
    "uid": uuid.UUID(int=7),
}


@pytest.mark.django_db
@pytest.mark.parametrize("way", ["OUTPUT_FIELDS", "OUTPUT_MODEL", "by name"])
def test_every_type_of_field_is_landed_and_none_is_null(documents, way):
    site = Site.objects.create()
    document = documents[0]
    Document.objects.exclude(pk=document.pk).delete()
    outputs = VALUES | {"site": site.pk}
    named = {name: name for name in outputs}
    options: dict[str, Any] = {"OUTPUT_MODEL": Summary, "OUTPUT_KEY": "document"}
    if way == "OUTPUT_FIELDS":
        summary = Summary.objects.create(document=document)
        options = {"DATA_MODEL": Summary, "INPUT_FIELDS": ("document",), "OUTPUT_FIELDS": named}
    elif way == "OUTPUT_MODEL":
        options["OUTPUT_FIELDS"] = named
    else:
        outputs.pop("site")

    assert executed(lambda value: outputs, **options) == [SUCCEEDED]
    summary = Summary.objects.get(document=document)
    assert {name: getattr(summary, name) for name in VALUES} == VALUES
    assert way == "by name" or summary.site == site

    Run.objects.all().delete()
    Chunk.objects.all().delete()
    assert executed(lambda value: dict.fromkeys(outputs), **options) == [SUCCEEDED]
    summary.refresh_from_db()
    assert {getattr(summary, name) for name in VALUES} == {None}
    assert Summary.objects.count() == 1


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_one_row_that_violates_a_constraint_fails_alone_with_the_reason(documents):
    Summary.objects.create(document=documents[4], label="title 2")

    def labelled(value):
        return {"label": "other" if value == "title 4" else value}

    ended = executed(labelled, OUTPUT_MODEL=Summary, OUTPUT_KEY="document")

    assert ended == [SUCCEEDED, SUCCEEDED, FAILED, SUCCEEDED, SUCCEEDED]
    assert Failure.objects.get().exception_class == "django.db.utils.IntegrityError"
    assert "label" in Failure.objects.get().message
    landed = set(Summary.objects.values_list("document__title", flat=True))
    assert landed == {"title 0", "title 1", "title 3", "title 4"}
    failed = Run.objects.get(status=FAILED)
    assert (failed.outputs, failed.attempts) == (None, 1)


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_a_value_that_does_not_fit_its_field_fails_its_row_alone(documents):
    def counted(value):
        return {"words": "many" if value == "title 1" else 3}

    ended = executed(counted, OUTPUT_MODEL=Summary, OUTPUT_KEY="document")

    assert ended == [SUCCEEDED, FAILED, *[SUCCEEDED] * 3]
    assert Summary.objects.filter(words=3).count() == 4


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_a_value_that_another_row_has_changes_neither(documents):
    for n in (2, 4):
        Summary.objects.create(document=documents[n], label=f"was {n}", words=n)

    def labelled(value):
        if value == "title 4":
            raise ValueError
        return {"label": "was 4" if value == "title 2" else value, "words": 7}

    executed(labelled, OUTPUT_MODEL=Summary, OUTPUT_KEY="document", MAX_ATTEMPTS=1)

    landed = dict(Summary.objects.values_list("document__title", "words"))
    assert landed == {"title 0": 7, "title 1": 7, "title 2": 2, "title 3": 7, "title 4": 4}


@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor == "sqlite", reason="its columns have no length")
@pytest.mark.parametrize("way", ["OUTPUT_FIELDS", "OUTPUT_MODEL"])
def test_a_text_longer_than_its_column_fails_its_row_and_is_not_cut(documents, way):
    options = {"OUTPUT_FIELDS": {"label": "state"}}
    if way == "OUTPUT_MODEL":
        options = {"OUTPUT_MODEL": Summary, "OUTPUT_KEY": "document"}

    ended = executed(lambda value: {"label": value * (9 if value == "title 1" else 1)}, **options)

    assert ended == [SUCCEEDED, FAILED, *[SUCCEEDED] * 3]
    assert Failure.objects.get().exception_class == "django.db.utils.DataError"


@pytest.mark.django_db
def test_an_output_that_is_missing_is_named(documents):
    def some(value):
        return {} if value == "title 1" else {"shout": value}

    assert executed(some, OUTPUT_FIELDS={"shout": "body"})[1] == FAILED
    assert "no 'shout'" in Failure.objects.get().message


def saving(save: Any) -> dict[str, Any]:
    return {"save_outputs": lambda self, results: save(results)}


@pytest.mark.django_db
def test_a_hook_gets_many_results_at_once(documents):
    calls: list[Any] = []

    executed(shouted, **saving(calls.append))

    [results] = calls
    assert [each.key for each in results] == [each.pk for each in documents]
    assert results[1].outputs == shouted("title 1")
    assert {each.run for each in results} == set(Run.objects.values_list("pk", flat=True))


@pytest.mark.faults(49)
@pytest.mark.django_db
@pytest.mark.parametrize("error", [ValueError("bad"), SystemExit(1), KeyboardInterrupt()])
def test_a_hook_that_raises_for_one_row_leaves_neither_its_success_nor_its_row(documents, error):
    def save(results):
        for each in results:
            Summary.objects.create(document_id=each.key)
            if each.outputs["shout"] == "TITLE 1":
                raise error

    ended = executed(shouted, **saving(save))

    assert ended == [SUCCEEDED, FAILED, *[SUCCEEDED] * 3]
    assert Summary.objects.count() == 4
    assert not Summary.objects.filter(document=documents[1]).exists()
    assert Failure.objects.get().exception_class.endswith(type(error).__name__)


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_a_hook_that_raises_for_all_rows_fails_none_of_them():
    for number in range(25):
        Document.objects.create(title=f"title {number}")

    def save(results):
        if results:
            raise ValueError("the table is gone")

    ended = executed(shouted, **saving(save))

    assert set(ended) == {PENDING}
    parked = list(Chunk.objects.parked())
    assert sum(each.size for each in parked) == 25
    assert all("the table is gone" in each.reason for each in parked)
    assert set(Run.objects.values_list("attempts", flat=True)) == {0}
    assert not Failure.objects.exists()


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_landings_that_all_fail_alike_hold_the_runner_up_whatever_the_size_of_its_chunks():
    """As those of a JSON encoder that is broken."""
    for number in range(40):
        Document.objects.create(title=f"title {number}")
    is_broken = True

    def save(results):
        if results and is_broken:
            raise TypeError("not serializable")

    runner = declare(shouted, BATCH_SIZE=3, **saving(save))
    with installed(runner):
        runner().run()
        work_off()

        failed = statuses().count(FAILED)
        assert 0 < failed < FAILURES
        assert "not serializable" in Chunk.objects.parked().first().reason
        is_broken = False
        Chunk.objects.parked().update(not_before=from_now(-1))
        rounds.upkeep(in_any_case=True)
        work_off()

        assert statuses().count(SUCCEEDED) == 40 - failed


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_a_hook_that_hangs_is_ended_and_leaves_nothing(documents, set_constants):
    set_constants(landing, HOOK_SECONDS=0.05)

    def save(results):
        Summary.objects.bulk_create([Summary(document_id=each.key) for each in results])
        while any(each.outputs["shout"] == "TITLE 0" for each in results):
            pass

    runner = declare(shouted, BATCH_SIZE=2, **saving(save))
    with installed(runner):
        runner().run()
        work_off()

    ended = statuses()
    assert ended[0] == FAILED
    assert ended[1:] == [SUCCEEDED] * 4
    assert Failure.objects.get().exception_class.endswith(RunTimeout.__name__)
    assert Summary.objects.count() == 4


@pytest.mark.faults(49)
@pytest.mark.django_db
def test_a_hook_that_hangs_for_all_rows_holds_its_runner_up(documents, set_constants):
    set_constants(landing, HOOK_SECONDS=0.05)

    def save(results):
        while results:
            pass

    assert set(executed(shouted, **saving(save))) == {PENDING}
    assert "save_outputs() took longer" in Chunk.objects.exclude(reason="").get().reason


@pytest.mark.faults(49)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("point", ["finish.updated", "finish.landed", "finish.failures"])
def test_a_process_killed_before_the_commit_leaves_neither_success_nor_landed_row(documents, point):
    runner = declare(shouted, OUTPUT_FIELDS={"shout": "body"})
    with installed(runner):
        runner().run()
        [chunk] = Chunk.objects.all()
        with pytest.raises(Crash), armed(point):
            execute(chunk.pk)
        connections.close_all()

        assert set(statuses()) == {PENDING}
        assert set(Document.objects.values_list("body", flat=True)) == {""}


@pytest.mark.faults(49)
@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor == "sqlite", reason="it locks the whole database")
def test_a_row_that_the_project_holds_locked_is_run_again_later(documents):
    runner = declare(shouted, OUTPUT_FIELDS={"shout": "body"})
    with installed(runner):
        runner().run()
        with transaction.atomic():
            Document.objects.filter(pk=documents[1].pk).update(state="being edited")
            with ThreadPoolExecutor() as pool:
                pool.submit(lambda: (work_off(), connections.close_all())).result()

        assert statuses() == [SUCCEEDED, PENDING, *[SUCCEEDED] * 3]
    run = Run.objects.get(object_id=documents[1].pk)
    assert (run.attempts, run.chunk.state) == (0, Chunk.State.WAITING)
    assert not Failure.objects.exists()


class Shout(TypedDict):
    shout: str


def annotated(value: str) -> Shout:
    return {"shout": value}


@pytest.mark.parametrize(
    ("expected", "function", "options"),
    [
        ("E040", shouted, {"OUTPUT_FIELDS": 3}),
        ("E040", shouted, {"OUTPUT_FIELDS": {"shout": "bodi"}}),
        ("E040", shouted, {"OUTPUT_FIELDS": {"shout": "id"}}),
        ("E040", shouted, {"OUTPUT_FIELDS": {"shout": "tags"}}),
        ("E041", shouted, {"OUTPUT_FIELDS": {"shout": "title"}}),
        ("E042", shouted, {"OUTPUT_MODEL": Summary}),
        ("E042", shouted, {"OUTPUT_MODEL": "Summary", "OUTPUT_KEY": "document"}),
        ("E042", shouted, {"OUTPUT_MODEL": Summary, "OUTPUT_KEY": "words"}),
        ("E042", shouted, {"OUTPUT_MODEL": Report, "OUTPUT_KEY": "title"}),
        ("E042", shouted, {"OUTPUT_KEY": "document"}),
        ("E014", shouted, {"STORE_OUTPUTS": "no"}),
        ("E044", annotated, {"OUTPUT_FIELDS": {"shuot": "body"}}),
        (None, annotated, {"OUTPUT_FIELDS": {"shout": "body"}}),
        (None, shouted, {"OUTPUT_FIELDS": "body"}),
        (None, shouted, {"OUTPUT_MODEL": Summary, "OUTPUT_KEY": "document"}),
    ],
)
def test_checks_of_landing(expected, function, options):
    with installed(declare(function, **options)):
        found = ids(check_all())

    assert found == ([f"autorun.{expected}"] if expected else [])


def test_a_row_in_another_database_than_autorun_cannot_be_landed():
    def elsewhere(self):
        return Document.objects.using("archive")

    runner = declare(shouted, OUTPUT_FIELDS={"shout": "body"}, get_base_queryset=elsewhere)
    with installed(runner):
        assert "autorun.E043" in ids(check_all())
