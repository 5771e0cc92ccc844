"""Related rows: a row is looked at when one that it reads is saved, deleted, linked or unlinked."""

import pytest
from django.apps import apps
from django.db import connection, models, transaction
from django.test.utils import CaptureQueriesContext

from autorun import testing
from autorun.declare import registry
from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.planning import named
from autorun.planning.batches import take_over
from autorun.planning.on_demand import go_on
from autorun.state.clock import from_now
from autorun.state.origins import origin_of
from autorun.tasks import plan
from autorun.triggers import delivery
from tests.crashes import crashed_at
from tests.engine import declare, installed, plan_all_spilled, work_off
from tests.library.models import (
    Consent,
    Document,
    Image,
    Label,
    Patient,
    Reading,
    Site,
    Tag,
    Visit,
)

pytestmark = pytest.mark.django_db(transaction=True)


def images(**options):
    defaults = {"DATA_MODEL": Image, "INPUT_FIELDS": ("path", "visit__patient__age")}
    return declare(NAME="ImageRunner", TITLE="Image", **defaults | options)


def patients(**options):
    options = {"DATA_MODEL": Patient, "INPUT_FIELDS": ("code",)} | options
    return declare(NAME="PatientRunner", TITLE="Patient", **options)


def an_image(**values):
    patient = Patient.objects.create(code=f"p{Patient.objects.count()}", age=30)
    visit = Visit.objects.create(patient=patient)
    return Image.objects.create(visit=visit, path="a", **values)


def labels(sent):
    return {message.args[0]: sorted(message.args[1]) for message in sent}


@pytest.fixture
def done():
    """Saved rows are processed at once; a function that returns how many runs there are."""
    with testing.run_inline():
        yield Run.objects.count


def test_a_saved_related_row_has_the_rows_that_read_it_processed_again(done):
    with installed(images()):
        first, other = an_image(), an_image()
        assert done() == 2

        patient = first.visit.patient
        patient.age = 31
        patient.save()

        assert done() == 3
        run = Run.objects.latest("pk")
        assert (run.object_id, run.outputs["value"]["visit__patient__age"]) == (first.pk, 31)
        assert origin_of(run.chunk) == "related"
    assert other.pk


def test_a_related_row_whose_read_columns_did_not_change_causes_no_run(done):
    with installed(images()):
        image = an_image()
        done()

        image.visit.patient.save()

        assert done() == 1


def test_a_path_is_watched_at_each_of_its_relations(done):
    with installed(images()):
        image = an_image()
        other = Patient.objects.create(code="other", age=50)
        done()

        image.visit.patient = other
        image.visit.save()

        assert done() == 2


def test_the_key_of_a_related_row_is_the_rows_own_column(sent):
    with registry.registered(images(INPUT_FIELDS=("path", "visit_id", "visit")), alone=True):
        assert delivery.dependents() == {}


def test_a_reverse_one_to_one_relation_is_watched(done):
    with installed(patients(INPUT_FIELDS=("code", "consent__text"))):
        patient = Patient.objects.create(code="a")
        assert done() == 1
        consent = Consent.objects.create(patient=patient, text="yes")
        assert done() == 2
        consent.delete()
        assert done() == 3


def test_members_of_a_watched_reverse_relation_name_the_row_they_refer_to(sent):
    with installed(patients(WATCH=("visits__images",))):
        with transaction.atomic():
            image = an_image()
            for _ in range(3):
                Image.objects.create(visit=image.visit, path="b")
        sent.clear()
        image.save()
        Image.objects.filter(pk=image.pk).delete()

    name = "related:library.Patient:visits__id"
    assert [labels([each]) for each in sent] == [{name: [image.visit_id]}] * 2


def test_the_rows_of_a_member_are_found_by_the_field_that_it_refers_to(done):
    age = {"get_instance_representation": lambda self, row: row.visits.count()}
    with installed(patients(WATCH=("visits",), INPUT_FIELDS=None, **age)):
        patient = Patient.objects.create(code="a")
        assert done() == 1
        visit = Visit.objects.create(patient=patient)
        assert done() == 2
        visit.delete()
        assert done() == 3


def test_a_member_that_refers_to_no_row_is_not_delivered(sent):
    with installed(patients(WATCH=("visits__images",))):
        Image.objects.create(path="alone")

    assert sent == []


def test_a_deferred_reference_is_not_queried_in_a_save(sent):
    with installed(patients(WATCH=("visits__images",))):
        an_image()
        image = Image.objects.only("path").get()
        sent.clear()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            image.save()

    assert len(queries) == 1
    assert sent == []


@pytest.mark.parametrize("by", ["document", "tag"])
def test_links_of_a_watched_many_to_many_relation_are_seen_from_both_sides(by, sent):
    tag = Tag.objects.create(name="t")
    with installed(declare(WATCH=("tags",))):
        document = Document.objects.create(title="a")
        links = document.tags if by == "document" else tag.document_set
        other = tag if by == "document" else document
        sent.clear()

        links.add(other)
        links.remove(other)
        tag.save()

    name = "related:library.Document:"
    assert [labels([each]) for each in sent] == [
        {f"{name}id": [document.pk]},
        {f"{name}id": [document.pk]},
        {f"{name}tags__pk": [tag.pk]},
    ]


class Labels(models.Field):
    """Many to many, but not Django's field: its links name rows of any model."""

    many_to_many = True
    related_model = Tag

    def __init__(self):
        super().__init__(rel=models.ManyToManyRel(self, Tag, related_name="+", through=Label))

    def get_attname_column(self):
        return self.name, None

    def related_query_name(self):
        return "+"


@pytest.fixture
def labelled():
    """Documents with a field `labels` as django-taggit has them."""
    Labels().contribute_to_class(Document, "labels")
    yield Document
    Document._meta.local_many_to_many.remove(Document._meta.get_field("labels"))
    apps.clear_cache()  # of tags, too


def test_links_that_may_name_a_row_of_any_model_are_watched(labelled, sent):
    tag = Tag.objects.create(name="t")
    with installed(declare(WATCH=("labels",))):
        document = labelled.objects.create(title="a")
        sent.clear()

        link = Label.objects.create(tag=tag, content_object=document)
        link.delete()
        tag.save()

    name = "related:library.Document:"
    assert [labels([each]) for each in sent] == [
        {f"{name}pk": [document.pk]},
        {f"{name}pk": [document.pk]},
        {f"{name}labels__pk": [tag.pk]},
    ]


def test_clearing_the_links_of_a_row_is_seen(sent):
    with installed(declare(WATCH=("tags",))):
        document = Document.objects.create(title="a")
        document.tags.add(Tag.objects.create(name="t"))
        sent.clear()

        document.tags.clear()

    assert labels(sent) == {"related:library.Document:id": [document.pk]}


def test_rows_of_a_through_model_are_watched(sent):
    visit = Visit.objects.create(patient=Patient.objects.create(code="a"))
    site = Site.objects.create(name="s")
    with installed(patients(WATCH=("visits__readers",))):
        reading = Reading.objects.create(visit=visit, site=site)
        reading.delete()

    assert [labels([each]) for each in sent] == [
        {"related:library.Patient:visits__id": [visit.pk]}
    ] * 2


def test_a_saved_related_row_costs_the_saver_no_query(sent):
    with installed(images(), patients(WATCH=("visits__images", "site"))):
        image = an_image()
        with CaptureQueriesContext(connection) as queries:
            image.save()

    assert len(queries) == 1


def test_a_runner_without_on_save_leaves_related_rows_to_its_sweep(sent):
    with installed(images(ON_SAVE=False)):
        an_image()

    assert sent == []


def test_a_related_row_of_many_rows_becomes_a_batch(sent, set_constants):
    set_constants(named, MOST_ROWS=3)
    with installed(images()):
        image = an_image()
        for _ in range(3):
            Image.objects.create(visit=image.visit, path="b")
        sent.clear()
        image.visit.patient.save()
        [message] = sent
        plan(*message.args)

        batch = Batch.objects.get()
        assert batch.trigger == Batch.Trigger.RELATED
        assert batch.planned == 4
        assert batch.description == "pending rows whose visit patient changed"
        work_off()
        assert Batch.objects.get().state == Batch.State.FINISHED
        assert {origin_of(run.chunk) for run in Run.objects.all()} == {"related"}


def test_another_process_continues_such_a_batch(set_constants, sent):
    set_constants(named, MOST_ROWS=1)
    with installed(images()):
        image = an_image()
        Image.objects.create(visit=image.visit, path="b")
        an_image()
        with crashed_at("backfill.begun"):
            plan("related:library.Image:visit__patient__pk", [image.visit.patient.pk])
        Batch.objects.update(expires_at=from_now(-1))

        batch = go_on(take_over(Batch.objects.get().pk))

        assert batch.planned == 2


def test_a_worker_without_the_runner_leaves_the_rows_to_another(sent):
    plan("related:library.Image:visit__patient__pk", [1])

    assert SpilledTrigger.objects.get().model_label == "related:library.Image:visit__patient__pk"


def test_related_rows_that_wait_in_the_database_are_planned(sent):
    image = an_image()
    name = "related:library.Image:visit__patient__pk"
    with installed(images()):
        SpilledTrigger.objects.create(model_label=name, keys=[image.visit.patient.pk])
        assert plan_all_spilled() == 1
        work_off()

        assert Run.objects.get().object_id == image.pk


def test_rows_that_a_process_died_of_are_left_to_upkeep_one_by_one(sent):
    image = an_image()
    name = "related:library.Image:visit__patient__pk"
    with installed(images()):
        SpilledTrigger.objects.create(model_label=name, keys=[image.visit.patient.pk], tries=1)
        plan_all_spilled()

        left = SpilledTrigger.objects.get()
        assert (left.model_label, left.runner, left.keys) == (
            "library.Image",
            images().get_label(),
            [image.pk],
        )


def test_a_lookup_that_no_runner_watches_is_not_applied(sent):
    with registry.registered(images()):
        plan("related:library.Image:path", ["a"])

    assert not Chunk.objects.exists()


def test_the_rows_are_found_by_one_query(sent):
    image = an_image()
    with installed(images()), CaptureQueriesContext(connection) as queries:
        plan("related:library.Image:visit__patient__pk", [image.visit.patient.pk])

    found = [query["sql"] for query in queries if f"LIMIT {named.MOST_ROWS + 1}" in query["sql"]]
    assert len(found) == 1


def test_a_declaration_that_raises_stops_no_other_runner(done):
    def get_input_fields(self):
        raise ValueError("no such file")

    broken = declare(NAME="BrokenRunner", DATA_MODEL=Image, get_input_fields=get_input_fields)
    with installed(broken, images()):
        an_image()

    assert Run.objects.succeeded().count() == 1
