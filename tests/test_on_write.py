"""ON_WRITE: triggers in the database note every write, and upkeep has what they note planned."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from io import StringIO
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.core.management.sql import emit_post_migrate_signal, emit_pre_migrate_signal
from django.db import OperationalError, connection, models, transaction
from django.db.migrations import AlterField, Migration
from django.test.utils import CaptureQueriesContext, isolate_apps

from autorun.admin.stories import Story, other_runs
from autorun.dispatch.ordering import due
from autorun.dispatch.publishing import redirected
from autorun.models import Batch, BatchRow, Chunk, Run, SpilledTrigger, Written
from autorun.observe.checks.of_databases import check_database_of_writes, check_triggers
from autorun.observe.explanation import ALL, next_step
from autorun.observe.listing import RunFilter
from autorun.planning import windows
from autorun.planning.batches import cancel
from autorun.runner import Members, QuerySetRunner
from autorun.state.clock import from_now
from autorun.state.origins import origin_of
from autorun.triggers import installing
from autorun.upkeep import writes
from autorun.upkeep.rounds import hand_on_batches
from autorun.upkeep.writes import hand_out_written
from tests.crashes import crashed_at, listening
from tests.engine import declare, installed, plan_all_spilled, plan_at_once, statuses, work_off
from tests.library.models import (
    Country,
    Document,
    Image,
    Label,
    Meter,
    Patient,
    Photo,
    Report,
    Tag,
    Visit,
)

pytestmark = pytest.mark.django_db(transaction=True)

Watch = Callable[..., QuerySetRunner]


@pytest.fixture
def watch() -> Iterator[Watch]:
    """Declares a runner with ON_WRITE, without ON_SAVE, and installs its triggers."""
    with ExitStack() as stack:

        def declare_and_install(**options: Any) -> QuerySetRunner:
            runner_class = declare(**({"ON_WRITE": True, "ON_SAVE": False} | options))
            stack.enter_context(installed(runner_class))
            assert installing.install() == []
            return runner_class()

        yield declare_and_install
        assert installing.remove() == []


def sql(statement: str, *params: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, params)


def noted() -> list[tuple[str, Any]]:
    """The operations and keys that are noted, in order; they are forgotten."""
    notes = list(Written.objects.order_by("pk"))
    Written.objects.all().delete()
    return [(each.operation, each.object_key or each.object_id) for each in notes]


def drop(trigger: installing.Existing) -> None:
    place = f" ON {trigger.sql_table}" if connection.vendor == "postgresql" else ""
    sql(f"DROP TRIGGER {trigger.name}{place}")


def round_of_upkeep() -> None:
    """Hand out what is noted, and plan it as workers do."""
    with redirected(plan_at_once):
        hand_out_written()
        hand_on_batches()
    plan_all_spilled()


def origins() -> list[str]:
    """The origins of all runs, in the order of planning."""
    runs = Run.objects.order_by("pk").select_related("chunk__batch")
    return [origin_of(run.chunk) for run in runs]


def insert(*titles: str) -> list[int]:
    sql(
        "INSERT INTO library_document (title, body, state, updated_at) VALUES "
        + ", ".join(["(%s, '', '', '2026-01-01')"] * len(titles)),
        *titles,
    )
    found = Document.objects.order_by("-pk").values_list("pk", flat=True)[: len(titles)]
    return sorted(found)


def test_rows_written_by_sql_are_planned_in_a_round(watch):
    watch()
    first, second = insert("a", "b")

    round_of_upkeep()
    work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 2
    assert set(Run.objects.values_list("object_id", flat=True)) == {first, second}
    assert {origin_of(chunk) for chunk in Chunk.objects.select_related("batch")} == {"write"}
    assert not Written.objects.exists()
    assert not SpilledTrigger.objects.exists()


def test_every_way_of_django_to_write_is_noted(watch):
    watch()
    [first, second] = Document.objects.bulk_create([Document(title="a"), Document(title="b")])
    first, second = Document.objects.order_by("pk")
    assert noted() == [("i", first.pk), ("i", second.pk)]

    Document.objects.filter(pk=first.pk).update(title="c")
    second.title = "d"
    Document.objects.bulk_update([second], ["title"])
    assert noted() == [("u", first.pk), ("u", second.pk)]

    with connection.cursor() as cursor:
        cursor.executemany(
            "UPDATE library_document SET title = %s WHERE id = %s",
            [("e", first.pk), ("f", second.pk)],
        )
    assert noted() == [("u", first.pk), ("u", second.pk)]

    Document.objects.filter(pk=first.pk)._raw_delete("default")
    assert noted() == [("d", first.pk)]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="by statement on PostgreSQL only")
def test_many_consecutive_rows_of_a_statement_are_one_note(watch):
    runner = watch()
    keys = insert(*(str(each) for each in range(150)))

    [note] = Written.objects.all()
    assert (note.object_id, note.last_id) == (keys[0], keys[-1])
    assert "the next round of upkeep plans it" in next_step(runner, keys[75])
    round_of_upkeep()
    assert sorted(Run.objects.values_list("object_id", flat=True)) == keys

    Document.objects.filter(pk__in=keys)._raw_delete("default")
    assert [operation for operation, _ in noted()] == ["d"]


def test_a_row_that_is_written_alone_is_one_note_and_no_range(watch):
    watch()
    [key] = insert("alone")

    assert Written.objects.values_list("object_id", "last_id").get() == (key, None)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="by statement on PostgreSQL only")
def test_many_rows_with_a_gap_have_a_note_each(watch):
    watch()
    keys = insert(*(str(each) for each in range(150)))
    Written.objects.all().delete()

    Document.objects.filter(pk__in=keys).exclude(pk=keys[75])._raw_delete("default")

    assert noted() == [("d", key) for key in keys if key != keys[75]]


@pytest.mark.parametrize("value", ["A", "a ", "á"])
def test_a_change_that_a_collation_does_not_see_is_noted(watch, value):
    watch()
    [pk] = insert("a")
    noted()

    sql("UPDATE library_document SET title = %s WHERE id = %s", value, pk)

    assert noted() == [("u", pk)]


def test_updates_of_other_columns_and_to_the_same_value_note_nothing(watch):
    watch()
    [pk] = insert("a")
    noted()

    sql("UPDATE library_document SET body = 'other' WHERE id = %s", pk)
    sql("UPDATE library_document SET title = 'a' WHERE id = %s", pk)

    assert noted() == []


def test_columns_of_the_filter_are_watched(watch):
    def only_final(self, queryset, log_level=0):
        return queryset.filter(state="final")

    watch(filter_queryset=only_final)
    [pk] = insert("a")
    noted()

    sql("UPDATE library_document SET state = 'final' WHERE id = %s", pk)
    sql("UPDATE library_document SET body = 'other' WHERE id = %s", pk)

    assert noted() == [("u", pk)]


def only_in_python(self, queryset, log_level=0):
    return queryset.filter(pk__in=[each.pk for each in queryset if each.body])


@pytest.mark.parametrize(
    "options",
    [
        {"INPUT_FIELDS": None, "get_instance_representation": lambda self, each: each.body},
        {"filter_queryset": only_in_python},
    ],
    ids=["representation", "filter"],
)
def test_any_column_is_watched_if_python_may_read_it(watch, options):
    watch(**options)
    [pk] = insert("a")
    noted()

    sql("UPDATE library_document SET body = 'other' WHERE id = %s", pk)

    assert noted() == [("u", pk)]


def test_generated_columns_and_those_with_a_space_are_watched(watch):
    class Sample(models.Model):
        number = models.IntegerField()
        double = models.GeneratedField(
            expression=models.F("number") * 2, output_field=models.IntegerField(), db_persist=True
        )
        spaced = models.IntegerField(default=0, db_column="The Value")

        class Meta:
            app_label = "library"

    with connection.schema_editor() as editor:
        editor.create_model(Sample)
    try:
        watch(DATA_MODEL=Sample, INPUT_FIELDS=("double", "spaced"))
        pk = Sample.objects.create(number=1).pk
        assert noted() == [("i", pk)]
        for column in ("number", "spaced"):
            Sample.objects.update(**{column: 5})
            assert noted() == [("u", pk)]
            Sample.objects.update(**{column: 5})
            assert noted() == []
    finally:
        with connection.schema_editor() as editor:
            editor.delete_model(Sample)
        apps.all_models["library"].pop("sample")
        apps.clear_cache()


def test_a_changed_key_is_a_row_that_went_and_one_that_came(watch):
    watch()
    [pk] = insert("a")
    noted()

    sql("UPDATE library_document SET id = %s WHERE id = %s", pk + 1000, pk)

    assert noted() == [("d", pk), ("i", pk + 1000)]


@pytest.mark.faults(48)
def test_a_write_that_is_rolled_back_leaves_no_note(watch):
    watch()
    with transaction.atomic():
        insert("a")
        transaction.set_rollback(True)

    assert noted() == []


@pytest.mark.skipif(connection.vendor != "postgresql", reason="COPY and TRUNCATE are PostgreSQL's")
def test_copy_and_truncate(watch):
    watch()
    insert("a")
    round_of_upkeep()
    work_off()
    with (
        connection.cursor() as cursor,
        cursor.copy("COPY library_document (title, body, state, updated_at) FROM STDIN") as copy,
    ):
        copy.write_row(("b", "", "", "2026-01-01"))
    round_of_upkeep()
    assert statuses() == [Run.Status.SUCCEEDED, Run.Status.PENDING]

    sql("TRUNCATE library_document CASCADE")
    round_of_upkeep()

    assert not Run.objects.current().exists()
    assert not Written.objects.exists()
    assert not BatchRow.objects.exists()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="TRUNCATE is PostgreSQL's")
def test_a_truncated_table_of_related_rows_may_concern_every_row(watch):
    runner = watch(DATA_MODEL=Patient, INPUT_FIELDS=(Members("visits__images", "path"),))
    visit = Visit.objects.create(patient=Patient.objects.create(code="a"))
    Image.objects.create(visit=visit, path="a")
    round_of_upkeep()
    work_off()

    sql("TRUNCATE library_image")
    round_of_upkeep()
    work_off()

    assert Run.objects.current().get().outputs == {"value": []}
    assert not Written.objects.exists()
    assert not runner.pending().exists()


@pytest.mark.parametrize(("model", "field"), [(Photo, "caption"), (Country, "name")])
def test_keys_that_are_not_integers(watch, model, field):
    watch(DATA_MODEL=model, INPUT_FIELDS=(field,))
    pk = model(**({} if model is Photo else {"code": "se "})).pk
    model.objects.bulk_create([model(pk=pk)])
    rows = model.objects.filter(pk=pk)
    round_of_upkeep()
    work_off()
    rows.update(**{field: "new"})
    round_of_upkeep()
    work_off()
    assert statuses() == [Run.Status.SUCCEEDED] * 2
    assert Run.objects.current().count() == 1

    rows._raw_delete("default")
    round_of_upkeep()

    assert not Run.objects.current().exists()


def test_rows_of_a_child_model_are_seen_by_both_of_its_tables(watch):
    watch(DATA_MODEL=Report, INPUT_FIELDS=("title", "pages"))
    report = Report.objects.create(title="a")
    round_of_upkeep()
    work_off()
    assert Run.objects.current().count() == 1

    for change in ({"title": "b"}, {"pages": 2}):
        Report.objects.filter(pk=report.pk).update(**change)
        assert {key for _, key in noted()} == {report.pk}


def test_a_deleted_row_is_retired_and_one_with_its_key_is_new(watch):
    watch()
    first, second = insert("a", "b")
    round_of_upkeep()
    work_off()

    Document.objects.filter(pk__in=[first, second])._raw_delete("default")
    sql(
        "INSERT INTO library_document (id, title, body, state, updated_at) "
        "VALUES (%s, 'a', '', '', '2026-01-01')",
        first,
    )
    round_of_upkeep()
    work_off()

    assert list(Run.objects.current().values_list("object_id", "status")) == [
        (first, Run.Status.SUCCEEDED)
    ]
    assert Run.objects.count() == 3


def test_a_row_saved_and_noted_is_run_once(watch):
    watch(ON_SAVE=True)
    from autorun import testing

    Document.objects.create(title="a")
    testing.work_off()
    round_of_upkeep()
    testing.work_off()

    assert statuses() == [Run.Status.SUCCEEDED]


@pytest.mark.faults(48)
@pytest.mark.parametrize(
    "options",
    [{}, {"INPUT_FIELDS": None, "get_instance_representation": lambda self, each: each.title}],
    ids=["database", "python"],
)
def test_many_written_rows_become_one_batch(watch, set_constants, options):
    set_constants(writes, FEW=3, PORTION=2)
    watch(**options)
    insert(*"abcdefg")

    round_of_upkeep()
    work_off()

    batch = Batch.objects.get()
    assert (batch.trigger, batch.planned, batch.candidates) == ("write", 7, 7)
    assert not batch.is_beyond_base
    assert statuses() == [Run.Status.SUCCEEDED] * 7
    assert not Written.objects.exists()
    assert not BatchRow.objects.exists()


def test_each_window_of_a_batch_reads_its_own_rows_of_the_batch(watch, set_constants):
    set_constants(writes, FEW=3)
    set_constants(windows, DATABASE_WINDOW=2)
    watch()
    keys = insert(*"abcdefg")

    with CaptureQueriesContext(connection) as queries:
        round_of_upkeep()

    inner = re.compile(r"\(SELECT (?:(?!SELECT).)*autorun_batchrow[^)]*object_id\S* (>|<=) (\d+)")
    bounds = {found.groups() for each in queries if (found := inner.search(each["sql"]))}
    assert bounds >= {(">", str(key)) for key in keys[1::2]}
    assert Run.objects.count() == 7


@pytest.mark.skipif(connection.vendor != "postgresql", reason="Others count rows themselves")
def test_the_rows_of_a_batch_are_counted_before_it_is_planned(watch, set_constants):
    set_constants(writes, FEW=3)
    watch()

    def analyses(*titles: str) -> int:
        insert(*titles)
        with CaptureQueriesContext(connection) as queries:
            round_of_upkeep()
        return sum(each["sql"].startswith("ANALYZE") for each in queries)

    assert [analyses("a"), analyses(*"bcdefgh")] == [0, 1]


def test_rows_written_alone_go_before_a_batch_of_written_rows(watch, set_constants, settings):
    set_constants(writes, FEW=3)
    settings.AUTORUN = {"WINDOW": 4}
    runner = watch()
    *_, last = insert(*"abcdefgh")
    round_of_upkeep()

    (new,) = insert("i")
    sql("UPDATE library_document SET title = 'z' WHERE id = %s", last)
    round_of_upkeep()

    first = [chunk.pk for chunk in due(runner.get_node().pk)[:2]]
    assert set(
        Run.objects.current().filter(chunk__in=first).values_list("object_id", flat=True)
    ) == {
        new,
        last,
    }
    assert {origin_of(chunk) for chunk in Chunk.objects.all()} == {"write"}


def test_rows_that_several_rounds_take_become_one_batch(watch, set_constants):
    set_constants(writes, FEW=3, PORTION=2, MOST_SECONDS=0)
    watch()
    insert(*"abcdefg")

    hand_out_written()
    later = insert("h", "i")
    for _ in range(3):
        round_of_upkeep()
    batch = Batch.objects.get()
    assert (batch.planned, batch.candidates) == (7, 7)
    round_of_upkeep()
    work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 9
    assert set(Run.objects.filter(chunk__batch=None).values_list("object_id", flat=True)) == set(
        later
    )
    assert not Written.objects.exists()
    assert not BatchRow.objects.exists()


@pytest.mark.parametrize("befalls", ["cancelled", "planned"])
def test_a_batch_that_ends_between_two_rounds(watch, set_constants, befalls):
    """One that is cancelled leaves its rows pending; rows after one's plan are another batch's."""
    set_constants(writes, FEW=2, PORTION=4, MOST_SECONDS=0)
    runner = watch()
    insert(*"abcdefg")
    hand_out_written()
    batch = Batch.objects.get()

    if befalls == "cancelled":
        cancel(batch)
    else:
        Batch.objects.update(expires_at=from_now(-1))
        with redirected(plan_at_once):
            hand_on_batches()
    for _ in range(2):
        round_of_upkeep()
    work_off()

    assert not Written.objects.exists()
    assert Batch.objects.count() == (1 if befalls == "cancelled" else 2)
    assert runner.pending().count() == (7 if befalls == "cancelled" else 0)


def test_many_deleted_rows_are_retired_by_the_batch(watch, set_constants):
    set_constants(writes, FEW=3)
    watch()
    keys = insert(*"abcdefg")
    round_of_upkeep()
    work_off()

    sql("DELETE FROM library_document WHERE id > %s", keys[0])
    sql(
        "INSERT INTO library_document (id, title, body, state, updated_at) "
        "VALUES (%s, 'b', '', '', '2026-01-01')",
        keys[1],
    )
    round_of_upkeep()
    work_off()

    assert set(Run.objects.current().values_list("object_id", flat=True)) == set(keys[:2])
    assert Run.objects.count() == 8
    assert not BatchRow.objects.exists()


def images(**options: Any) -> dict[str, Any]:
    defaults = {"NAME": "ImageRunner", "TITLE": "Image", "DATA_MODEL": Image}
    return defaults | {"INPUT_FIELDS": ("path", "visit__patient__age")} | options


def test_written_related_rows_have_the_rows_that_read_them_planned(watch):
    watch(**images())
    patient = Patient.objects.bulk_create([Patient(code="p", age=30)])[0]
    visit = Visit.objects.bulk_create([Visit(patient=patient)])[0]
    Image.objects.bulk_create([Image(path="a", visit=visit), Image(path="b")])
    round_of_upkeep()
    work_off()

    Patient.objects.update(age=31)
    round_of_upkeep()
    work_off()
    Image.objects.update(visit=visit)
    round_of_upkeep()
    work_off()

    assert [run.outputs["value"]["path"] for run in Run.objects.order_by("pk")] == [*"ab", *"ab"]
    assert origins() == ["write", "write", "related_write", "write"]


def test_written_links_have_the_rows_that_read_them_planned(watch):
    watch(
        INPUT_FIELDS=None,
        WATCH=("tags",),
        get_instance_representation=lambda self, each: each.tags.count(),
    )
    [pk] = insert("a")
    round_of_upkeep()
    tag = Tag.objects.create(name="x")
    sql("INSERT INTO library_document_tags (document_id, tag_id) VALUES (%s, %s)", pk, tag.pk)
    round_of_upkeep()
    sql("DELETE FROM library_document_tags")
    round_of_upkeep()
    work_off()

    assert origins() == ["write", "added", "removed"]


def test_a_run_and_an_explanation_tell_a_member_from_the_row(watch):
    runner = watch(DATA_MODEL=Patient, INPUT_FIELDS=("code", Members("visits", "pk")))
    Patient.objects.bulk_create([Patient(code="a")])
    found = []

    def told(write: Callable[[], Any]) -> None:
        write()
        found.append(runner.explain(Patient.objects.get()).reason.partition("; ")[2])
        round_of_upkeep()
        work_off()
        run = Run.objects.current().select_related("node", "chunk__batch").get()
        story = Story(run, runner, None, other_runs(run), ALL)
        found.append(story.why.partition(". ")[0])

    told(lambda: Patient.objects.update(code="b"))
    told(lambda: Visit.objects.bulk_create([Visit(patient_id="b")]))
    told(lambda: Visit.objects.all()._raw_delete("default"))

    then = ", and the next round of upkeep plans it."
    assert found == [
        f"it was written{then}",
        "The row was written in the database",
        f"a row that it reads was added (visits){then}",
        "A row was added to a relation that the runner reads (visits)",
        f"a row that it read was removed (visits){then}",
        "A row was removed from a relation that the runner reads (visits)",
    ]
    for trigger in ("write", "added", "removed"):
        assert [each.chunk.runner for each in RunFilter(trigger=trigger).runs()] == [runner.label]


@pytest.mark.faults(48)
def test_many_rows_that_read_a_written_one_become_a_batch(watch, set_constants):
    watch(**images())
    patient = Patient.objects.bulk_create([Patient(code="p", age=30)])[0]
    visit = Visit.objects.bulk_create([Visit(patient=patient)])[0]
    Image.objects.bulk_create([Image(path=path, visit=visit) for path in "abcde"])
    round_of_upkeep()
    work_off()
    set_constants(writes, FEW=3)

    Patient.objects.update(age=31)
    round_of_upkeep()

    batch = Batch.objects.get()
    assert (batch.planned, batch.description) == (5, "pending rows whose visit patient changed")
    run = Run.objects.current().select_related("node", "chunk__batch").last()
    assert Story(run, None, None, [], ALL).why.startswith(
        f"Started by batch {batch.pk} of written rows (pending rows whose visit patient changed)."
    )


@pytest.mark.faults(48)
def test_a_note_that_commits_late_is_not_lost(watch, set_constants):
    """A transaction that noted first commits while a portion with later notes is being taken."""
    set_constants(writes, FEW=1)
    watch()
    keys = insert("a", "b", "c")
    early = Written.objects.get(object_id=keys[0])
    Written.objects.filter(pk=early.pk).delete()
    arrived = []

    def arrive(point: str) -> None:
        if point == "writes.copied" and not arrived:
            arrived.append(Written.objects.create(source=early.source, operation="i", pk=early.pk))
            Written.objects.filter(pk=early.pk).update(object_id=keys[0])

    with listening(arrive):
        round_of_upkeep()
    round_of_upkeep()

    assert arrived
    assert set(Run.objects.values_list("object_id", flat=True)) == set(keys)
    assert not Written.objects.exists()


@pytest.mark.faults(48)
@pytest.mark.parametrize("point", ["writes.copied", "writes.taken"])
def test_a_process_that_dies_while_it_takes_notes_loses_none(watch, set_constants, point):
    set_constants(writes, FEW=1, PORTION=2)
    watch()
    keys = insert("a", "b", "c")

    with crashed_at(point):
        hand_out_written()
    Batch.objects.update(expires_at=from_now(-1))
    round_of_upkeep()
    round_of_upkeep()

    assert set(Run.objects.current().values_list("object_id", flat=True)) == set(keys)


def test_notes_of_a_table_without_a_runner_here_wait_for_a_day(watch):
    with ExitStack() as stack:
        stack.enter_context(installed(declare(ON_WRITE=True)))
        installing.install()
    insert("a")

    round_of_upkeep()
    assert Written.objects.count() == 1
    writes.drop_unknown()
    assert Written.objects.count() == 1

    Written.objects.update(written_at=from_now(-2 * 86_400))
    writes.drop_unknown()
    assert not Written.objects.exists()
    installing.remove()


def test_installing_again_changes_nothing_and_takes_one_statement_for_each_question(watch):
    watch()
    before = installing.existing()

    with CaptureQueriesContext(connection) as queries:
        assert installing.install() == []

    assert installing.existing() == before
    assert not any("CREATE" in query["sql"] for query in queries)


def test_a_runner_without_the_option_leaves_no_trigger(watch):
    watch()
    with installed(declare()):
        assert [each.state for each in installing.statuses()] == ["not needed"]
        [warning] = check_triggers(["default"])
        assert "library_document (not needed)" in warning.msg
        assert "only sweeps" not in warning.msg
        installing.install()
        assert installing.existing() == []
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("SELECT COUNT(*) FROM pg_proc WHERE proname LIKE 'autorun%'")
            assert cursor.fetchone() == (0,)


def test_other_columns_make_the_triggers_outdated(watch):
    watch()
    with installed(declare(ON_WRITE=True, INPUT_FIELDS=("title", "body"))):
        assert [each.state for each in installing.statuses()] == ["outdated"]
        installing.install()
        assert [each.state for each in installing.statuses()] == ["installed"]


@pytest.mark.faults(48)
def test_a_migration_may_change_and_remove_a_watched_column(watch):
    watch(INPUT_FIELDS=("title", "body"))
    insert("a")
    noted()
    plan = [(Migration("0001_initial", "library"), False)]
    wide, narrow = models.CharField(max_length=300), Document._meta.get_field("title")
    wide.set_attributes_from_name("title")
    body = Document._meta.get_field("body")

    emit_pre_migrate_signal(0, False, "default", plan=plan)
    assert installing.existing() == []
    with connection.schema_editor() as editor:
        editor.alter_field(Document, narrow, wide)
        editor.remove_field(Document, body)
    with installed(declare(ON_WRITE=True, ON_SAVE=False)):
        emit_post_migrate_signal(0, False, "default", plan=plan)
        assert [each.state for each in installing.statuses()] == ["installed"]
        sql("UPDATE library_document SET title = 'b'")
        assert len(noted()) == 1
        emit_pre_migrate_signal(0, False, "default", plan=plan)
    with connection.schema_editor() as editor:
        editor.alter_field(Document, wide, narrow)
        editor.add_field(Document, body)


@pytest.mark.faults(48)
def test_a_key_altered_in_another_app_removes_the_triggers_of_tables_that_refer_to_it(watch):
    watch(DATA_MODEL=Label, INPUT_FIELDS=("object_id",))
    before = installing.existing()
    migration = Migration("0009_more", "contenttypes")

    emit_pre_migrate_signal(0, False, "default", plan=[(migration, False)])
    assert installing.existing() == before
    migration.operations = [AlterField("ContentType", "id", models.BigAutoField(primary_key=True))]
    emit_pre_migrate_signal(0, False, "default", plan=[(migration, False)])

    assert installing.existing() == []


@pytest.mark.faults(48)
def test_a_column_that_is_not_there_is_named_and_writes_go_on(watch):
    """As after the app has been migrated backwards, while the code is still the newer one."""
    body = Document._meta.get_field("body")
    with connection.schema_editor() as editor:
        editor.remove_field(Document, body)
    try:
        with installed(declare(ON_WRITE=True, INPUT_FIELDS=("title", "body"))):
            [error] = installing.install()
            assert error.startswith("library_document: ")
            assert "body" in error
            assert [each.state for each in installing.statuses()] == ["missing"]
        sql("UPDATE library_document SET title = 'b'")
    finally:
        with connection.schema_editor() as editor:
            editor.add_field(Document, body)


@pytest.mark.faults(48)
@pytest.mark.skipif(connection.vendor != "mysql", reason="Only MariaDB's binary log forbids them")
def test_where_triggers_cannot_be_dropped_a_migration_that_would_break_writes_is_refused(
    watch, set_constants
):
    watch()
    before = installing.existing()
    sql("ALTER TABLE library_document ADD COLUMN formerly int")
    sql(
        "CREATE TRIGGER autorun_write_former_u AFTER UPDATE ON library_document FOR EACH ROW "
        "BEGIN IF OLD.`formerly` <=> 1 THEN SET @seen = 1; END IF; END"
    )
    plan = [(Migration("0002_more", "library"), False)]
    set_constants(installing, FORBIDS_TRIGGERS="SELECT 1")
    try:
        with pytest.raises(CommandError, match=r"DROP TRIGGER .*autorun_write_former_u") as said:
            emit_pre_migrate_signal(0, False, "default", plan=plan)
    finally:
        sql("DROP TRIGGER autorun_write_former_u")
        sql("ALTER TABLE library_document DROP COLUMN formerly")
    assert before[0].name not in str(said.value)

    emit_pre_migrate_signal(0, False, "default", plan=plan)

    assert installing.existing() == before


@pytest.mark.skipif(connection.vendor != "postgresql", reason="Schemas are PostgreSQL's")
def test_a_table_in_another_schema(watch):
    class Sample(models.Model):
        number = models.IntegerField()

        class Meta:
            app_label = "library"
            managed = False
            db_table = 'lab"."sample'

    sql("CREATE SCHEMA lab")
    try:
        sql("CREATE TABLE lab.sample (id bigserial PRIMARY KEY, number int)")
        watch(DATA_MODEL=Sample, INPUT_FIELDS=("number",))
        assert installing.install() == []
        assert [(each.table, each.state) for each in installing.statuses()] == [
            ("sample", "installed")
        ]
        assert noted() == []
        assert [("i", Sample.objects.create(number=1).pk)] == noted()
    finally:
        sql("DROP SCHEMA lab CASCADE")
        apps.all_models["library"].pop("sample")
        apps.clear_cache()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="Only PostgreSQL moves rows")
def test_rows_of_a_partitioned_table_are_noted_wherever_they_are_written(watch):
    class Shard(models.Model):
        region = models.CharField(max_length=1)
        title = models.CharField(max_length=200)

        class Meta:
            app_label = "library"
            managed = False
            db_table = "library_shard"

    sql(
        "CREATE TABLE library_shard (id bigint, region text, title text, PRIMARY KEY (id, region)) "
        "PARTITION BY LIST (region)"
    )
    try:
        for name in "ab":
            sql(f"CREATE TABLE shard_{name} PARTITION OF library_shard FOR VALUES IN ('{name}')")
        watch(DATA_MODEL=Shard, INPUT_FIELDS=("title",))
        sql("INSERT INTO library_shard VALUES (1, 'a', 'one'), (2, 'a', 'two')")
        sql("INSERT INTO shard_b VALUES (3, 'b', 'three')")
        round_of_upkeep()
        work_off()
        assert set(Run.objects.values_list("object_id", flat=True)) == {1, 2, 3}

        sql("UPDATE library_shard SET region = 'b', title = 'new' WHERE id = 1")
        sql("UPDATE library_shard SET region = 'b' WHERE id = 2")
        round_of_upkeep()
        work_off()
        assert list(Run.objects.order_by("pk").values_list("object_id", flat=True)[3:]) == [1]

        sql("CREATE TABLE shard_c (LIKE library_shard INCLUDING INDEXES)")
        sql("ALTER TABLE library_shard ATTACH PARTITION shard_c FOR VALUES IN ('c')")
        sql("INSERT INTO shard_c VALUES (4, 'c', 'four')")
        sql("DELETE FROM library_shard WHERE id = 3")
        assert noted() == [("i", 4), ("d", 3)]
    finally:
        sql("DROP TABLE library_shard")
        apps.all_models["library"].pop("shard")
        apps.clear_cache()


@pytest.mark.faults(48)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="Only SQLite rebuilds tables")
def test_a_table_that_is_rebuilt_elsewhere_is_reported(watch):
    watch()
    title = Document._meta.get_field("title")
    wide = models.CharField(max_length=300)
    wide.set_attributes_from_name("title")
    for before, after in ((title, wide), (wide, title)):
        with connection.schema_editor() as editor:
            editor.alter_field(Document, before, after)

    assert [each.state for each in installing.statuses()] == ["missing"]
    [warning] = check_triggers(["default"])
    assert warning.id == "autorun.W211"
    assert "library_document (missing)" in warning.msg
    assert "only sweeps" in warning.msg


def status() -> str:
    call_command("autorun", "status", "--no-pending", stdout=(out := StringIO()))
    return " ".join(out.getvalue().split())


@pytest.mark.faults(48)
@pytest.mark.parametrize("befalls", ["dropped", "disabled"])
def test_a_trigger_that_is_gone_is_named_and_put_back_by_migrate(watch, befalls):
    if befalls == "disabled" and connection.vendor != "postgresql":
        pytest.skip("Only PostgreSQL disables triggers")
    watch()
    gone = installing.existing()[0]
    if befalls == "disabled":
        sql(f"ALTER TABLE {gone.sql_table} DISABLE TRIGGER {gone.name}")
    else:
        drop(gone)

    [warning] = check_triggers(["default"])
    assert warning.id == "autorun.W211"
    assert "library_document (" in warning.msg
    assert "do not match the runners: library_document (" in status()
    emit_post_migrate_signal(0, False, "default", plan=[])

    assert "do not match" not in status()
    assert [each.state for each in installing.statuses()] == ["installed"]
    assert list(check_triggers(["default"])) == []
    assert insert("a") == [key for _, key in noted()]


def test_flush_leaves_the_triggers_and_no_notes(watch):
    watch()
    insert("a")

    call_command("flush", interactive=False, verbosity=0)

    assert not Written.objects.exists()
    assert [each.state for each in installing.statuses()] == ["installed"]


@pytest.mark.skipif(connection.vendor != "postgresql", reason="Roles and RLS are PostgreSQL's")
def test_a_writer_without_rights_on_autoruns_tables(watch):
    watch()
    role = f"autorun_writer_{os.getpid()}"
    sql(f"CREATE ROLE {role}")
    try:
        sql(f"GRANT {role} TO CURRENT_USER")
        sql(f"GRANT ALL ON library_document TO {role}")
        sql(f"GRANT USAGE ON SEQUENCE library_document_id_seq TO {role}")
        sql("ALTER TABLE library_document ENABLE ROW LEVEL SECURITY")
        sql(f"CREATE POLICY all_rows ON library_document TO {role} USING (true)")
        with transaction.atomic():
            sql(f"SET LOCAL ROLE {role}")
            insert("a")
        assert len(noted()) == 1
    finally:
        sql("ALTER TABLE library_document DISABLE ROW LEVEL SECURITY")
        sql("DROP POLICY IF EXISTS all_rows ON library_document")
        sql(f"DROP OWNED BY {role}")
        sql(f"DROP ROLE {role}")


def test_the_command_shows_installs_and_removes_the_triggers(watch):
    watch()

    def run(*arguments: str) -> str:
        out = StringIO()
        call_command("autorun", "triggers", *arguments, stdout=out, skip_checks=True)
        return out.getvalue()

    assert run() == "library_document: installed\n"
    assert "library_document" in run("--sql")
    run("--check")
    assert run("--remove") == "library_document: removed\n"
    with pytest.raises(CommandError) as stopped:
        run("--check")
    assert stopped.value.returncode == 3
    assert run("--install") == "library_document: installed\n"


def test_a_database_that_forbids_triggers_is_told_once_and_keeps_the_outdated_ones(watch):
    watch()
    before = installing.existing()

    def forbid(execute, sql, params, many, context):
        if re.search(r"\bCREATE (OR REPLACE )?TRIGGER", sql):
            raise OperationalError(installing.BINARY_LOG_FORBIDS, "You lack the privilege SUPER")
        return execute(sql, params, many, context)

    others = {"NAME": "CodeRunner", "DATA_MODEL": Patient, "INPUT_FIELDS": ("code",)}
    wide = declare(ON_WRITE=True, INPUT_FIELDS=("title", "body"))
    with installed(wide, declare(ON_WRITE=True, **others)):
        with connection.execute_wrapper(forbid):
            [error] = installing.install()

        tables, _, said = error.partition(": ")
        assert sorted(tables.split(", ")) == ["library_document", "library_patient"]
        assert said.startswith("You lack the privilege SUPER. Ask a database administrator")
        assert "log_bin_trust_function_creators = 1" in error
        assert installing.existing() == before

    drop(before[0])
    with connection.execute_wrapper(forbid):
        assert len(installing.install()) == 1
    assert installing.existing() == before[1:]


@pytest.mark.parametrize("is_clean", [True, False])
def test_printed_triggers_are_installed_by_the_databases_own_client(watch, is_clean):
    client = shutil.which({"mysql": "mariadb", "postgresql": "psql"}.get(connection.vendor, ""))
    if not client:
        pytest.skip("No client")
    watch()
    before = {each.name for each in installing.existing()}
    options = {} if is_clean else {"INPUT_FIELDS": ("title", "body")}
    with installed(declare(ON_WRITE=True, **options)):
        if is_clean:
            installing.remove()
        out = StringIO()
        call_command("autorun", "triggers", "--sql", stdout=out, skip_checks=True)

        _run_client(client, out.getvalue())

        assert installing.install() == []
        assert [each.state for each in installing.statuses()] == ["installed"]
        assert ({each.name for each in installing.existing()} == before) == is_clean


def _run_client(client: str, script: str) -> None:
    login, name = connection.settings_dict, connection.settings_dict["NAME"]
    if connection.vendor == "mysql":
        options = [f"--password={login['PASSWORD']}", f"--port={login['PORT'] or 3306}"]
        place = [f"--host={login['HOST']}", f"--user={login['USER']}", name]
    else:
        options = ["--set=ON_ERROR_STOP=1", f"--port={login['PORT'] or 5432}"]
        place = [f"--host={login['HOST']}", f"--username={login['USER']}", f"--dbname={name}"]
    environ = os.environ | {"PGPASSWORD": login["PASSWORD"]}
    subprocess.run([client, *options, *place], input=script.encode(), check=True, env=environ)


def test_on_write_of_rows_elsewhere_is_an_error():
    def in_archive(self):
        return Document.objects.using("archive")

    runner = declare(ON_WRITE=True, get_base_queryset=in_archive)()

    [error] = check_database_of_writes(runner)

    assert error.id == "autorun.E025"


def test_on_write_of_a_view_is_an_error(watch):
    class Titles(models.Model):
        title = models.CharField(max_length=200)

        class Meta:
            app_label = "library"
            managed = False
            db_table = "library_titles"

    sql("CREATE VIEW library_titles AS SELECT id, title FROM library_document")
    try:
        with installed(declare(ON_WRITE=True, DATA_MODEL=Titles)):
            [error] = check_triggers(["default"])
        assert error.id == "autorun.E026"
    finally:
        sql("DROP VIEW library_titles")
        apps.all_models["library"].pop("titles")
        apps.clear_cache()


def test_explain_says_that_a_written_row_is_about_to_be_planned(watch):
    runner = watch(SCHEDULE=None)
    [pk] = insert("a")

    explanation = runner.explain(Document.objects.get(pk=pk))

    assert explanation.is_pending
    assert "the next round of upkeep plans it" in explanation.reason


def test_columns_of_members_in_a_parents_table_are_watched(watch):
    watch(DATA_MODEL=Country, INPUT_FIELDS=(Members("reports", "title"),))
    report = Report.objects.create(title="a", country=Country.objects.create(code="se"))
    round_of_upkeep()
    work_off()

    Document.objects.filter(pk=report.pk).update(title="b")
    round_of_upkeep()
    work_off()

    assert Run.objects.current().get().outputs == {"value": ["b"]}


def test_written_members_have_their_rows_planned_the_old_parent_included(watch):
    members = Members("visits__images", "path")
    runner = watch(DATA_MODEL=Patient, INPUT_FIELDS=(members,))
    visits = [
        Visit.objects.create(patient=Patient.objects.create(code=code)) for code in ("a", "b")
    ]
    image = Image.objects.create(visit=visits[0], path="a")
    round_of_upkeep()
    work_off()

    Image.objects.filter(pk=image.pk).update(visit=visits[1])
    for patient in Patient.objects.all():
        assert "the next round of upkeep plans it" in runner.explain(patient).reason
    round_of_upkeep()
    work_off()

    assert not runner.pending().exists()
    current = Run.objects.current().order_by("object_id")
    assert [run.outputs["value"] for run in current] == [[], ["a"]]
    Written.objects.all().delete()
    Image.objects.filter(pk=image.pk).update(modality="CT")
    assert noted() == []


def test_a_moved_member_is_removed_from_one_row_and_added_to_another(watch):
    runner = watch(DATA_MODEL=Patient, INPUT_FIELDS=("code", Members("visits", "pk")))
    a, b = (Patient.objects.create(code=code) for code in "ab")
    Visit.objects.create(patient=a)
    round_of_upkeep()

    def told(number: int) -> list[str]:
        reasons = [runner.explain(each).reason for each in (a, b)[:number]]
        round_of_upkeep()
        work_off()
        now = [re.search(r"was (added|removed|written)", reason) for reason in reasons]
        return [each[1] for each in now if each] + sorted(origins()[2:])

    assert told(0) == []
    Visit.objects.update(patient=b)
    assert told(2) == ["removed", "added", "added", "removed"]
    Visit.objects.update(patient=b)
    assert told(2) == ["added", "removed"]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Other databases refuse such a key.")
def test_a_key_that_cannot_be_read_keeps_no_other_from_being_planned(watch):
    runner = watch(DATA_MODEL=Country, INPUT_FIELDS=("name",))
    for key in ("X'62'", "X'62FF'", "X'7A'"):
        sql(f"INSERT INTO library_country VALUES (CAST({key} AS TEXT), 'x')")
    round_of_upkeep()
    work_off()

    assert runner.progress().succeeded == 2
    assert not Written.objects.exists()
    sql("DELETE FROM library_country")
    round_of_upkeep()
    assert not Written.objects.exists()


@pytest.mark.skipif(connection.vendor != "mysql", reason="Others have no such integers")
def test_a_number_that_is_too_great_for_a_note_fails_no_write(watch):
    watch(DATA_MODEL=Meter, INPUT_FIELDS=("name",))

    sql("INSERT INTO library_meter VALUES (1, 'a'), (%s, 'b')", 1 << 63)
    sql("UPDATE library_meter SET name = 'c'")
    sql("UPDATE library_meter SET number = %s WHERE number = 1", (1 << 63) + 1)
    sql("DELETE FROM library_meter")

    assert noted() == [("i", 1), ("u", 1), ("d", 1)]


def test_a_table_that_is_not_there_is_named_and_the_others_have_their_triggers(watch):
    class Elsewhere(models.Model):
        class Meta:
            app_label, managed = "library", False

    absent = declare(NAME="AbsentRunner", ON_WRITE=True, DATA_MODEL=Elsewhere, INPUT_FIELDS=("id",))
    try:
        with installed(absent, declare(ON_WRITE=True)):
            [error] = installing.install()
            states = {each.table: each.state for each in installing.statuses()}
            [found] = check_triggers([connection.alias])
            out = StringIO()
            call_command("autorun", "triggers", stdout=out, skip_checks=True)
    finally:
        apps.all_models["library"].pop("elsewhere")
        apps.clear_cache()

    assert error.startswith("library_elsewhere: There is no such table. ")
    assert states == {"library_elsewhere": "no such table", "library_document": "installed"}
    assert found.id == "autorun.W211"
    assert "library_elsewhere (no such table)" in found.msg
    assert "managed = False" in found.hint
    assert "library_elsewhere: no such table\n" in out.getvalue()


@pytest.mark.skipif(connection.vendor != "postgresql", reason="Owners are PostgreSQL's")
@pytest.mark.parametrize("may_create", [False, True])
def test_a_table_of_another_owner_is_named_with_the_statement_for_the_owner(watch, may_create):
    role = f"autorun_owner_{os.getpid()}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        user = cursor.fetchone()[0]
    migrator = f"autorun_migrator_{os.getpid()}"
    sql(f"CREATE ROLE {role}")
    sql(f"CREATE ROLE {migrator}")
    watch(NAME="FirstRunner")
    try:
        sql(f"GRANT {role}, {migrator} TO CURRENT_USER")
        sql(f"GRANT ALL ON SCHEMA public TO {role}, {migrator}")
        sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {migrator}")
        if not may_create:
            sql(f"REVOKE TRIGGER ON library_document FROM {migrator}")
        sql(f"ALTER TABLE library_document OWNER TO {role}")
        wide = declare(ON_WRITE=True, INPUT_FIELDS=("title", "body"))
        other = declare(
            NAME="OtherRunner", ON_WRITE=True, DATA_MODEL=Patient, INPUT_FIELDS=("code",)
        )
        sql(f"ALTER TABLE library_patient OWNER TO {migrator}")
        with installed(wide, other):
            sql(f"SET ROLE {migrator}")
            errors = installing.install()
            states = {each.table: each.state for each in installing.statuses()}
            found = [each.hint for each in check_triggers([connection.alias])]
            sql("RESET ROLE")
            kept = {each.table for each in installing.existing()}
    finally:
        sql("RESET ROLE")
        sql(f"REASSIGN OWNED BY {role}, {migrator} TO {user}")
        sql(f"DROP OWNED BY {role}, {migrator}")
        sql(f"DROP ROLE {role}, {migrator}")
        installing.remove()

    assert kept == {"library_document", "library_patient"}
    assert states["library_patient"] == "installed"
    if may_create:
        assert states["library_document"] == "installed"
        assert all("run `DROP " in each for each in errors)
        assert errors
        assert found == []
    else:
        grant = f'`GRANT TRIGGER ON "library_document" TO {migrator}`'
        [error] = errors
        assert error.startswith("library_document: ")
        assert states["library_document"] == "outdated"
        assert grant in error
        assert grant in found[0]


@isolate_apps("tests.library")
def test_a_wrong_input_field_leaves_the_answer_to_the_checks():
    class Book(models.Model):
        class Meta:
            app_label = "library"

    class Line(models.Model):
        pk = models.CompositePrimaryKey("book", "number")
        book = models.ForeignKey(Book, models.CASCADE, related_name="lines")
        number = models.IntegerField()

        class Meta:
            app_label = "library"

    with installed(declare(DATA_MODEL=Book, INPUT_FIELDS=("lines",), ON_WRITE=True)):
        [found] = check_triggers([connection.alias])

    assert "library_book (no such table)" in found.msg
