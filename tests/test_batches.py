"""Batches: how they are asked for, stopped, resumed and counted."""

import datetime as dt

import pytest
from django.db import OperationalError, connection
from django.db.models import Q, QuerySet
from django.test.utils import CaptureQueriesContext

from autorun import tasks
from autorun.control import interventions
from autorun.declare.interruption import Termination
from autorun.dispatch.publishing import redirected
from autorun.dispatch.releasing import release
from autorun.exceptions import ConfigurationError, ImproperRunner, NotRegistered
from autorun.execution.execute import execute
from autorun.execution.work import Work
from autorun.models import Batch, Chunk, Run
from autorun.planning import batches, passes, rows, windows
from autorun.planning.named import plan_keys
from autorun.planning.on_demand import go_on, sweep_now
from autorun.planning.scope import Scope
from autorun.state.clock import from_now, new_chunk_id
from autorun.state.leases import queued, start
from autorun.state.sql import changed_by
from autorun.state.transactions import has_waited, is_conflict, is_passing
from autorun.upkeep.rescue import rescue_expired
from autorun.upkeep.rounds import cancel_batches, upkeep
from tests.crashes import armed, crashed_at, failing_at
from tests.engine import declare, installed, statuses, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}", state=f"{n % 2}") for n in range(6)]


def test_a_batch_knows_what_came_of_it(documents):
    def fail(value):
        if value == "title 1":
            raise ValueError

    runner = declare(fail, MAX_ATTEMPTS=1)
    with installed(runner):
        batch = runner().run()
        assert batch.state == Batch.State.RUNNING
        assert batches.counts(batch).left == 6
        work_off()

    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    assert batches.counts(batch) == batches.BatchCounts(succeeded=5, failed=1, cancelled=0, left=0)
    assert (batch.candidates, batch.existing, batch.planned) == (6, 0, 6)


def test_a_batch_with_nothing_pending_is_finished_at_once(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        assert runner().run().state == Batch.State.FINISHED


@pytest.mark.parametrize(
    ("arguments", "planned"),
    [
        ({}, 3),
        ({"only": "missing"}, 2),
        ({"only": "changed"}, 1),
        ({"only": "failed"}, 1),
        ({"only": "all"}, 4),
        ({"force": True}, 6),
        ({"only": "all", "force": True}, 6),
        ({"limit": 2}, 2),
        ({"limit": 1, "only": "all"}, 1),
        ({"pks": [1, 2, 3]}, None),
        ({"filter": "odd"}, None),
        ({"filter": "callable"}, None),
    ],
)
def test_the_scope_of_a_backfill(documents, arguments, planned):
    """Of six rows, one has failed, one has changed, two are missing and two are done."""

    def fail(value):
        if value == "title 0":
            raise ValueError

    runner = declare(
        fail,
        MAX_ATTEMPTS=1,
        FILTERS={"odd": Q(state="1"), "callable": lambda rows: rows.filter(state="1")},
    )
    with installed(runner):
        runner().run(Document.objects.filter(pk__in=[each.pk for each in documents[:4]]))
        work_off()
        Document.objects.filter(pk=documents[1].pk).update(title="changed")
        if "pks" in arguments:
            arguments = {"pks": [documents[1].pk, str(documents[2].pk), documents[4].pk]}
            planned = 2
        if "filter" in arguments:
            planned = 2
        tasks.backfill(runner.get_label(), **arguments)

    assert Batch.objects.order_by("pk").last().planned == planned


def test_uuid_keys_of_a_backfill_travel_as_text():
    photos = [Photo.objects.create(caption=str(n)) for n in range(3)]
    runner = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    with installed(runner):
        tasks.backfill(runner.get_label(), pks=[str(photos[0].pk), photos[1].pk.hex])
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 2


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"only": "nothing"}, ValueError, "'failed', 'not_applicable', 'all'"),
        ({"only": "failed", "force": True}, ValueError, "leave one of the two out"),
        ({"filter": "even"}, NotRegistered, "no filter 'even' in FILTERS. There are: odd"),
        ({"limit": 0}, ValueError, "limit is 0: it must be a number from 1 on"),
        ({"limit": "5"}, ValueError, "limit is '5'"),
        ({"limit": True}, ValueError, "limit is True"),
        ({"window": -1}, ValueError, "window is -1"),
    ],
)
def test_a_scope_that_names_what_there_is_not_is_refused(documents, arguments, error, words):
    runner = declare(FILTERS={"odd": Q(state="1")})
    with installed(runner), pytest.raises(error, match=words):
        runner().backfill(**arguments)

    assert Batch.objects.count() == 0


def test_an_unknown_runner_is_refused_with_the_known_ones(documents):
    runner = declare()
    with installed(runner), pytest.raises(NotRegistered, match=r"Did you mean 'tests\.EchoRunner'"):
        tasks.sweep("tests.EchoRuner")


def test_a_configuration_the_analysis_does_not_take_is_refused_before_anything_is_planned(
    documents,
):
    def body(value, *, harder: bool):
        return value

    runner = declare(body, ANALYSIS_CONFIGURATION={"hardr": True})
    with installed(runner), pytest.raises(ConfigurationError, match="harder"):
        runner().run()

    assert Run.objects.count() == 0


def test_a_broken_filter_fails_the_batch_and_says_so(documents):
    def broken(self, instance):
        raise RuntimeError

    runner = declare()
    with installed(runner):
        batch = runner().run()
        monkey = windows.Windows

        def explode(*args, **kwargs):
            yield from monkey(*args, **kwargs)
            raise RuntimeError("disk full")

        from autorun.planning import passes

        passes.Windows = explode
        try:
            with pytest.raises(RuntimeError, match="disk full"):
                runner().run()
        finally:
            passes.Windows = monkey

    failed = Batch.objects.exclude(pk=batch.pk).get()
    assert (failed.state, failed.reason) == (Batch.State.FAILED, "RuntimeError: disk full")


@pytest.mark.parametrize("words", ["\0", "\ud800", "redis://:SECRET@host", "long" * 10_000])
def test_a_batch_has_failed_whatever_a_hook_says(words, documents):
    def filter_queryset(self, queryset, log_level=0):
        raise ValueError(f"begin {words} end")

    runner = declare(filter_queryset=filter_queryset)
    with installed(runner), redirected(lambda messages: None):
        batch = interventions.request_backfill(runner(), Scope(only="all"), requested_by="ada")
        with pytest.raises(ImproperRunner):
            tasks.backfill(runner.get_label(), batch=batch.pk)

    batch.refresh_from_db()
    assert batch.state == Batch.State.FAILED
    assert "begin" in batch.reason
    assert "SECRET" not in batch.reason
    assert len(batch.reason) <= batches.MOST_REASON


def test_a_sweep_finds_what_was_written_silently(documents):
    runner = declare()
    with installed(runner):
        sweep_now(runner())
        work_off()
        Document.objects.bulk_create([Document(title="silent")])
        Document.objects.filter(title="title 0").update(title="also silent")

        assert sweep_now(runner()).planned == 2


def test_a_sweep_creates_no_more_than_its_limit(documents):
    runner = declare(MAX_PER_SWEEP=4)
    with installed(runner):
        assert [sweep_now(runner()).planned for _ in range(3)] == [4, 2, 0]


def test_overlapping_sweeps_of_a_runner_are_skipped(documents):
    runner = declare()
    with installed(runner):
        batches.begin(runner(), Batch.Trigger.SWEEP)

        assert sweep_now(runner()) is None
        assert runner().run().planned == 6


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_sweep_goes_on_with_one_that_its_process_has_left(documents, set_constants, has_begun):
    set_constants(windows, DATABASE_WINDOW=2)
    runner = declare(MAX_PER_SWEEP=4)
    with installed(runner):
        if has_begun:
            deadlock = OperationalError(1213, "Deadlock found")
            with failing_at("backfill.window", [deadlock]), pytest.raises(OperationalError):
                sweep_now(runner())
        else:
            batches.hand_on(batches.begin(runner(), Batch.Trigger.SWEEP, limit=4))
        batch = sweep_now(runner())

    assert (batch.planned, batch.limit) == (4, 4)
    assert Batch.objects.count() == 1


def test_a_sweep_of_another_version_stands_in_no_sweeps_way(documents):
    old, new = declare(), declare(VERSION="2.0")
    with installed(old):
        batches.hand_on(batches.begin(old(), Batch.Trigger.SWEEP))
    with installed(new):
        batch = sweep_now(new())

    assert (batch.planned, batch.node.version) == (6, "2.0")
    assert Batch.objects.count() == 2


def test_the_lease_of_a_batch_is_renewed_while_its_rows_take_long_to_prepare(set_constants):
    """Each row takes a lease of a minute here; that of a batch is ten of them."""
    set_constants(windows, WINDOW_SECONDS=0)
    set_constants(rows, MOMENT=0)
    set_constants(passes, BOOK_EVERY=0)
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(15))
    taken_over = []

    def slow(self, instance):
        batch = Batch.objects.filter(state=Batch.State.RUNNING).last()
        if batch is not None and batch.planned_at is None:
            Batch.objects.filter(pk=batch.pk).update(
                expires_at=batch.expires_at - dt.timedelta(minutes=1)
            )
            taken_over.append(batches.take_over(batch.pk))
        return instance.title

    runner = declare(INPUT_FIELDS=None, get_instance_representation=slow)
    with installed(runner):
        assert sweep_now(runner()).planned == 15
        assert runner().backfill().existing == 15

    assert set(taken_over) == {None}
    assert len(taken_over) == 30


def test_a_batch_that_gets_no_further_fails_in_the_end_and_says_so(documents):
    runner = declare()
    with installed(runner):
        batch = interventions.request_backfill(runner(), Scope())
        for _ in range(batches.MOST_TRIES):
            assert batches.take_over(batch.pk) is not None
            Batch.objects.update(expires_at=from_now(-1))

        assert batches.take_over(batch.pk) is None
        batch.refresh_from_db()
        assert batch.state == Batch.State.FAILED
        assert "5 processes in turn have tried to plan it without advancing" in batch.reason


def test_a_batch_that_gets_further_is_taken_over_as_often_as_it_takes(documents, set_constants):
    set_constants(windows, DATABASE_WINDOW=1)
    set_constants(batches, MOST_TRIES=2)
    runner = declare()
    with installed(runner):
        batch = interventions.request_backfill(runner(), Scope())
        for _ in documents:
            taken = batches.take_over(batch.pk)
            with crashed_at("backfill.window"):
                go_on(taken)
            Batch.objects.update(expires_at=from_now(-1))
        go_on(batches.take_over(batch.pk))

    batch.refresh_from_db()
    assert (batch.planned, batch.reason) == (6, "")


def test_a_database_that_is_busy_uses_up_no_tries(documents):
    runner = declare()
    with installed(runner):
        batch = interventions.request_backfill(runner(), Scope())
        for _ in range(2 * batches.MOST_TRIES):
            taken = batches.take_over(batch.pk)
            batches.break_off(taken, OperationalError(1205, "Lock wait timeout exceeded"))

        assert batches.take_over(batch.pk).planned_at is None


def test_a_requested_batch_whose_filter_raises_has_failed_and_says_so(documents):
    def broken(self, queryset, **options):
        return queryset.filter(titel="x")

    runner = declare(filter_queryset=broken)
    with installed(runner):
        batch = interventions.request_backfill(runner(), Scope())
        with pytest.raises(ImproperRunner):
            tasks.backfill(batch.runner, batch=batch.pk)

    batch.refresh_from_db()
    assert batch.state == Batch.State.FAILED
    assert batch.reason.startswith(
        "ImproperRunner: tests.EchoRunner: filter_queryset() raises FieldError: Cannot resolve "
        "keyword 'titel'"
    )


@pytest.mark.parametrize("name", ["sqlstate", "pgcode"])  # of psycopg 3, and of psycopg2
@pytest.mark.parametrize(
    ("state", "passes", "conflicts"),
    [
        *[("57014", False, False), ("57P01", True, False), ("08006", True, False)],
        *[(None, True, False), ("40P01", True, True), ("55P03", True, True)],
    ],
)
def test_a_statement_that_takes_too_long_will_do_so_again(name, state, passes, conflicts):
    cause = Exception()
    setattr(cause, name, state)
    error = OperationalError("canceling statement due to statement timeout")
    error.__cause__ = cause

    assert (is_passing(error), is_conflict(error)) == (passes, conflicts)
    assert has_waited(error) == (state == "55P03")


def test_a_batch_of_another_version_is_left_to_a_worker_that_has_it(documents):
    old, new = declare(), declare(VERSION="2.0")
    with installed(new):
        batch = interventions.request_backfill(new(), Scope())
    with installed(old):
        tasks.backfill(batch.runner, batch=batch.pk)
        assert batches.take_over(batch.pk) is None
    Batch.objects.update(expires_at=from_now(-1))
    with installed(new):
        tasks.backfill(batch.runner, batch=batch.pk)

    batch.refresh_from_db()
    assert (batch.planned, batch.reason) == (6, "")
    assert set(Run.objects.values_list("node__version", flat=True)) == {"2.0"}


@pytest.mark.django_db(transaction=True)
def test_what_a_lock_conflict_kept_from_being_booked_is_booked_again(documents, monkeypatch):
    advance = batches.advance
    conflicts = iter([OperationalError("database is locked")])

    def advance_after_a_conflict(*arguments, **options):
        for conflict in conflicts:
            raise conflict
        advance(*arguments, **options)

    runner = declare()
    with installed(runner):
        runner().adopt()
        monkeypatch.setattr(batches, "advance", advance_after_a_conflict)
        batch = runner().run()

    assert (batch.state, batch.candidates, batch.existing) == (Batch.State.FINISHED, 6, 6)


def test_a_paused_batch_goes_on_when_resumed(documents):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().backfill(window=2)
        assert batches.pause(batch)
        work_off()
        assert runner().progress().succeeded == 2
        assert batches.resume(batch)
        work_off()
        assert runner().progress().succeeded == 6

    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    assert not batches.resume(batch)
    assert not batches.pause(batch)


def test_a_batch_paused_while_it_is_planned_plans_no_further_window(documents, set_constants):
    set_constants(windows, DATABASE_WINDOW=2)
    runner = declare()
    with installed(runner):
        with armed("plan.committed", act=lambda: batches.pause(Batch.objects.get())):
            batch = runner().backfill()
        assert (batch.state, batch.planned) == (Batch.State.PAUSED, 2)
        batches.resume(batch)
        tasks.backfill(runner.get_label(), batch=batch.pk)
        work_off()

        assert runner().progress().succeeded == 6
    batch.refresh_from_db()
    assert (batch.state, batch.planned, batch.candidates) == (Batch.State.FINISHED, 6, 6)


def test_a_batch_over_a_given_queryset_is_planned_to_its_end_while_it_is_paused(
    documents, set_constants
):
    set_constants(windows, DATABASE_WINDOW=2)
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        with armed("backfill.begun", act=lambda: batches.pause(Batch.objects.get())):
            batch = runner().backfill(Document.objects.all())
        assert (batch.state, batch.planned) == (Batch.State.PAUSED, 6)
        assert not Chunk.objects.exclude(state=Chunk.State.WAITING).exists()

        assert batches.resume(batch)
        upkeep(in_any_case=True)
        work_off()

        assert runner().progress().succeeded == 6
    batch.refresh_from_db()
    assert (batch.state, batch.reason) == (Batch.State.FINISHED, "")


def test_one_that_is_resumed_while_a_given_queryset_is_planned_stays_with_its_process(
    documents, set_constants
):
    set_constants(windows, DATABASE_WINDOW=2)

    def pause_and_resume():
        batch = Batch.objects.get()
        assert batches.pause(batch)
        assert batches.resume(batch)
        assert batches.take_over(batch.pk) is None

    runner = declare()
    with installed(runner), armed("backfill.begun", act=pause_and_resume):
        batch = runner().backfill(Document.objects.all())

    assert (batch.state, batch.planned) == (Batch.State.RUNNING, 6)


def test_a_cancelled_batch_leaves_its_rows_pending(documents):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().backfill(window=2)
        assert batches.cancel(batch) == 6
        work_off()

        assert runner().progress().total == 0
        assert runner().pending().count() == 6
        assert Chunk.objects.exclude(state=Chunk.State.FINISHED).count() == 0
        assert runner().run().planned == 6
    batch.refresh_from_db()
    assert batch.state == Batch.State.CANCELLED


@pytest.mark.parametrize("is_given", [False, True])
def test_no_chunk_loads_the_scope_of_its_batch(is_given, documents):
    """A scope may hold 30,000 keys."""
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        runner().run(Document.objects.all() if is_given else None)
        with CaptureQueriesContext(connection) as statements:
            work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 6
    assert "scope" not in "".join(each["sql"] for each in statements)


@pytest.mark.slow
def test_many_chunks_are_cancelled_in_few_statements():
    runner = declare()
    with installed(runner):
        batch = batches.begin(runner(), Batch.Trigger.BACKFILL)
        first = new_chunk_id()
        Chunk.objects.bulk_create(
            Chunk(pk=first + n, node=batch.node, runner=batch.runner, batch=batch, size=1)
            for n in range(10_000)
        )
        Run.objects.bulk_create(
            Run(node=batch.node, chunk_id=first + n, object_id=n, fingerprint="0" * 32)
            for n in range(10_000)
        )
        with CaptureQueriesContext(connection) as statements:
            assert batches.cancel(batch) == 10_000

        assert len(statements) < 200
        assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=10_000, left=0)
        assert runner().progress().total == 0


def test_one_transaction_cancels_no_more_runs_than_it_may(documents, set_constants):
    set_constants(batches, RUNS_AT_ONCE=2)
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        batch = runner().backfill(window=1)
        chunks = Chunk.objects.filter(batch=batch).order_by("pk")
        chunks.filter(pk=chunks[0].pk).update(size=5)

        assert [len(ids) for ids in batches._in_passes(chunks)] == [1, 2, 2, 1]


def test_what_a_page_has_no_time_to_cancel_is_left_to_upkeep(documents, set_constants):
    set_constants(batches, RUNS_AT_ONCE=2, CANCEL_WITHIN=0.0)
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().backfill()

        assert batches.cancel(batch, within=0.0) == 6
        assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=2, left=4)
        assert release(batch.node_id).chunks == 0
        assert [cancel_batches() for _ in range(4)] == [2, 2, 0, 0]
    batch.refresh_from_db()
    assert (batch.state, batch.expires_at) == (Batch.State.CANCELLED, None)


def test_runs_that_were_cancelled_one_by_one_are_counted_once(documents):
    runner = declare()
    with installed(runner):
        batch = runner().backfill()
        interventions.cancel_runs([list(Run.objects.order_by("pk")[:2])])

        assert batches.cancel(batch) == 4
        assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=6, left=0)
        assert runner().progress().total == 0


def test_of_a_cancelled_batch_nothing_starts_although_its_chunks_are_not_given_up_yet(documents):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().backfill(window=2)
        in_flight = Chunk.objects.get(state=Chunk.State.QUEUED)

        with crashed_at("cancel.batch"):
            batches.cancel(batch)

        assert queued(in_flight.pk) is None
        assert release(batch.node_id).chunks == 0
        assert batches.counts(batch).left == 6
        assert cancel_batches() == 0
        Batch.objects.update(expires_at=from_now(-1))
        assert cancel_batches() == 6
        assert runner().pending().count() == 6
    batch.refresh_from_db()
    assert (batch.state, batch.expires_at) == (Batch.State.CANCELLED, None)


def test_of_no_batch_of_a_cancelled_runner_does_a_run_start(documents):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        keys = sorted(each.pk for each in documents)
        for some in (keys[:2], keys[2:]):
            batch = runner().backfill(Document.objects.filter(pk__in=some), window=1)

        with crashed_at("cancel.batch"):
            interventions.cancel_runner(runner().label)

        assert [queued(chunk.pk) for chunk in Chunk.objects.queued()] == [None, None]
        assert release(batch.node_id).chunks == 0
        assert interventions.cancel_runner(runner().label) == len(keys)
        assert runner().pending().count() == len(keys)
        Batch.objects.update(expires_at=from_now(-1))
        assert cancel_batches() == 0
    assert set(Batch.objects.values_list("state", "expires_at")) == {(Batch.State.CANCELLED, None)}


@pytest.mark.parametrize("point", ["cancel.batch", "cancel.runs:2"])
def test_no_run_without_a_batch_starts_once_its_runner_is_cancelled(
    documents, sent, point, set_constants
):
    set_constants(batches, CHUNKS_AT_ONCE=1)
    runner = declare(BATCH_SIZE=1, WINDOW=4)
    with installed(runner):
        keys = [document.pk for document in documents]
        failed = runner().backfill(Document.objects.filter(pk=keys[0]))
        Batch.objects.filter(pk=failed.pk).update(state=Batch.State.FAILED)
        for key in keys[1:]:
            plan_keys(runner(), [key])
        with crashed_at(point):
            interventions.cancel_runner(runner().label)
        left = Chunk.objects.unfinished().count()
        release(failed.node_id)
        for chunk in Chunk.objects.queued():
            execute(chunk.pk)
        assert Chunk.objects.unfinished().count() == left >= len(keys) - 1
        assert cancel_batches() == 0
        Chunk.objects.being_cancelled().update(expires_at=from_now(-1))
        assert cancel_batches() == left
        assert cancel_batches() == 0

        assert runner().pending().count() == len(keys)
        assert not Chunk.objects.unfinished().exists()


def test_a_chunk_that_is_started_while_its_batch_is_cancelled_goes_on(documents):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().backfill()
        one = queued(Chunk.objects.order_by("pk").first().pk)

        with armed("cancel.batch", act=lambda: start(one)):
            assert batches.cancel(batch) == 4
        one.refresh_from_db()
        assert (one.state, one.cancelled) == (Chunk.State.RUNNING, 0)


def test_a_chunk_whose_start_is_not_answered_has_started(documents):
    def start_unanswered(*, after, chunk_id):
        assert changed_by(after)
        raise OperationalError("server closed the connection unexpectedly")

    runner = declare()
    with installed(runner):
        runner().run()
        chunk = queued(Chunk.objects.get().pk)
        lease = start(chunk, read_runs=start_unanswered)

        work = Work(lease, runner(), runner().get_analysis(), runs=lease.runs)
        work.assign()
        work.perform(Termination())
    assert statuses() == [Run.Status.SUCCEEDED] * 6


def test_what_a_running_chunk_of_a_cancelled_batch_hands_over_is_given_up(documents):
    runner = declare()
    with installed(runner):
        batch = runner().backfill()
        chunk = queued(Chunk.objects.get().pk)
        work = Work(start(chunk), runner(), runner().get_analysis())
        work.assign()
        batches.cancel(batch)
        work.hand_over()
        Batch.objects.update(expires_at=from_now(-1))

        assert cancel_batches() == 6
        assert runner().progress().unfinished == 0
        batch.refresh_from_db()
        assert batch.expires_at is not None  # what is running may hand over more
        work.perform(Termination())
        Batch.objects.update(expires_at=from_now(-1))
        cancel_batches()
    batch.refresh_from_db()
    assert batch.expires_at is None


@pytest.mark.parametrize("ending", ["fails", "is lost"])
def test_a_run_of_a_cancelled_batch_that_has_attempts_left_is_cancelled_at_once(documents, ending):
    def cancel_and_fail(value):
        batches.cancel(Batch.objects.get())
        raise ValueError(value)

    runner = declare(cancel_and_fail, BATCH_SIZE=1)
    with installed(runner):
        batch = runner().backfill(limit=1)
        if ending == "fails":
            work_off()
        else:
            start(queued(Chunk.objects.get().pk))
            batches.cancel(batch)
            Chunk.objects.update(expires_at=from_now(-1))
            rescue_expired(at_most=1)

        assert runner().progress().total == 0
        assert batches.counts(batch) == batches.BatchCounts(0, 0, cancelled=1, left=0)
        assert Run.objects.get().attempts == 1


def test_a_batch_whose_last_window_is_planned_as_its_chunks_end_goes_on(documents, monkeypatch):
    exists = QuerySet.exists

    def late(chunks):
        """No chunk is left; and then the planner commits."""
        found = exists(chunks)
        monkeypatch.undo()
        Chunk.objects.create(node=batch.node, runner=batch.runner, batch=batch, size=1)
        Batch.objects.update(planned_at=batch.created_at)
        return found

    runner = declare()
    with installed(runner):
        batch = batches.begin(runner(), Batch.Trigger.BACKFILL)
        batch.refresh_from_db()
        monkeypatch.setattr(QuerySet, "exists", late)

        assert not batches.finish_if_done(batch.pk)


def test_a_taken_over_batch_goes_on_behind_its_cursor(documents, set_constants):
    set_constants(windows, PYTHON_WINDOW=2)
    runner = declare(
        INPUT_FIELDS=None,
        get_instance_representation=lambda self, instance: instance.title,
        FILTERS={"all": Q(pk__gt=0)},
    )
    with installed(runner):
        with crashed_at("plan.committed"):
            runner().backfill(filter="all", force=True)
        work_off()
        Batch.objects.update(expires_at=from_now(-1))

        batch = go_on(batches.take_over(Batch.objects.get().pk))
        work_off()

    assert (batch.candidates, batch.planned, Run.objects.count()) == (6, 6, 6)


@pytest.mark.parametrize("changed", [None, 0, 3, 5])
def test_windows_with_nothing_pending_are_booked_together(documents, set_constants, changed):
    set_constants(windows, DATABASE_WINDOW=1)
    set_constants(passes, BOOK_EVERY=3600)
    runner = declare()
    with installed(runner):
        runner().adopt()
        if changed is not None:
            Document.objects.filter(pk=documents[changed].pk).update(title="another")
        with CaptureQueriesContext(connection) as queries:
            batch = runner().backfill()

    booked = [
        each["sql"] for each in queries if "UPDATE" in each["sql"] and "candidates" in each["sql"]
    ]
    assert len(booked) == (1 if changed is None else 2)
    assert (batch.candidates, batch.existing) == (6, 6 if changed is None else 5)


def test_what_is_not_booked_of_a_killed_batch_is_looked_at_again(documents, set_constants):
    set_constants(windows, DATABASE_WINDOW=2)
    set_constants(passes, BOOK_EVERY=3600)
    runner = declare()
    with installed(runner):
        runner().adopt(Document.objects.filter(pk__in=[each.pk for each in documents[:2]]))
        with crashed_at("backfill.window"):
            runner().backfill()
        assert Batch.objects.get().candidates == 0
        Batch.objects.update(expires_at=from_now(-1))

        batch = go_on(batches.take_over(Batch.objects.get().pk))

    assert (batch.candidates, batch.existing, batch.planned) == (6, 2, 4)


@pytest.mark.parametrize("limit", [2, 4])
def test_a_limit_that_is_reached_leaves_nothing_unbooked(documents, set_constants, limit):
    set_constants(windows, DATABASE_WINDOW=2)
    runner = declare()
    with installed(runner):
        runner().adopt(Document.objects.filter(pk__in=[each.pk for each in documents[:2]]))
        batch = runner().backfill(limit=limit)

    assert (batch.candidates, batch.existing, batch.planned) == (2 + limit, 2, limit)
