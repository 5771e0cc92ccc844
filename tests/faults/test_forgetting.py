"""A database that forgot its last commits: a late replica took over, or a backup was restored.

The processes live on, and remember more than the database.
"""

from collections import Counter
from collections.abc import Callable

import pytest

from autorun import tasks
from autorun.exceptions import LeaseLost
from autorun.execution import work
from autorun.execution.results import Result, Tally, record
from autorun.models import Batch, Chunk, Failure, Node, Run
from autorun.observe.doctor.backlog import examine_orphans
from autorun.planning import batches, windows
from autorun.planning.named import plan_keys
from autorun.planning.on_demand import sweep_now
from autorun.runner import QuerySetRunner
from autorun.state import clock
from autorun.state.clock import from_now
from autorun.state.leases import queued, start
from autorun.upkeep import folding, rescue
from tests.crashes import armed, listening
from tests.engine import declare, installed, work_off
from tests.faultlab import steps
from tests.faultlab.snapshots import Snapshot
from tests.faults.driver import Lab
from tests.library.models import Document

RunnerClass = type[QuerySetRunner]


def write(number: int) -> list[Document]:
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(number))
    return list(Document.objects.order_by("pk"))


def assert_all_done(runner: RunnerClass, number: int) -> None:
    """Every row has a success, no run is an orphan, and the counts add up."""
    progress = runner().progress()
    assert progress.succeeded == progress.total == number
    assert not runner().pending().exists()
    assert not Run.objects.pending().exists()
    assert not Chunk.objects.annotate(left=Chunk.RUNS_LEFT).exclude(left=0).exists()
    assert not Failure.objects.exists()


@pytest.mark.faults(53)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("bodies", range(1, 5))
def test_results_that_the_database_has_forgotten_are_repeated(set_constants, bodies):
    set_constants(work, WRITE_EVERY=0)
    write(4)
    before: list[Snapshot] = []
    seen = Counter[str]()

    def forget(point: str) -> None:
        seen[point] += 1
        if point == "start.assigned" and not before:
            before.append(Snapshot())
        if point == "finish.unwritten" and seen[point] == bodies:
            before[0].restore()

    runner = declare(BATCH_SIZE=4, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        with listening(forget):
            work_off()

        assert_all_done(runner, 4)
    assert seen["finish.unwritten"] == 4 + bodies - 1
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(53)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("point", ["finish.unwritten", "finish.committed"])
def test_a_saved_row_whose_run_was_forgotten_is_planned_again_by_its_worker(point):
    """If its worker still knows of it; else the next sweep finds the row."""
    (document,) = write(1)
    runner = declare()
    with installed(runner):
        plan_keys(runner(), [document.pk])
        before = Snapshot()
        Document.objects.update(title="changed")
        plan_keys(runner(), [document.pk])
        with armed(point, act=before.restore):
            work_off()
        if point == "finish.committed":
            runner().run()
            work_off()

        assert_all_done(runner, 1)
    assert Run.objects.current().get().outputs == {"value": "changed"}


@pytest.mark.faults(53)
@pytest.mark.django_db(transaction=True)
def test_windows_that_the_database_has_forgotten_are_planned_again(set_constants):
    set_constants(windows, DATABASE_WINDOW=3)
    write(12)
    before: list[Snapshot] = []

    def forget(point: str) -> None:
        if point == "backfill.window":
            before.append(Snapshot())
            if len(before) == 3:
                before[0].restore()

    runner = declare()
    with installed(runner):
        with listening(forget):
            runner().backfill()
        assert Batch.objects.get().state == Batch.State.RUNNING
        steps.heal()

        assert_all_done(runner, 12)
    batch = Batch.objects.get()
    assert (batch.state, batch.planned) == (Batch.State.FINISHED, 12)


@pytest.mark.faults(54)
@pytest.mark.django_db(transaction=True)
def test_a_worker_whose_start_was_forgotten_writes_nothing():
    write(2)
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        runner().run()
        chunk = queued(Chunk.objects.get().pk)
        before = Snapshot()
        late = start(chunk)
        before.restore()
        other = start(queued(chunk.pk))
        results = [
            Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, '"late"')
            for run in Run.objects.all()
        ]

        with pytest.raises(LeaseLost):
            record(late, results, Tally(), size=1, is_last=True)

        assert Run.objects.pending().count() == 2
        record(other, results, Tally(), size=1, is_last=True)
        assert_all_done(runner, 2)


@pytest.mark.faults(54)
@pytest.mark.django_db(transaction=True)
def test_a_planner_whose_batch_was_forgotten_books_nothing_in_the_next_one_of_its_id():
    write(6)
    runner = declare()
    with installed(runner):
        runner().get_node()
        before = Snapshot()

        def forget() -> None:
            forgotten = Batch.objects.get()
            before.restore()
            batches.begin(runner(), Batch.Trigger.BACKFILL, pk=forgotten.pk)

        with armed("backfill.begun", act=forget):
            runner().backfill()

        assert Batch.objects.get().planned == 0
        assert not Run.objects.exists()
        runner().run()
        work_off()
        assert_all_done(runner, 6)


DOORS: dict[str, Callable[[QuerySetRunner], object]] = {
    "a save": lambda runner: plan_keys(runner, Document.objects.values_list("pk", flat=True)),
    "run": lambda runner: runner.run(),
    "backfill": lambda runner: runner.backfill(),
    "sweep": sweep_now,
}


@pytest.mark.faults(55)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("door", DOORS)
def test_a_node_that_was_forgotten_is_made_again_at_once(door):
    write(3)
    runner = declare()
    with installed(runner):
        before = Snapshot()
        known = runner().get_node()
        before.restore()

        assert runner().progress().total == 0
        DOORS[door](runner())
        work_off()

        assert_all_done(runner, 3)
        assert Node.objects.get() == known


@pytest.mark.faults(55)
@pytest.mark.django_db(transaction=True)
def test_a_node_is_forgotten_between_two_windows(set_constants):
    set_constants(windows, DATABASE_WINDOW=3)
    write(7)
    runner = declare()
    with installed(runner):
        before = Snapshot()
        with armed("backfill.window", act=before.restore):
            runner().backfill()
        sweep_now(runner())
        work_off()

        assert_all_done(runner, 7)


@pytest.mark.faults(55)
@pytest.mark.django_db(transaction=True)
def test_the_id_of_a_forgotten_node_is_never_given_to_another():
    """A process that knows it would record its results for the other one."""
    runner, other = declare(), declare(NAME="OtherRunner", VERSION="2.0")
    with installed(runner, other):
        before = Snapshot()
        known = runner().get_node()
        before.restore()

        assert other().get_node().pk != known.pk


@pytest.mark.faults(58)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "point", ["start.leased", "start.assigned", "finish.unwritten", "finish.committed"]
)
def test_a_row_that_is_saved_before_its_chunk_starts_and_planned_later_runs_once(point):
    document, _ = write(2)
    inputs: list[str] = []

    def body(value: str) -> None:
        inputs.append(value)

    runner = declare(body, BATCH_SIZE=2)
    with installed(runner):
        runner().run()
        Document.objects.filter(pk=document.pk).update(title="changed")
        with armed(point, act=lambda: plan_keys(runner(), [document.pk])):
            work_off()
        Chunk.objects.exclude(not_before=None).update(not_before=None)
        work_off()

        assert_all_done(runner, 2)
    assert sorted(inputs) == ["changed", "title 1"]


def orphan(runner: RunnerClass, **chunk: object) -> None:
    """Five rows have been done, and the database has forgotten the results of two."""
    write(5)
    runner().run()
    work_off()
    forgotten = Run.objects.order_by("pk")[1:3].values_list("pk", flat=True)
    Run.objects.filter(pk__in=list(forgotten)).update(status=Run.Status.PENDING, attempts=0)
    Chunk.objects.update(**chunk)


#: What the chunk of two orphans says: nothing was counted; all was counted; so was its node.
LEFT: dict[str, dict[str, object]] = {
    "uncounted": {"succeeded": 3},
    "counted": {},
    "counted as failed": {"succeeded": 3, "failed": 2},
}


@pytest.mark.faults(41, 53)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("left", LEFT)
def test_runs_that_are_pending_in_an_ended_chunk_are_named_by_doctor_and_executed(left):
    runner = declare(BATCH_SIZE=5)
    with installed(runner):
        orphan(runner, **LEFT[left])
        (finding,) = examine_orphans()
        assert finding.level == "error"
        assert finding.message.startswith("2 runs are pending")

        assert rescue.reopen_some() == 2
        assert rescue.reopen_some() == 0
        work_off()

        assert_all_done(runner, 5)
        assert [each.level for each in examine_orphans()] == ["ok"]


@pytest.mark.faults(41, 53)
@pytest.mark.django_db(transaction=True)
def test_orphans_of_a_folded_chunk_are_executed(set_constants):
    set_constants(folding, FEW=1)
    runner = declare(BATCH_SIZE=5)
    with installed(runner):
        orphan(runner, succeeded=3)
        assert folding.fold(runner().get_node().pk, quiet=-1) == 1

        steps.heal()

        assert_all_done(runner, 5)


@pytest.mark.faults(41)
@pytest.mark.django_db(transaction=True)
def test_orphans_whose_chunk_is_gone_are_executed():
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        orphan(runner)
        Chunk.objects.filter(pk__in=Run.objects.pending().values("chunk_id")).delete()

        steps.heal()

        assert_all_done(runner, 5)


@pytest.mark.faults(41)
@pytest.mark.django_db(transaction=True)
def test_orphans_of_a_cancelled_batch_are_cancelled():
    runner = declare(BATCH_SIZE=5)
    with installed(runner):
        orphan(runner, succeeded=3)
        Batch.objects.update(state=Batch.State.CANCELLED)

        steps.heal()

        assert not Run.objects.pending().exists()
        assert runner().pending().count() == 2


@pytest.mark.faults(53)
@pytest.mark.django_db(transaction=True)
def test_orphans_are_looked_for_a_part_at_a_time_and_all_over_again(set_constants, monkeypatch):
    set_constants(rescue, PART=4)
    # Ids after those of a test whose clock is ahead would all be of one millisecond.
    monkeypatch.setattr(clock._last, "chunk_id", 0, raising=False)
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        for _ in range(4):
            write(5)
            runner().run()
            work_off()
        last = Run.objects.latest("pk")
        Run.objects.filter(pk=last.pk).update(status=Run.Status.PENDING)

        looks = [rescue.reopen_some() for _ in range(10)]

    assert sum(looks) == 1
    assert looks[0] == 0


@pytest.mark.faults(41)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("scope", [{"newer": 1}, {"only": "newer"}, {"source": {"kind": "newer"}}])
def test_a_batch_of_a_newer_version_is_left_to_newer_workers(scope):
    write(3)
    runner = declare()
    with installed(runner):
        batch = batches.begin(runner(), "newer", scope=scope)
        Batch.objects.filter(pk=batch.pk).update(expires_at=from_now(-1), tries=0)
        tasks.backfill(runner().label, batch=batch.pk)
        batch.refresh_from_db()
        assert batch.state == Batch.State.RUNNING

        Batch.objects.filter(pk=batch.pk).update(scope={}, expires_at=from_now(-1))
        tasks.backfill(runner().label, batch=batch.pk)
        work_off()

        assert_all_done(runner, 3)


@pytest.mark.faults(41)
@pytest.mark.django_db(transaction=True)
def test_messages_priorities_and_states_of_a_newer_version_do_no_harm():
    first, second = write(2)
    runner = declare()
    dependent = declare(NAME="DependentRunner", VERSION="2.0", DEPENDS_ON=(runner,))
    with installed(runner, dependent):
        tasks.plan.run("library.Document", [first.pk, second.pk], "newer", newer=1)
        Chunk.objects.update(priority=30)
        work_off()
        assert_all_done(runner, 2)
        assert_all_done(dependent, 2)

        Run.objects.filter(object_id=first.pk).update(status=9)
        Document.objects.filter(pk=first.pk).update(title="changed")
        plan_keys(runner(), [first.pk])
        work_off()

        assert not runner().pending().exists()
    assert not Failure.objects.exists()


@pytest.mark.faults(41, 53, 54, 55)
@pytest.mark.slow
@pytest.mark.parametrize("bodies", [0, 20])
def test_a_backup_that_is_restored_under_live_workers_costs_repetitions_only(lab: Lab, bodies: int):
    """One of before the first plan, without a node, and one of the middle."""
    lab.start_worker(concurrency=2)
    lab.write(80, does="sleep:0.05")
    if bodies:
        lab.runner.run()
        lab.until(lambda: len(lab.ledger.executions()) >= bodies)
    backup = Snapshot()
    if not bodies:
        lab.runner.run()
    lab.until(lambda: len(lab.ledger.executions()) >= bodies + 20)

    backup.restore()
    lab.save(5, value="live")
    lab.until(lambda: lab.runner.progress().succeeded >= 5)
    lab.runner.run()
    lab.until_done(85)

    lab.check(zombies=True)
    assert not Run.objects.failed().exists()
