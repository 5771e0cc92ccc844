"""Several at the same thing at the same time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, OperationalError, connection, connections, transaction
from django.db.models import QuerySet

from autorun import tasks
from autorun.control import interventions
from autorun.declare import nodes
from autorun.dispatch import releasing
from autorun.dispatch.publishing import Message, publish
from autorun.dispatch.releasing import release_everywhere
from autorun.exceptions import LeaseLost
from autorun.execution.execute import execute
from autorun.execution.results import Result, Tally, record
from autorun.models import Batch, Chunk, Node, Pulse, Run
from autorun.planning import batches
from autorun.planning.named import plan_keys
from autorun.state import waits
from autorun.state.clock import from_now
from autorun.state.leases import Lease, queued, start
from autorun.upkeep import rounds
from autorun.upkeep.rescue import rescue
from tests.crashes import armed
from tests.engine import declare, installed, work_off
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab
from tests.library.models import Document
from tests.waiting import until


def at_once(*steps: Callable[[], object]) -> list[object]:
    """Return the values or errors of the steps; each has a thread and a connection of its own."""
    barrier = threading.Barrier(len(steps))
    results: dict[int, object] = {}

    def take(number: int, step: Callable[[], object]) -> None:
        try:
            barrier.wait(30)
            results[number] = step()
        except Exception as error:  # noqa: BLE001
            results[number] = error
        finally:
            connections.close_all()

    threads = [threading.Thread(target=take, args=each) for each in enumerate(steps)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    return [results[number] for number in range(len(steps))]


def expired(runner) -> Lease:
    """A lease that has run out, of a chunk of two runs."""
    for title in ("one", "two"):
        Document.objects.create(title=title)
    runner().run()
    lease = start(queued(Chunk.objects.get(state=Chunk.State.QUEUED).pk))
    assert lease is not None
    Chunk.objects.filter(pk=lease.chunk.pk).update(expires_at=from_now(-1))
    lease.chunk.refresh_from_db()
    return lease


def results_of(lease: Lease) -> list[Result]:
    runs = Run.objects.filter(chunk_id=lease.chunk.pk)
    return [Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, "1") for run in runs]


def finish(lease: Lease, results: list[Result]) -> bool:
    try:
        record(lease, results, Tally(), size=5, is_last=True)
    except LeaseLost:
        return False
    return True


@pytest.mark.faults(10)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("first", ["finish", "rescue"])
def test_the_second_of_finish_and_rescue_does_nothing(first):
    """The first one holds the chunk's row, in a transaction that is open, while the other tries."""
    runner = declare(BATCH_SIZE=2)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def stay() -> None:
        is_inside.set()
        may_go_on.wait(2)

    with installed(runner):
        lease = expired(runner)
        results = results_of(lease)
        steps = {
            "finish": lambda: finish(lease, results),
            "rescue": lambda: rescue(Chunk.objects.get(pk=lease.chunk.pk)),
        }
        (second,) = set(steps) - {first}

        def come_second() -> object:
            assert is_inside.wait(30)
            try:
                return steps[second]()
            finally:
                may_go_on.set()

        # The mark of a rescue is a statement of its own, and in the database by this point.
        point = "rescue.taken" if first == "rescue" else "finish.updated"
        with armed(point, act=stay):
            outcomes = at_once(steps[first], come_second)
        work_off()

        assert outcomes == [True, False]
        assert runner().progress().succeeded == runner().progress().total == 2
    attempts = set(Run.objects.values_list("attempts", flat=True))
    assert attempts == ({1} if first == "finish" else {2})


@contextmanager
def frozen_holding(queryset: QuerySet[Any]) -> Iterator[None]:
    """Another session that has locked the rows of `queryset`, and does nothing any more."""
    holds, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                assert list(queryset.select_for_update())
                holds.set()
                may_end.wait(60)
        finally:
            connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert holds.wait(30)
        yield
    finally:
        may_end.set()
        thread.join(30)


locks_rows = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="others lock rows, and not the whole database"
)


@locks_rows
@pytest.mark.faults(7, 9)
@pytest.mark.django_db(transaction=True)
def test_a_process_that_is_frozen_as_it_writes_keeps_no_other_chunk_from_its_rescue(set_constants):
    set_constants(waits, LONGEST_WAIT=1)
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        for title in ("one", "two"):
            Document.objects.create(title=title)
        runner().run()
        first, second = Chunk.objects.order_by("pk")
        assert all(start(queued(chunk.pk)) for chunk in (first, second))
        Chunk.objects.update(expires_at=from_now(-1))

        with frozen_holding(Chunk.objects.filter(pk=first.pk)):
            report = rounds.upkeep(in_any_case=True)

            assert report.rescued == 1
            assert Chunk.objects.get(pk=first.pk).state == Chunk.State.RUNNING
            assert Chunk.objects.get(pk=second.pk).state == Chunk.State.FINISHED
        assert rounds.upkeep(in_any_case=True).rescued == 1
        assert runner().progress().waiting == 2


@locks_rows
@pytest.mark.faults(7, 9)
@pytest.mark.django_db(transaction=True)
def test_a_process_that_is_frozen_as_it_releases_holds_up_its_own_node_alone(set_constants):
    set_constants(waits, LONGEST_WAIT=1)
    runner, other = declare(), declare(TITLE="Other", NAME="OtherRunner")
    with installed(runner, other):
        Document.objects.create(title="one")
        for each in (runner, other):
            node = each().get_node()
            Node.objects.filter(pk=node.pk).update(paused_at=from_now(0))
            with transaction.atomic():
                nodes.lock(node.pk)  # the first one makes the lock
            each().run()
        Node.objects.update(paused_at=None)
        node = runner().get_node()

        with frozen_holding(Pulse.objects.filter(name=f"node:{node.pk}")):
            assert releasing.release(node.pk) == releasing.Release()
            assert rounds.upkeep(in_any_case=True).released == 1
        assert rounds.upkeep(in_any_case=True).released == 1


@contextmanager
def working_on(*steps: Callable[[], object]) -> Iterator[list[object]]:
    """A view that takes the steps in a transaction, and works on in it; what they gave."""
    results: list[object] = []
    has_begun, may_end = threading.Event(), threading.Event()

    def view() -> None:
        try:
            with transaction.atomic():
                results.extend(step() for step in steps)
                has_begun.set()
                may_end.wait(60)
        finally:
            connections.close_all()

    thread = threading.Thread(target=view)
    thread.start()
    try:
        assert has_begun.wait(30)
        yield results
    finally:
        may_end.set()
        thread.join(60)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


#: Far below what a single wait of the server's own, or of the view's end, would take.
PROMPTLY = 20.0


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("door", ["run", "backfill", "adopt", "ignore", "pause"])
def test_a_view_that_works_on_in_its_transaction_keeps_no_other_from_its_work(door):
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(4))
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        first, *others = Document.objects.order_by("pk")
        runner().run(Document.objects.filter(pk=first.pk))
        doors = {
            "run": lambda: runner().run().planned,
            "backfill": lambda: runner().backfill(window=1).planned,
            "adopt": runner().adopt,
            "ignore": runner().ignore,
            "pause": lambda: 3 * interventions.pause_runner(runner()),
        }
        with working_on(doors[door]) as outcome, at_most(PROMPTLY):
            assert outcome == [3]
            tasks.plan(Document._meta.label, [others[0].pk])  # a row that the view is about, too
            assert tasks.sweep(runner().label) is None
            work_off()
            assert runner().progress().succeeded == 4
        work_off()

        progress = runner().progress()
        assert (progress.succeeded, progress.total) == (4, 4)
    assert Run.objects.count() == 4


def fail_on_zero(value: str, **_: object) -> str:
    return str(1 / int(value))


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "door", ["cancel batch", "cancel runner", "cancel runs", "ignore runs", "pause", "resume"]
)
def test_what_a_view_takes_back_holds_up_no_worker_and_happens_once_it_commits(door):
    Document.objects.bulk_create(Document(title=str(n)) for n in range(4))
    runner = declare(fail_on_zero, BATCH_SIZE=1, MAX_ATTEMPTS=1)
    with installed(runner):
        batch = runner().backfill(window=1)
        execute(Chunk.objects.queued().get().pk)
        left = list(Run.objects.pending())
        failed = list(Run.objects.failed())
        if door == "resume":
            batches.pause(batch)
        doors = {
            "cancel batch": lambda: batches.cancel(batch),
            "cancel runner": lambda: interventions.cancel_runner(runner().label),
            "cancel runs": lambda: interventions.cancel_runs([left[:1], left[1:]]),
            "ignore runs": lambda: interventions.ignore_runs([failed]),
            "pause": lambda: batches.pause(batch),
            "resume": lambda: batches.resume(batch),
        }
        expected = {"ignore runs": len(failed), "pause": True, "resume": True}
        with working_on(doors[door]) as outcome:
            assert outcome == [expected.get(door, len(left))]
            chunk = queued(Chunk.objects.queued().get().pk)
            assert chunk is not None
            lease = start(chunk)
            assert lease is not None
            assert finish(lease, results_of(lease))
            assert Batch.objects.filter(pk=batch.pk).update(reason="not locked")

        progress, state = runner().progress(), Batch.objects.get(pk=batch.pk).state
        assert progress.succeeded == 1
        assert (progress.failed, progress.ignored) == ((0, 1) if door == "ignore runs" else (1, 0))
        assert bool(progress.unfinished) == (not door.startswith("cancel"))
        assert (state == Batch.State.PAUSED) == (door == "pause")


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
def test_what_a_view_asks_for_is_planned_once_it_commits(sent):
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        with transaction.atomic():
            Document.objects.bulk_create(Document(title=f"title {n}") for n in range(4))
            batch = runner().run()
            assert (batch.planned, Run.objects.count()) == (4, 0)

        batch.refresh_from_db()
        assert (batch.planned, batch.planned_at is not None, Run.objects.count()) == (4, True, 4)
        with suppress(ZeroDivisionError), transaction.atomic():
            Document.objects.create(title="rolled back")
            runner().run()
            raise ZeroDivisionError
        assert (Batch.objects.count(), Run.objects.count()) == (1, 4)


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
def test_a_process_that_is_frozen_as_it_claims_loses_its_lock(set_constants):
    set_constants(waits, LONGEST_IDLENESS=1)
    runner = declare(BATCH_SIZE=1)
    is_inside, may_go_on = threading.Event(), threading.Event()

    def freeze() -> None:
        if not is_inside.is_set():
            is_inside.set()
            may_go_on.wait(60)

    with installed(runner):
        Document.objects.create(title="one")
        node = runner().get_node()
        Node.objects.update(paused_at=from_now(0))
        runner().run()
        Node.objects.update(paused_at=None)
        with armed("dispatch.claimed", act=freeze), ThreadPoolExecutor(1) as other:
            frozen = other.submit(release_and_close, node.pk)
            assert is_inside.wait(30)
            with at_most(PROMPTLY):
                until(lambda: release_everywhere() == 1)
            may_go_on.set()
            error = frozen.exception(30)
        work_off()

        if connection.vendor == "postgresql":  # which says why, so the release began again
            assert error is None
        else:
            assert isinstance(error, DatabaseError)
        assert Run.objects.get().attempts == runner().progress().succeeded == 1
    with connection.cursor() as cursor:
        variable = {"mysql": "@@SESSION.idle_transaction_timeout"}.get(
            connection.vendor, "current_setting('idle_in_transaction_session_timeout')"
        )
        cursor.execute(f"SELECT {variable}")
        assert str(cursor.fetchone()[0]) == "0"


def release_and_close(node_id: int) -> None:
    try:
        releasing.release(node_id)
    finally:
        connections.close_all()


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
def test_a_wait_for_a_lock_is_bounded_and_leaves_the_session_as_it_was(set_constants):
    set_constants(waits, LONGEST_WAIT=1)
    runner = declare(BATCH_SIZE=1)
    setting = {"mysql": "@@innodb_lock_wait_timeout"}.get(
        connection.vendor, "current_setting('lock_timeout')"
    )

    def limit_of_the_session() -> object:
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {setting}")
            return cursor.fetchone()

    with installed(runner):
        Document.objects.create(title="one")
        runner().run()
        before = limit_of_the_session()
        chunk = queued(Chunk.objects.get().pk)
        runs, chunks, batches = (model.objects.all() for model in (Run, Chunk, Batch))

        for rows, change in (
            (chunks, lambda: Chunk.objects.update(reason="x")),
            (chunks, lambda: Chunk.objects.all().delete()),
            (runs, lambda: Run.objects.filter(is_current=True).update(attempts=1)),
            (batches, lambda: Batch.objects.all()[0].save(update_fields=["reason"])),
        ):
            with frozen_holding(rows), at_most(PROMPTLY):
                with pytest.raises(OperationalError):
                    change()
                with pytest.raises(OperationalError), transaction.atomic():
                    list(rows.select_for_update())
                assert limit_of_the_session() == before
        with frozen_holding(chunks), at_most(PROMPTLY):
            assert start(chunk) is None
        assert start(chunk) is not None


@locks_rows
@pytest.mark.faults(37)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_run", [False, True])
def test_a_row_that_changes_while_another_process_adopts_it_is_looked_at_again(has_run):
    runner = declare()
    is_inside, may_go_on = threading.Event(), threading.Event()

    def stay() -> None:
        is_inside.set()
        may_go_on.wait(1)

    def change() -> None:
        assert is_inside.wait(30)
        Document.objects.update(title="changed")
        plan_keys(runner(), [document.pk])

    with installed(runner):
        document = Document.objects.create(title="one")
        if has_run:
            runner().run()
            work_off()
            Document.objects.update(title="two")
        with armed("plan.chunked", act=stay):
            at_once(runner().adopt, change)
        work_off()

        current = Run.objects.get(is_current=True)
        assert current.outputs == {"value": "changed"}


@pytest.mark.faults(10)
@pytest.mark.django_db(transaction=True)
def test_finish_and_rescue_at_once_have_one_outcome():
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        for _ in range(10):
            Document.objects.all().delete()
            lease = expired(runner)
            results = results_of(lease)
            chunk = Chunk.objects.get(pk=lease.chunk.pk)

            outcomes = at_once(partial(finish, lease, results), partial(rescue, chunk))

            assert sorted(outcomes) == [False, True]
            work_off()
            assert not Chunk.objects.exclude(state=Chunk.State.FINISHED).exists()
            assert runner().progress().succeeded == 2


@pytest.mark.faults(14)
@pytest.mark.django_db(transaction=True)
def test_sweeps_backfills_and_dispatchers_at_once_make_one_run_of_each_row(settings):
    settings.AUTORUN = {"WINDOW": 10}
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(200))
    runner = declare(BATCH_SIZE=5)
    with installed(runner):
        runner().get_node()
        label = runner.get_label()
        steps = [
            *[lambda: tasks.sweep(label)] * 3,
            *[lambda: tasks.backfill(label)] * 2,
            *[release_everywhere] * 3,
        ]
        outcomes = at_once(*steps)

        assert [each for each in outcomes if isinstance(each, Exception)] == []
        in_flight = Chunk.objects.filter(state=Chunk.State.QUEUED)
        assert sum(in_flight.values_list("size", flat=True)) <= 10
        work_off(rounds=100)
        assert runner().progress().succeeded == runner().progress().total == 200
    assert Run.objects.count() == 200
    sweeps = Batch.objects.filter(trigger=Batch.Trigger.SWEEP)
    assert not sweeps.exclude(state=Batch.State.FINISHED).exists()


@pytest.mark.faults(14, 25)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"MAX_PARALLEL": 2, "BATCH_SIZE": 5, "SCHEDULE": 1}])
def test_two_beats_and_more_workers_than_allowed_exceed_no_limit(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    lab.settings["WINDOW"] = 20
    lab.write(60, does="sleep:0.05")
    for _ in range(2):
        lab.start_beat()
        lab.start_worker(concurrency=3)
    publish([Message("autorun.backfill", (lab.runner.label,))] * 3)

    def is_done() -> bool:
        in_flight = Chunk.objects.filter(state__in=(Chunk.State.QUEUED, Chunk.State.RUNNING))
        assert sum(in_flight.values_list("size", flat=True)) <= 20
        return lab.is_done(60)

    lab.until(is_done)

    lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert lab.ledger.most_at_once() <= 2
    assert Run.objects.count() == Specimen.objects.count() == 60
    assert Batch.objects.filter(trigger=Batch.Trigger.SWEEP).exists()
