"""DEPENDS_ON: one runner after another on the same row."""

import re
from itertools import repeat

import pytest
from django.db import InterfaceError, connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext

from autorun.control.interventions import cancel_runs
from autorun.declare.nodes import dependents
from autorun.execution import work
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.state import transactions
from autorun.state.clock import from_now
from autorun.tasks import plan
from autorun.upkeep.rescue import UNKNOWN_FOR, follow_up_lapsed, rescue_expired
from tests.crashes import AWAY, crashed_at, failing_at
from tests.engine import declare, installed, plan_all_spilled, work_off
from tests.library.models import Document
from tests.waiting import until

pytestmark = pytest.mark.django_db

by_python = {"get_instance_representation": lambda self, row: row.title, "INPUT_FIELDS": None}
PLANNERS = pytest.mark.parametrize(
    "options", [pytest.param({}, id="database"), pytest.param(by_python, id="python")]
)


def chain(**options):
    first = declare(NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), **options)
    return first, second


@PLANNERS
def test_a_row_waits_for_the_runner_it_depends_on(options):
    Document.objects.create(title="a")
    first, second = chain(**options)
    with installed(first, second):
        assert second().run().planned == 0
        assert second().pending().count() == 0
        first().run()
        work_off()

        assert second().progress().succeeded == 1
        assert second().run().planned == 0


@PLANNERS
def test_each_new_success_makes_the_row_pending_again(options):
    document = Document.objects.create(title="a")
    first, second = chain(**options)
    with installed(first, second):
        first().run()
        work_off()
        first().backfill(force=True)
        work_off()

        assert Run.objects.filter(node=second().get_node()).count() == 2
        assert second().has_run(document)


def test_only_rows_that_succeeded_are_passed_on():
    def fail(value):
        if value == "bad":
            raise ValueError

    for title in ("good", "bad"):
        Document.objects.create(title=title)
    first = declare(fail, NAME="First", TITLE="First", MAX_ATTEMPTS=1)
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        work_off()

        assert second().progress().succeeded == 1


def test_what_was_recorded_before_the_lease_was_lost_is_passed_on(set_constants):
    set_constants(work, WRITE_EVERY=0)

    def lose_the_lease(value):
        if value == "b":
            Chunk.objects.update(token=F("token") + 1)

    for title in ("a", "b"):
        Document.objects.create(title=title)
    first = declare(lose_the_lease, NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        execute(Chunk.objects.get().pk)

        assert first().progress().succeeded == 1
        assert Run.objects.filter(node=second().get_node()).count() == 1


def test_what_was_recorded_before_its_worker_died_is_passed_on(set_constants):
    set_constants(work, WRITE_EVERY=0)
    for title in ("a", "b", "c"):
        Document.objects.create(title=title)
    first = declare(NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        with crashed_at("finish.unwritten:3"):
            execute(Chunk.objects.get().pk)
        Chunk.objects.update(expires_at=from_now(-1))
        rescue_expired(at_most=10)
        plan_all_spilled()

        assert first().progress().succeeded == 2
        assert Run.objects.filter(node=second().get_node()).count() == 2


def plan_what_was_left():
    """The leases of dead workers end, and upkeep does what they have left."""
    Chunk.objects.leased().update(expires_at=from_now(-1))
    follow_up_lapsed(at_most=10)
    plan_all_spilled()


def changed_and_succeeded(first):
    """A chunk of a row that has changed since it was planned, and of one that has not."""
    changed, _ = (Document.objects.create(title=title) for title in ("a", "b"))
    first().run()
    Document.objects.filter(pk=changed.pk).update(title="new")
    return Chunk.objects.get()


@pytest.mark.django_db(transaction=True)
def test_what_follows_a_chunk_is_planned_although_the_database_was_away_for_a_moment(set_constants):
    set_constants(transactions, PAUSE_WHILE_AWAY=0)
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        chunk = changed_and_succeeded(first)
        errors = iter([AWAY, InterfaceError("closed"), AWAY])
        with failing_at("plan.booked", errors):
            execute(chunk.pk)

        assert next(errors, None) is None
        assert Run.objects.filter(node=second().get_node()).count() == 2
        assert SpilledTrigger.objects.count() == 0


@pytest.mark.django_db(transaction=True)
def test_what_follows_a_chunk_is_left_to_upkeep_while_the_database_is_away(set_constants):
    set_constants(transactions, PAUSE_WHILE_AWAY=0)
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        chunk = changed_and_succeeded(first)
        with failing_at("plan.booked", repeat(AWAY)):
            execute(chunk.pk)
        assert not Run.objects.filter(node=second().get_node()).exists()
        first().get_node().refresh_from_db()
        assert first().get_node().run_seconds is not None
        plan_what_was_left()

        assert Run.objects.filter(node=second().get_node()).count() == 2


def test_dependents_are_planned_although_a_row_that_changed_back_could_not_be():
    def change_back(value):
        Document.objects.update(title="a")

    Document.objects.create(title="a")
    first = declare(change_back, NAME="First", TITLE="First")
    second = declare(NAME="Second", TITLE="Second", DEPENDS_ON=(first,), ON_SAVE=False)
    with installed(first, second):
        first().run()
        Document.objects.update(title="b")
        with failing_at("plan.booked", [AWAY]):
            execute(Chunk.objects.get().pk)

        assert Run.objects.filter(node=second().get_node()).count() == 1
        assert first().pending().exists()
        plan_what_was_left()
        assert not first().pending().exists()


def test_what_a_dead_worker_had_recorded_is_left_to_upkeep_while_the_database_is_away():
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        chunk = changed_and_succeeded(first)
        with crashed_at("finish.committed"):
            execute(chunk.pk)
        Chunk.objects.update(state=Chunk.State.RUNNING, expires_at=from_now(-1))
        with failing_at("plan.booked", repeat(AWAY)):
            rescue_expired(at_most=10)
        plan_all_spilled()

        assert Run.objects.filter(node=second().get_node()).count() == 2


@pytest.mark.parametrize("point", ["finish.committed", "finish.dependents", "rescue.recorded"])
def test_dependents_whose_planner_is_killed_are_planned_by_upkeep(point):
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        chunk = changed_and_succeeded(first)
        if point.startswith("rescue."):
            with crashed_at("finish.committed"):
                execute(chunk.pk)
            Chunk.objects.update(state=Chunk.State.RUNNING, expires_at=from_now(-1))
            with crashed_at(point):
                rescue_expired(at_most=10)
        else:
            with crashed_at(point):
                execute(chunk.pk)
        plan_what_was_left()

        assert Run.objects.filter(node=second().get_node()).count() == 2
        assert not Chunk.objects.leased().exists()
        assert follow_up_lapsed(at_most=10) == 0


def test_a_row_that_changed_back_while_it_ran_is_planned_although_its_worker_was_killed():
    def change_back(value):
        Document.objects.update(title="a")

    Document.objects.create(title="a")
    runner = declare(change_back)
    with installed(runner):
        runner().run()
        Document.objects.update(title="b")
        with crashed_at("finish.committed"):
            work_off()
        assert runner().pending().exists()
        plan_what_was_left()

        assert not runner().pending().exists()


def test_what_a_dead_worker_has_left_waits_for_a_process_that_knows_its_runner():
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        chunk = changed_and_succeeded(first)
        with crashed_at("finish.committed"):
            execute(chunk.pk)
    plan_what_was_left()
    assert Chunk.objects.leased().exists()
    with installed(first, second):
        plan_what_was_left()

        assert Run.objects.filter(node=second().get_node()).count() == 2


def test_what_a_dead_worker_of_an_unknown_runner_has_left_holds_up_no_other_and_is_given_up():
    former, first = declare(NAME="Former", TITLE="Former"), declare(ON_SAVE=False)
    for runner in (former, first):
        with installed(runner):
            runner().run(Document.objects.filter(pk=Document.objects.create(title="a").pk))
            with crashed_at("finish.committed"):
                execute(Chunk.objects.latest("pk").pk)
    Chunk.objects.update(expires_at=from_now(-UNKNOWN_FOR + 60))
    known = Chunk.objects.latest("pk")
    with installed(first):
        Chunk.objects.filter(pk=known.pk).update(expires_at=from_now(-1))

        assert follow_up_lapsed(at_most=1) == 1
        assert Chunk.objects.leased().exclude(pk=known.pk).count() == 1
        Chunk.objects.leased().update(expires_at=from_now(-UNKNOWN_FOR - 1))
        assert follow_up_lapsed(at_most=1) == 0

    assert not Chunk.objects.leased().exists()


def test_a_run_that_was_cancelled_does_not_start_again_because_its_worker_was_killed():
    first, second = chain(ON_SAVE=False)
    with installed(first, second):
        changed_and_succeeded(first)
        changed, other = Run.objects.order_by("pk")
        cancel_runs([[changed]])
        Run.objects.filter(pk=changed.pk).update(finished_at=from_now(-1))
        with crashed_at("finish.committed"):
            execute(other.chunk_id)
        plan_what_was_left()

        assert Run.objects.filter(node=first().get_node()).count() == 2
        assert Run.objects.filter(node=second().get_node()).count() == 1


@pytest.mark.parametrize("has_dependents", [False, True])
def test_a_chunk_keeps_its_lease_for_one_statement_more_if_there_are_dependents(has_dependents):
    first, second = chain(ON_SAVE=False)
    with installed(first, *([second] if has_dependents else [])):
        Document.objects.create(title="a")
        first().run()
        with CaptureQueriesContext(connection) as captured:
            execute(Chunk.objects.get().pk)

    ended = r"UPDATE .autorun_chunk. SET .expires_at. = NULL WHERE"
    statements = [each["sql"] for each in captured if re.search(ended, each["sql"])]
    assert len(statements) == has_dependents


@pytest.mark.django_db(transaction=True)
def test_the_lease_is_kept_while_dependents_are_planned(settings):
    settings.AUTORUN = {"HEARTBEAT": 0.1}

    def represent(self, row):
        found = Chunk.objects.get(finished_at__isnull=False)
        until(lambda: Chunk.objects.get(pk=found.pk).expires_at > found.expires_at)
        return row.title

    Document.objects.create(title="a")
    first, second = chain(**by_python | {"get_instance_representation": represent})
    with installed(first, second):
        first().run()
        execute(Chunk.objects.get().pk)

        assert Run.objects.filter(node=second().get_node()).count() == 1
    assert not Chunk.objects.leased().exists()


@pytest.mark.django_db(transaction=True)
def test_a_step_that_fails_after_a_chunk_keeps_no_other_from_its_work(caplog):
    def refuse_measurements(execute, sql, *arguments):
        if "UPDATE" in sql and "run_seconds" in sql:
            raise RuntimeError
        return execute(sql, *arguments)

    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        batch = runner().run()
        with (
            failing_at("finish.dependents", [RuntimeError()]),
            connection.execute_wrapper(refuse_measurements),
        ):
            work_off()

    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    assert "planning its dependents failed after a chunk" in caplog.text
    assert "measuring its run time failed after a chunk" in caplog.text


def test_a_runner_that_is_declared_wrongly_keeps_no_other_from_its_work(caplog):
    Document.objects.create(title="a")
    first, second = chain()
    broken = declare(NAME="Broken", TITLE="Third", DEPENDS_ON=("tests.Nobody", first))
    with installed(first, second, broken):
        broken.ANALYSIS, broken.ANALYSIS_VERSION = "Nothing", "1.0"
        plan("library.Document", [Document.objects.get().pk])
        work_off()

        assert second().progress().succeeded == 1
    assert "tests.Broken" in caplog.text


def test_a_runner_may_be_named_by_its_label_and_chains_are_long():
    Document.objects.create(title="a")
    first, second = chain()
    third = declare(NAME="Third", TITLE="Third", DEPENDS_ON=("tests.First", second))
    with installed(first, second, third):
        first().run()
        work_off()

        assert third().progress().succeeded == 1
        assert {runner.label for runner in dependents(first().get_node())} == {
            "tests.Second",
            "tests.Third",
        }
