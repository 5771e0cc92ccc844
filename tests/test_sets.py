"""Sets of rows: the members of a relation as an input, and successes on each of them."""

from pathlib import Path

import pytest
from django.db import connection, transaction
from django.db.models import F, Q
from django.test.utils import CaptureQueriesContext

from autorun import testing
from autorun.declare import page_time
from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.observe.run_states import stale_among
from autorun.planning import named
from autorun.planning.counting import count_rows
from autorun.planning.rows import load
from autorun.runner import Each, Members
from tests.engine import declare, installed, work_off
from tests.library.models import Country, Document, Image, Patient, Report, Tag, Visit

pytestmark = pytest.mark.django_db(transaction=True)

IMAGES = Members("visits__images", "path")


def patients(*inputs, **options):
    options = {"DATA_MODEL": Patient, "INPUT_FIELDS": inputs or (IMAGES,)} | options
    return declare(NAME="PatientRunner", TITLE="Patient", **options)


def images(function=None, **options):
    options = {"DATA_MODEL": Image, "INPUT_FIELDS": ("path",), "NAME": "ImageRunner"} | options
    options["TITLE"] = "Image"
    return declare(function, **options) if function else declare(**options)


@pytest.fixture
def visit(sent):
    return Visit.objects.create(patient=Patient.objects.create(code="a"))


def add(visit, *paths, **values):
    return [Image.objects.create(visit=visit, path=path, **values) for path in paths]


def fingerprint(runner, patient):
    return load(runner(), [patient.pk], within_base=True)[patient.pk].fingerprint


def value(runner):
    """Return the input that the analysis gets for the only row."""
    runner().run()
    work_off()
    return Run.objects.latest("pk").outputs["value"]


def test_an_analysis_gets_the_members_in_the_order_of_their_keys(visit):
    add(visit, "b", "a", "a")
    with installed(patients()):
        assert value(patients()) == ["b", "a", "a"]


def test_members_have_a_dict_of_several_fields_beside_other_inputs(visit):
    add(visit, "a", modality="CT", size=1)
    fields = Members("visits__images", "path", "visit__patient__age", "size", name="images")
    runner = patients("code", fields)
    with installed(runner):
        assert value(runner) == {
            "code": "a",
            "images": [{"path": "a", "visit__patient__age": 0, "size": 1}],
        }


def test_members_without_fields_are_their_keys(visit):
    [image] = add(visit, "a")
    runner = patients(Members("visits__images"))
    with installed(runner):
        assert value(runner) == [image.pk]


def test_where_chooses_among_the_members(visit):
    add(visit, "a")
    add(visit, "b", modality="CT")
    anatomical = Members("visits__images", "path", where=Q(modality="MR"), name="mr")
    other = Members("visits__images", "path", where=~Q(modality="MR"), name="others")
    runner = patients(anatomical, other)
    with installed(runner):
        assert value(runner) == {"mr": ["a"], "others": ["b"]}


def test_an_empty_set_is_an_empty_list(visit):
    with installed(patients()):
        assert value(patients()) == []


def test_members_are_converted_as_the_argument_is_annotated(visit):
    def names(value: list[Path]) -> list[str]:
        return [each.name for each in value]

    add(visit, "x/a", "x/b")
    runner = declare(
        names, NAME="PatientRunner", TITLE="Names", DATA_MODEL=Patient, INPUT_FIELDS=(IMAGES,)
    )
    with installed(runner):
        runner().run()
        work_off()

        assert Run.objects.get().outputs == ["a", "b"]


def test_members_of_a_many_to_many_relation_are_found_from_both_sides(sent):
    document, other = (Document.objects.create(title=title) for title in "ab")
    tag = Tag.objects.create(name="t")
    tag.document_set.add(document, other)
    of_documents = declare(INPUT_FIELDS=(Members("tags", "name"),))
    of_tags = declare(
        NAME="TagRunner", DATA_MODEL=Tag, INPUT_FIELDS=(Members("document", "title"),)
    )
    with installed(of_documents, of_tags):
        assert value(of_documents) == ["t"]
        assert value(of_tags) == ["a", "b"]


def test_the_fingerprint_is_of_the_set(visit):
    runner = patients(Members("visits__images", "path", "size"))
    patient = visit.patient
    with installed(runner):
        seen = {fingerprint(runner, patient)}

        def is_new():
            now = fingerprint(runner, patient)
            known = now in seen
            seen.add(now)
            return not known

        first, second = add(visit, "a", "b")
        assert is_new()
        Image.objects.filter(pk=second.pk).update(path="c")
        assert is_new()
        # In another order.
        Image.objects.filter(pk=first.pk).update(path="c")
        Image.objects.filter(pk=second.pk).update(path="a")
        assert not is_new()
        [third] = add(visit, "a")
        assert is_new()
        [fourth] = add(visit, "a")
        assert is_new()
        # What XOR would cancel out.
        third.delete(), fourth.delete()
        assert not is_new()
        Image.objects.update(size=0)
        assert is_new()
        Image.objects.update(path="", size=None)
        assert is_new()
        Image.objects.all().delete()
        assert not is_new()


def test_a_set_that_group_concat_would_cut_off_is_compared_to_its_end(visit):
    Image.objects.bulk_create(Image(visit=visit, path=f"{number:099}") for number in range(2_000))
    with installed(patients()):
        before = fingerprint(patients(), visit.patient)
        Image.objects.filter(path=f"{1_999:099}").update(path="other")

        assert fingerprint(patients(), visit.patient) != before


def test_the_connection_of_a_page_that_compares_sets_is_kept(visit, caplog):
    add(visit, "a", "b")
    with installed(patients()), page_time.budget(), page_time.spent("The query"):
        assert count_rows(patients()()).pending == 1

    assert "It is replaced" not in caplog.text


def test_sets_are_compared_in_one_statement(visit):
    add(visit, "a")
    with installed(patients()):
        value(patients())
        patients()().run()
        with CaptureQueriesContext(connection) as queries:
            assert patients()().run(log_level=1).planned == 0

    table = Image._meta.db_table
    assert len([each for each in queries if table in each["sql"]]) == 1


def test_pending_and_existing_rows_are_told_apart_by_their_sets(visit):
    other = Visit.objects.create(patient=Patient.objects.create(code="b"))
    add(visit, "a")
    with installed(patients()):
        value(patients())
        assert not patients()().pending().exists()

        add(other, "b")

        assert list(patients()().pending()) == [other.patient]
        assert patients()().has_run(visit.patient)
        assert patients()().explain(other.patient).code == "changed"


def test_the_members_of_a_chunk_are_loaded_with_one_query(visit):
    for number in range(5):
        add(Visit.objects.create(patient=Patient.objects.create(code=str(number))), "a", "b")
    with installed(patients()):
        patients()().run()
        with CaptureQueriesContext(connection) as queries:
            work_off()

    owner = f"ORDER BY {connection.ops.quote_name(Image._meta.db_table)}"
    loaded = [each for each in queries if owner in each["sql"]]
    assert len(loaded) == 1


@pytest.mark.parametrize("change", ["add", "edit", "delete", "move"])
def test_a_saved_member_has_its_row_processed_again(change):
    visit = Visit.objects.create(patient=Patient.objects.create(code="a"))
    other = Visit.objects.create(patient=Patient.objects.create(code="b"))
    [image] = add(visit, "a")
    with installed(patients()):
        patients()().run()
        work_off()
        with testing.run_inline():
            if change == "add":
                add(visit, "b")
            elif change == "edit":
                image.path = "c"
                image.save()
            elif change == "delete":
                image.delete()
            else:
                image.visit = other
                image.save()

        processed = Run.objects.filter(is_current=True).order_by("object_id")
        values = [run.outputs["value"] for run in processed]
        expected = {
            "add": [["a", "b"], []],
            "edit": [["c"], []],
            "delete": [[], []],
            # The new parent at once, the old one by the next sweep.
            "move": [["a"], ["a"]],
        }
        assert values == expected[change]
        assert patients()().pending().count() == (change == "move")


def test_what_chooses_members_is_watched():
    where = Q(visit__patient__age__gte=18) & ~Q(path=F("visit__patient__site__name"))
    runner = declare(DATA_MODEL=Visit, INPUT_FIELDS=(Members("images", "path", where=where),))()
    assert {each.relation for each in runner.related()} == {
        "images",
        "images__visit",
        "images__visit__patient",
        "images__visit__patient__site",
    }
    upstream = declare(NAME="PathRunner", DATA_MODEL=Image, INPUT_FIELDS=("path",))
    named = Each(upstream, "images", where=where)
    waiting = declare(DATA_MODEL=Visit, INPUT_FIELDS=(), DEPENDS_ON=(named,))()

    assert set(waiting.related()) == set(runner.related())


def test_the_parents_row_of_a_saved_member_is_watched():
    runner = declare(DATA_MODEL=Country, INPUT_FIELDS=(Members("reports", "title"),))
    with installed(runner):
        report = Report.objects.create(title="a", country=Country.objects.create(code="se"))
        runner().run()
        work_off()
        with testing.run_inline():
            Document(pk=report.pk, title="b").save()

    assert Run.objects.current().get().outputs == {"value": ["b"]}


def test_many_members_of_one_row_plan_it_once():
    visit = Visit.objects.create(patient=Patient.objects.create(code="a"))
    with installed(patients(), images(ON_SAVE=False)), testing.run_inline():
        with transaction.atomic():
            add(visit, *map(str, range(50)))

        assert Run.objects.count() == 1


# Each


def both(function=None, *, where=None, **options):
    first = images(function)
    each = Each(first, "visits__images", where=where)
    return first, patients("code", DEPENDS_ON=(each,), **options)


def test_a_row_waits_for_a_success_on_each_of_its_members(visit):
    def fail(value):
        if value == "bad":
            raise ValueError

    add(visit, "a", "b", "bad", "c")
    first, second = both(fail)
    with installed(first, second):
        assert second().pending().count() == 0
        assert second().explain(visit.patient).reason == (
            "Waiting for tests.ImageRunner: 4 of 4 visits images still lack a success."
        )
        first().run()
        work_off()

        assert second().run().planned == 0
        explanation = second().explain(visit.patient)
        assert explanation.code == "dependency"
        assert "1 of 4 visits images still lacks a success" in explanation.reason

        Image.objects.filter(path="bad").update(path="good")
        first().run()
        work_off()
        assert second().progress().succeeded == 1


def test_a_row_is_pending_again_when_one_of_its_members_has_a_new_success(visit):
    [image, _] = add(visit, "a", "b")
    first, second = both()
    with installed(first, second):
        first().run()
        work_off()
        assert Run.objects.filter(node=second().get_node()).count() == 1

        first().backfill(Image.objects.filter(pk=image.pk), force=True)
        work_off()

        assert Run.objects.filter(node=second().get_node()).count() == 2
        assert not second().pending().exists()


def test_a_removed_member_makes_the_row_pending(visit):
    add(visit, "a", "b")
    first, second = both()
    with installed(first, second):
        first().run()
        work_off()
        Image.objects.filter(path="a").delete()

        assert list(second().pending()) == [visit.patient]


def test_a_row_without_members_does_not_wait(visit):
    first, second = both()
    with installed(first, second):
        assert list(second().pending()) == [visit.patient]


def test_where_chooses_the_members_that_count(visit):
    add(visit, "a")
    add(visit, "b", modality="CT")
    first, second = both(where=Q(modality="MR"))
    with installed(first, second):
        first().run(Image.objects.filter(modality="MR"))
        work_off()

        assert second().progress().succeeded == 1


def test_many_successes_in_a_chunk_plan_the_row_once(visit):
    Image.objects.bulk_create(Image(visit=visit, path=str(number)) for number in range(300))
    first, second = both()
    with installed(first, second):
        first().run()
        with CaptureQueriesContext(connection) as queries:
            work_off()

        assert Run.objects.filter(node=second().get_node()).count() == 1
    lookups = f"LIMIT {named.MOST_ROWS + 1}"
    chunks = Chunk.objects.filter(node=first().get_node()).count()
    assert len([each for each in queries if lookups in each["sql"]]) == chunks < 10


def test_a_success_that_is_lost_makes_the_row_stale(visit):
    [image] = add(visit, "a")
    first, second = both()
    with installed(first, second):
        first().run()
        work_off()
        assert not second().stale().exists()

        first().backfill(Image.objects.filter(pk=image.pk), force=True)

        [stale] = second().stale()
        assert stale.object_id == visit.patient.pk
        listed = Run.objects.select_related("chunk")
        assert stale_among(listed) == {stale.pk}


@pytest.mark.parametrize("planner", ["database", "python"])
def test_python_and_the_database_agree_on_which_rows_wait(visit, planner):
    options = {}
    if planner == "python":
        options = {"get_instance_representation": lambda self, row: row.code, "INPUT_FIELDS": None}
    complete = Visit.objects.create(patient=Patient.objects.create(code="b"))
    add(visit, "a", "b")
    [image] = add(complete, "c")
    first = images()
    second = patients("code", **{"DEPENDS_ON": (Each(first, "visits__images"),), **options})
    with installed(first, second):
        first().run(Image.objects.exclude(path="b"))
        work_off()
        assert [run.object_id for run in Run.objects.filter(node=second().get_node())] == [
            complete.patient.pk
        ]
        assert not second().pending().exists()

        first().backfill(Image.objects.filter(pk=image.pk), force=True)
        work_off()
        assert Run.objects.filter(node=second().get_node()).count() == 2


def test_successes_of_a_lost_worker_are_passed_on(visit):
    add(visit, "a")
    first, second = both()
    with installed(first, second):
        named.leave_dependents(first().get_node(), [])
        named.leave_dependents(first().get_node(), [Image.objects.get().pk])
        first().run()
        name = "related:library.Patient:visits__images__pk"
        assert {each.model_label for each in SpilledTrigger.objects.all()} == {name}
        work_off()

        assert second().progress().succeeded == 1
        assert not SpilledTrigger.objects.exists()


def test_a_member_in_very_many_sets_becomes_a_batch(sent, set_constants):
    set_constants(named, MOST_ROWS=2)
    tag = Tag.objects.create(name="t")
    for number in range(4):
        Document.objects.create(title=str(number)).tags.add(tag)
    first = declare(NAME="TagRunner", TITLE="Tag", DATA_MODEL=Tag, INPUT_FIELDS=("name",))
    second = declare(DEPENDS_ON=(Each(first, "tags"),))
    with installed(first, second):
        first().run()
        work_off()

        batch = Batch.objects.get(trigger=Batch.Trigger.RELATED)
        assert (batch.planned, batch.description) == (4, "pending rows whose tags changed")
