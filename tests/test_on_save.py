"""Which saves reach the delivery, with which primary keys, and when."""

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest
from django.apps import apps
from django.core import serializers
from django.db import connection, transaction
from django.db.models import Model
from django.db.models.signals import post_save
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun.declare import registry
from autorun.dispatch.publishing import Message, redirected
from autorun.runner import QuerySetRunner
from autorun.triggers import on_save
from tests.crashes import failing_at
from tests.library.models import Country, Document, DraftDocument, Note, Photo, Report, Tag

pytestmark = pytest.mark.django_db(transaction=True)


def runner_for(model: type[Model], **options: Any) -> type[QuerySetRunner]:
    return type(f"{model.__name__}Runner", (QuerySetRunner,), {"DATA_MODEL": model, **options})


DocumentRunner = runner_for(Document)


@pytest.fixture
def submitted() -> Iterator[list[dict[str, set[Any]]]]:
    """The rows that were published, one dict for each call."""
    flushes: list[dict[str, set[Any]]] = []

    def note(messages: Sequence[Message]) -> None:
        saved = defaultdict(set)
        for message in messages:
            saved[message.args[0]] |= set(message.args[1])
        flushes.append(dict(saved))

    with redirected(note):
        yield flushes


@pytest.fixture
def documents() -> Iterator[None]:
    """A runner over documents is registered."""
    with registry.registered(DocumentRunner):
        yield


def test_a_save_outside_a_transaction_is_handed_over_at_once(submitted, documents):
    document = Document.objects.create()

    assert submitted == [{"library.Document": {document.pk}}]


def test_saves_of_a_transaction_are_handed_over_together_when_it_commits(submitted, documents):
    with transaction.atomic():
        first = Document.objects.create()
        second = Document.objects.create()
        assert submitted == []

    assert submitted == [{"library.Document": {first.pk, second.pk}}]


def test_a_row_saved_often_is_handed_over_once(submitted, documents):
    with transaction.atomic():
        document = Document.objects.create()
        for _ in range(100):
            document.save(update_fields=["title"])

    assert submitted == [{"library.Document": {document.pk}}]


def test_many_saves_of_a_transaction_register_few_hooks(submitted, documents, set_constants):
    set_constants(on_save, MOST_HOOKS=5)
    with transaction.atomic():
        saved = {Document.objects.create().pk for _ in range(20)}
        assert len(connection.run_on_commit) == 5
        with transaction.atomic():
            saved.add(Document.objects.create().pk)

    assert set.union(*(each["library.Document"] for each in submitted)) == saved


def test_a_rolled_back_transaction_hands_nothing_over(submitted, documents):
    with suppress(ZeroDivisionError), transaction.atomic():
        Document.objects.create()
        raise ZeroDivisionError
    kept = Document.objects.create()

    assert submitted == [{"library.Document": {kept.pk}}]


def test_a_rolled_back_savepoint_hands_over_only_what_commits(submitted, documents):
    with transaction.atomic():
        before = Document.objects.create()
        with suppress(ZeroDivisionError), transaction.atomic():
            Document.objects.create()
            raise ZeroDivisionError
        with transaction.atomic():
            inside = Document.objects.create()
        after = Document.objects.create()

    assert _pks(submitted) == {before.pk, inside.pk, after.pk}


def test_a_rolled_back_savepoint_does_not_take_earlier_saves_with_it(submitted, documents):
    with transaction.atomic():
        document = Document.objects.create()
        with suppress(ZeroDivisionError), transaction.atomic():
            document.save()
            raise ZeroDivisionError

    assert submitted == [{"library.Document": {document.pk}}]


def test_a_runner_whose_model_hook_raises_costs_no_other_its_saves(submitted, documents):
    def get_model(self):
        raise RuntimeError("no model today")

    with registry.registered(runner_for(Photo, get_model=get_model)):
        document = Document.objects.create()

    assert submitted == [{"library.Document": {document.pk}}]


def test_saves_are_seen_between_other_hooks(submitted, documents):
    with transaction.atomic():
        saved = []
        for _ in range(3):
            saved.append(Document.objects.create().pk)
            transaction.on_commit(lambda: None)

    assert _pks(submitted) == set(saved)


@pytest.mark.django_db(transaction=False)
def test_captured_hooks_hand_over_after_saves_outside_the_capture(
    submitted, documents, django_capture_on_commit_callbacks
):
    document = Document.objects.create()

    with django_capture_on_commit_callbacks(execute=True):
        document.save()

    assert _pks(submitted) == {document.pk}


def test_a_transaction_that_django_does_not_manage_saves_all_the_same(submitted, documents, caplog):
    transaction.set_autocommit(False)
    try:
        Document.objects.create()
        transaction.commit()
    finally:
        transaction.set_autocommit(True)

    assert submitted == []
    assert "The next sweep finds it" in caplog.text
    assert Document.objects.exists()


def test_fixtures_are_left_to_the_sweep(submitted, documents):
    document = Document(pk=7, title="from a fixture", updated_at=timezone.now())
    text = serializers.serialize("json", [document])

    for each in serializers.deserialize("json", text):
        each.save()

    assert submitted == []


@pytest.mark.parametrize("change", ["update_fields", "deferred", "only"])
def test_partial_saves_are_handed_over(submitted, documents, change):
    Document.objects.bulk_create([Document(pk=1)])

    match change:
        case "update_fields":
            Document.objects.get().save(update_fields=["state"])
        case "deferred":
            Document.objects.defer("body").get().save()
        case "only":
            Document.objects.only("title").get().save()

    assert submitted == [{"library.Document": {1}}]


def test_models_without_a_runner_hand_nothing_over(submitted, documents):
    Tag.objects.create()

    assert submitted == []


def test_a_runner_with_on_save_off_hears_nothing(submitted):
    with registry.registered(runner_for(Document, ON_SAVE=False)):
        Document.objects.create()

    assert submitted == []


def test_a_runner_is_heard_of_as_soon_as_it_is_registered_and_no_longer(submitted):
    Document.objects.create()
    with registry.registered(DocumentRunner):
        document = Document.objects.create()
    Document.objects.create()

    assert _pks(submitted) == {document.pk}


def test_a_proxy_and_its_model_are_one(submitted):
    with registry.registered(DocumentRunner, runner_for(DraftDocument)):
        document = Document.objects.create()
        draft = DraftDocument.objects.create()

    assert submitted == [
        {"library.Document": {pk}, "library.DraftDocument": {pk}} for pk in (document.pk, draft.pk)
    ]


def test_a_saved_child_is_a_saved_parent(submitted, documents):
    Document.objects.bulk_create([Document()])
    report = Report.objects.create()

    assert submitted == [{"library.Document": {report.document_ptr_id}}]


def test_a_saved_parent_may_be_a_child_of_the_same_key(submitted):
    report = Report.objects.create()
    with registry.registered(runner_for(Report)):
        Document.objects.get(pk=report.pk).save()
        DraftDocument.objects.get(pk=report.pk).save()

    assert submitted == [{"library.Report": {report.pk}}] * 2


@pytest.mark.parametrize("model", [Photo, Country, Note])
def test_keys_of_every_kind_are_handed_over(submitted, model):
    instance = Country(code="fr") if model is Country else model()

    with registry.registered(runner_for(model)):
        instance.save()

    key = str(instance.pk) if model is Photo else instance.pk  # JSON does not know a UUID
    assert submitted == [{model._meta.label: {key}}]


def test_saving_costs_no_query(submitted, documents):
    with CaptureQueriesContext(connection) as queries:
        Document.objects.create()

    assert len(queries) == 1


def test_an_error_while_noting_a_save_is_logged_with_the_runner(
    submitted, documents, monkeypatch, caplog
):
    Document.objects.create()
    monkeypatch.setattr(on_save, "_joined", _fail)

    Document.objects.create()

    assert Document.objects.count() == 2
    assert "DocumentRunner" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_an_error_while_handing_over_is_logged(documents, caplog):
    with failing_at("save.committed", [ZeroDivisionError()]), transaction.atomic():
        Document.objects.create()

    assert Document.objects.exists()
    assert "library.Document: 1 saved rows were not handed over" in caplog.text


def test_a_runner_without_a_model_does_not_disturb_the_others(submitted, caplog):
    broken = type("BrokenRunner", (QuerySetRunner,), {})
    with caplog.at_level(logging.ERROR), registry.registered(DocumentRunner, broken):
        document = Document.objects.create()

    assert _pks(submitted) == {document.pk}
    assert not caplog.records


def test_models_of_data_migrations_are_left_out(submitted, documents):
    from django.db.migrations.state import ModelState, ProjectState

    state = ProjectState()
    state.add_model(ModelState.from_model(Tag))
    historical = state.apps.get_model("library", "Tag")

    post_save.send(historical, instance=historical(pk=1), created=True, raw=False, using="default")

    assert submitted == []
    assert historical not in on_save._watches
    assert apps.get_model("library", "Tag") is Tag


def _pks(flushes: list[dict[str, set[Any]]]) -> set[Any]:
    assert all(flush.keys() == {"library.Document"} for flush in flushes)
    return set().union(*(flush["library.Document"] for flush in flushes))


def _fail(*args: Any) -> None:
    raise ZeroDivisionError
