"""One row among many that cannot be loaded, planned or recorded, and what hits all of them."""

import os
import signal
import sqlite3
import time
from collections import Counter
from io import StringIO

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DataError, connection
from django.db.models.signals import pre_init
from django.urls import reverse

from autorun import tasks
from autorun.models import Batch, Chunk, Failure, Run, SpilledTrigger
from autorun.observe.doctor.backlog import examine_held_up
from autorun.observe.held_up import held_up
from autorun.planning import windows
from autorun.planning.counting import count_rows
from autorun.planning.named import plan_keys
from autorun.planning.on_demand import backfill_now, sweep_now
from autorun.planning.planner import Planner
from autorun.planning.scope import Scope
from autorun.state.clock import from_now
from autorun.upkeep import rounds
from tests.crashes import listening
from tests.engine import declare, installed, plan_all_spilled, work_off
from tests.library.models import Document

pytestmark = [pytest.mark.django_db(transaction=True)]
OTHERS = 9
#: A time that the database holds, and Python does not.
NO_TIME = {
    "postgresql": "10000-01-01",
    "mysql": "0000-00-00 00:00:00",
    "sqlite": "2026-99-99 00:00:00",
}


@pytest.fixture
def documents():
    return [Document.objects.create(title=f"title {n}") for n in range(OTHERS + 1)]


def spoil(document):
    with connection.cursor() as cursor:
        if connection.vendor == "mysql":
            cursor.execute("SET sql_mode = ''")
        cursor.execute(
            "UPDATE library_document SET updated_at = %s WHERE id = %s",
            [NO_TIME[connection.vendor], document.pk],
        )
    connection.close()


def assert_one_failed(bad, runner):
    progress = runner().progress()
    assert (progress.succeeded, progress.failed, progress.unfinished) == (OTHERS, 1, 0)
    assert Run.objects.current().get(status=Run.Status.FAILED).object_id == bad.pk
    assert Run.objects.count() == OTHERS + 1


@pytest.mark.faults(33)
@pytest.mark.parametrize("position", [0, 4, OTHERS])
@pytest.mark.parametrize("planned_by", ["database", "python"])
def test_a_row_that_cannot_be_loaded_fails_alone(documents, planned_by, position):
    options = {} if planned_by == "database" else {"get_instance_representation": title_of}
    bad = documents[position]
    runner = declare(
        INPUT_FIELDS=("title",) if planned_by == "database" else None, MAX_ATTEMPTS=1, **options
    )
    with installed(runner):
        spoil(bad)
        runner().run()
        work_off()

        assert_one_failed(bad, runner)
        assert runner().run().planned == 0
    assert Failure.objects.get().message


@pytest.mark.faults(33)
def test_a_saved_row_that_cannot_be_read_in_planning_fails_alone(documents):
    bad = documents[4]
    runner = declare(INPUT_FIELDS=None, get_instance_representation=title_of)
    with installed(runner):
        spoil(bad)
        plan_keys(runner(), [document.pk for document in documents])
        work_off()

        assert_one_failed(bad, runner)


def title_of(runner, instance):
    return instance.title


@pytest.mark.faults(33)
def test_a_row_that_the_database_cannot_plan_fails_alone(documents, monkeypatch):
    bad = documents[4]
    plan = Planner.plan

    def refuse(planner, window, **options):
        if window.candidates is not None and str(bad.pk) in keys_in(window.candidates):
            raise DataError("a text that the database refuses")
        return plan(planner, window, **options)

    monkeypatch.setattr(Planner, "plan", refuse)
    runner = declare()
    with installed(runner):
        plan_keys(runner(), [document.pk for document in documents])
        work_off()

        assert_one_failed(bad, runner)
    assert "refuses" in Failure.objects.get().message


#: Conditions that the database refuses to compute for one title.
CONDITIONS = {
    "postgresql": "CAST(title AS integer) > 0",
    "mysql": "(title = '(') * 18446744073709551615 + 1 > 0",
    "sqlite": "json_extract(title, '$') > 0",
}
DOORS = {
    "run": lambda runner: runner.run(),
    "run of a queryset": lambda runner: runner.run(Document.objects.all()),
    "sweep": sweep_now,
    "backfill": lambda runner: backfill_now(runner, Scope()),
    "backfill with a limit": lambda runner: backfill_now(runner, Scope(), limit=100),
    "saved": lambda runner: plan_keys(runner, list(Document.objects.values_list("pk", flat=True))),
}


@pytest.mark.faults(33)
@pytest.mark.parametrize("position", [0, 4, OTHERS])
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_row_for_which_the_database_refuses_the_filter_fails_alone(door, position, set_constants):
    set_constants(windows, DATABASE_WINDOW=7)

    def filter_queryset(runner, queryset, log_level=20):
        return queryset.extra(where=[CONDITIONS[connection.vendor]])

    titles = [str(number + 1) for number in range(OTHERS + 1)]
    titles[position] = "("
    documents = [Document.objects.create(title=title) for title in titles]
    runner = declare(filter_queryset=filter_queryset, MAX_ATTEMPTS=1)
    with installed(runner):
        expected = runner().run(dry=True)
        counted = count_rows(runner())
        planned = door(runner())
        work_off()

        assert_one_failed(documents[position], runner)
        assert runner().run().planned == 0
    assert (expected.planned, expected.unprepared) == (OTHERS, 1)
    assert counted.rows["unprepared"] == 1
    if isinstance(planned, Batch):
        planned.refresh_from_db()
        assert planned.state == Batch.State.FINISHED
        assert (planned.candidates, planned.planned, planned.unprepared) == (OTHERS + 1, OTHERS, 1)
    assert Failure.objects.get().message


def keys_in(candidates):
    with connection.cursor() as cursor:
        cursor.execute(candidates.source.sql, candidates.source.params)
        return {str(key) for key, _ in cursor.fetchall()}


@pytest.mark.faults(33)
@pytest.mark.parametrize("error", [DataError, TypeError], ids=["database", "other"])
def test_a_result_that_is_refused_fails_alone(documents, error):
    def refuse(point):
        if point == "finish.updated" and Run.objects.filter(outputs="title 4").exists():
            raise error("a text that it refuses")

    runner = declare(lambda value: value, BATCH_SIZE=100)
    with installed(runner), listening(refuse):
        runner().run()
        work_off()

        assert_one_failed(documents[4], runner)
    assert "refuses" in Failure.objects.get().message
    assert not Chunk.objects.exclude(state=Chunk.State.FINISHED).exists()


@pytest.mark.faults(34)
@pytest.mark.parametrize("point", ["finish.updated", "finish.failures"])
def test_an_error_of_no_database_that_recording_meets_for_all_uses_no_attempt(documents, point):
    """As of a receiver, or of code of autorun's that a project has patched."""

    def refuse(name):
        if name == point:
            raise TypeError("not serializable")

    runner = declare(lambda value: value, BATCH_SIZE=100, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        with listening(refuse):
            work_off()
        chunk = Chunk.objects.get()
        (finding,) = examine_held_up()

        assert (chunk.state, chunk.reason) == (Chunk.State.PARKED, "TypeError: not serializable")
        assert "10 runs parked" in finding.message
        assert set(Run.objects.values_list("status", "attempts")) == {(Run.Status.PENDING, 0)}
        try_again()

        assert runner().progress().succeeded == len(documents)
    assert not held_up()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


def try_again():
    Chunk.objects.parked().update(not_before=from_now(-1))
    rounds.upkeep(in_any_case=True)
    work_off()


@pytest.mark.faults(33)
def test_failures_that_cannot_be_recorded_cost_their_neighbours_nothing(documents):
    calls = []

    def body(value):
        calls.append(value)
        if value in ("title 2", "title 7"):
            raise ValueError("as it was told")
        return value

    def refuse(*_, **__):
        raise TypeError("a receiver for every model")

    runner = declare(body, BATCH_SIZE=100, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        pre_init.connect(refuse, sender=Failure)
        try:
            work_off()
            try_again()
        finally:
            pre_init.disconnect(refuse, sender=Failure)
        assert runner().progress().succeeded == len(documents) - 2
        assert runner().progress().parked == 2
        assert [each.reason for each in held_up()] == ["TypeError: a receiver for every model"]
        assert set(Run.objects.pending().values_list("attempts", flat=True)) == {0}
        Document.objects.create(title="another")
        runner().run()
        try_again()

        assert runner().progress().failed == 2
    assert Counter(calls).most_common()[2:] == [
        (title, 1) for title in calls if title not in ("title 2", "title 7")
    ]
    assert set(Failure.objects.values_list("message", flat=True)) == {"as it was told"}


@pytest.mark.faults(33)
def test_large_results_of_text_beyond_ascii_are_recorded():
    documents = [Document.objects.create(title=f"title {n}") for n in range(14)]
    runner = declare(lambda value: "中" * 330_000, BATCH_SIZE=100)
    with installed(runner):
        runner().run()
        work_off()

        assert runner().progress().succeeded == len(documents)


@pytest.mark.faults(33)
@pytest.mark.skipif(connection.vendor != "mysql", reason="others have no such limit")
def test_an_input_longer_than_a_statement_may_be_runs_once_and_so_do_its_neighbours():
    text = "a" * 9_000_000
    calls = []
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE library_document MODIFY title LONGTEXT")
    try:
        big = Document.objects.create(body=text)
        for number in range(3):
            Document.objects.create(title=f"title {number}")
        Document.objects.filter(pk=big.pk).update(title=text)
        runner = declare(
            lambda value: calls.append(len(value["title"])), INPUT_FIELDS=("title", "body")
        )
        with installed(runner):
            plan_keys(runner(), list(Document.objects.values_list("pk", flat=True)))
            work_off()

            assert runner().progress().succeeded == 4
            assert sorted(calls) == [7, 7, 7, len(text)]
            assert runner().run().planned == 0
            Document.objects.filter(pk=big.pk).update(body=text[:-1] + "b")
            assert runner().run().planned == 1
    finally:
        Document.objects.all().delete()
        with connection.cursor() as cursor:
            cursor.execute("ALTER TABLE library_document MODIFY title VARCHAR(200) NOT NULL")


@pytest.mark.faults(34)
def test_a_column_that_is_not_there_yet_fails_no_row(documents):
    runner = declare(MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        rename_column("body", "gone")
        try:
            work_off()
        finally:
            rename_column("gone", "body")
        assert runner().progress().parked == len(documents)
        try_again()

        assert runner().progress().succeeded == len(documents)
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(34)
def test_an_error_that_hits_all_rows_is_met_by_few_chunks_and_shown(documents, client):
    """The runner's other chunks wait until the next try; those of other runners do not."""
    is_broken = False

    def filter_queryset(runner, queryset, log_level=20):
        return queryset.filter(nothing=1) if is_broken else queryset

    runner = declare(NAME="Held", BATCH_SIZE=1, filter_queryset=filter_queryset)
    other = declare(NAME="Other", BATCH_SIZE=1)
    with installed(runner, other):
        runner().run()
        is_broken = True
        number = work_off()
        assert number < len(documents)
        Document.objects.create(title="new")
        other().run()
        work_off()
        assert runner().progress().parked == number
        assert other().progress().succeeded == 1
        is_broken = False

        client.force_login(User.objects.create_superuser("ada"))
        shown = client.get(reverse("admin:autorun_node_runner", args=["tests.Held"]))
        printed = StringIO()
        call_command("autorun", "status", "tests.Held", stdout=printed)
        (finding,) = examine_held_up()
        for text in (shown.content.decode(), printed.getvalue(), finding.message):
            assert f"{number} runs parked" in text
            assert "filter_queryset() raises FieldError" in text
            assert "ext try" in text
        try_again()

        assert runner().progress().succeeded == len(documents) + 1
    assert not held_up()


@pytest.mark.faults(34)
def test_a_row_saved_while_a_column_is_not_there_yet_is_planned_without_a_sweep():
    runner = declare()
    with installed(runner):
        document = Document.objects.create(title="title")
        rename_column("title", "gone")
        try:
            tasks.plan("library.Document", [document.pk])
            trigger = SpilledTrigger.objects.get()
            SpilledTrigger.objects.update(expires_at=from_now(-1))
            plan_all_spilled()
            assert (trigger.runner, trigger.tries) == ("tests.EchoRunner", 0)
            assert "title" in trigger.reason
            # Not again and again.
            assert plan_all_spilled() == 0
        finally:
            rename_column("gone", "title")
        SpilledTrigger.objects.update(expires_at=from_now(-1))
        assert plan_all_spilled() == 1
        work_off()

        assert runner().progress().succeeded == 1
    assert not SpilledTrigger.objects.exists()


@pytest.mark.faults(34)
def test_saved_rows_that_cannot_be_planned_for_a_day_are_left_to_the_sweep(documents, caplog):
    def filter_queryset(runner, queryset, log_level=20):
        raise LookupError("no such shelf")

    with installed(declare(filter_queryset=filter_queryset)):
        tasks.plan("library.Document", [document.pk for document in documents])
        SpilledTrigger.objects.update(expires_at=from_now(-1), created_at=from_now(-25 * 3600))
        plan_all_spilled()

    assert not SpilledTrigger.objects.exists()
    assert "could not be planned for a day" in caplog.text


@pytest.mark.faults(33)
@pytest.mark.parametrize("position", [0, 4, OTHERS])
@pytest.mark.parametrize("stage", ["planning", "loading"])
def test_a_row_on_which_the_filter_raises_fails_alone(documents, stage, position):
    """A filter may look at the rows in Python."""
    bad = documents[position]
    is_strict = stage == "planning"

    def filter_queryset(runner, queryset, log_level=20):
        keys = [each.pk for each in queryset if not (is_strict and each.pk == bad.pk and 1 // 0)]
        return queryset.filter(pk__in=keys)

    runner = declare(filter_queryset=filter_queryset, MAX_ATTEMPTS=1)
    with installed(runner):
        plan_keys(runner(), [document.pk for document in documents])
        is_strict = True
        work_off()

        assert_one_failed(bad, runner)
    assert "ZeroDivisionError" in Failure.objects.get().message


@pytest.mark.faults(32)
def test_a_connection_that_refuses_every_statement_costs_no_attempt(documents):
    if connection.vendor != "sqlite":
        pytest.skip("servers have no limit of the driver's")

    def limit(value):
        connection.connection.setlimit(sqlite3.SQLITE_LIMIT_SQL_LENGTH, 10)
        return value

    runner = declare(limit, BATCH_SIZE=100)
    with installed(runner):
        runner().run()
        work_off()

        assert runner().progress().succeeded == len(documents)
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


def rename_column(old, new):
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE library_document RENAME COLUMN {old} TO {new}")


@pytest.mark.faults(39)
@pytest.mark.parametrize("way", ["terminated", "returns"])
def test_a_child_that_a_body_forked_leaves_its_parents_chunk_alone(documents, way):
    children = []

    def fork(value):
        pid = os.fork()
        if not pid:
            if way == "terminated":
                signal.pause()
            return value
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            # Again and again: Python forgets a signal that comes in the middle of a fork.
            if way == "terminated":
                os.kill(pid, signal.SIGTERM)
            time.sleep(0.01)
        children.append(ended[1])
        return value

    runner = declare(fork, BATCH_SIZE=100)
    with installed(runner):
        runner().run()
        work_off()

        assert runner().progress().succeeded == len(documents)
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert children == [signal.SIGTERM if way == "terminated" else 0] * len(documents)
