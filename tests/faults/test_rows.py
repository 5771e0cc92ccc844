"""Changes of rows while they are being processed."""

import threading
from contextlib import suppress

import pytest
from django.db import connection, connections, transaction
from django.db.models import Q

from autorun import tasks
from autorun.models import Chunk, Failure, Run
from autorun.observe.held_up import held_up
from autorun.planning import batches, windows
from autorun.planning.named import plan_keys
from autorun.planning.planner import Planner
from autorun.triggers import delivery
from tests.engine import current_runs, declare, installed, work_off
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab
from tests.library.models import Document


@pytest.mark.faults(15)
@pytest.mark.django_db
def test_a_row_that_changes_back_while_it_runs_is_done_without_a_sweep():
    """Planned as `old`, run as `new`, and `old` again: nothing differs from what was planned."""
    document = Document.objects.create(title="old")

    def change_back(value):
        if value == "new":
            Document.objects.update(title="old")
            plan_keys(runner(), [document.pk])
        return value

    runner = declare(change_back)
    with installed(runner):
        plan_keys(runner(), [document.pk])
        Document.objects.update(title="new")
        work_off()

        assert not runner().pending().exists()
    assert current_runs()[document.pk].outputs == "old"


@pytest.mark.faults(15)
@pytest.mark.django_db
def test_a_row_that_is_back_before_its_run_is_cancelled_is_done_without_a_sweep():
    """The worker does not find the row; it is saved again before the worker says so."""
    documents = [Document.objects.create(title=title) for title in ("first", "second")]
    gone = documents[1].pk

    def bring_back(value):
        if value == "first":
            Document.objects.create(pk=gone, title="second")
            plan_keys(runner(), [gone])
        return value

    runner = declare(bring_back)
    with installed(runner):
        plan_keys(runner(), [document.pk for document in documents])
        documents[1].delete()
        work_off()

        assert not runner().pending().exists()
    assert current_runs()[gone].status == Run.Status.SUCCEEDED
    assert Chunk.objects.filter(state=Chunk.State.FINISHED).count() == Chunk.objects.count()


@pytest.mark.faults(15)
@pytest.mark.django_db
def test_a_row_that_leaves_the_filter_while_it_runs_and_comes_back_changed_has_one_follow_up():
    """Soft deletion: the row is there, and no runner is about it."""
    document = Document.objects.create(title="old")

    def hide(value):
        if value == "old":
            Document.objects.update(state="hidden")
            plan_keys(runner(), [document.pk])
        return value

    runner = declare(hide, BASE_QUERY=~Q(state="hidden"))
    with installed(runner):
        plan_keys(runner(), [document.pk])
        work_off()
        assert not runner().pending().exists()
        Document.objects.update(state="", title="new")
        plan_keys(runner(), [document.pk])
        work_off()

        assert runner().progress().succeeded == runner().progress().total == 1
    assert current_runs()[document.pk].outputs == "new"
    assert sorted(Run.objects.values_list("outputs", flat=True)) == ["new", "old"]


@pytest.mark.faults(2)
@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_only_what_commits_runs(lab: Lab):
    lab.start_worker()
    with suppress(RuntimeError), transaction.atomic():
        lab.save(2, value="rolled back")
        raise RuntimeError
    with transaction.atomic():
        lab.save(2, value="kept")
        with suppress(RuntimeError), transaction.atomic():
            lab.save(2, value="back to the savepoint")
            raise RuntimeError
        with transaction.atomic():
            lab.save(1, value="inner")
    lab.until_done(3)

    lab.check()
    values = {each.value for each in lab.ledger.executions()}
    assert values == {"kept0", "kept1", "inner0"}


@pytest.mark.faults(15)
@pytest.mark.slow
def test_rows_that_change_vanish_or_lend_their_key_while_they_run(lab: Lab):
    changed, deleted, reused = lab.save(3, does="gate")
    lab.start_worker(concurrency=3)
    delivery.wait_until_idle()
    lab.until(lambda: lab.ledger.executions())

    changed.value = "changed"
    changed.save()
    deleted_pk, _ = deleted.pk, deleted.delete()
    reused_pk, _ = reused.pk, reused.delete()
    Specimen.objects.create(pk=reused_pk, value="another row")
    delivery.wait_until_idle()
    lab.open_gate()
    lab.until_done(2)

    lab.check()
    assert not Run.objects.filter(object_id=deleted_pk, status=Run.Status.PENDING).exists()
    current = current_runs()
    assert current[changed.pk].outputs == {"value": "changed"}
    assert current[reused_pk].outputs == {"value": "another row"}
    assert max(lab.ledger.times().values()) <= 2


@pytest.mark.faults(16)
@pytest.mark.slow
def test_a_row_saved_a_thousand_times_runs_a_few_times_and_last_as_it_is(lab: Lab):
    (row,) = lab.save(1, does="sleep:0.02")
    lab.start_worker(concurrency=2)

    def save_often(thread: int) -> None:
        try:
            for n in range(125):
                Specimen.objects.filter(pk=row.pk).get().save()
                mine = Specimen(pk=row.pk, value=f"{thread}.{n}", does=row.does)
                mine.save()
        finally:
            connections.close_all()

    threads = [threading.Thread(target=save_often, args=[n]) for n in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    for n in range(1_000):
        row.value = f"loop {n}"
        row.save()
    lab.until_done(1)

    lab.check()
    assert current_runs()[row.pk].outputs == {"value": "loop 999"}
    assert lab.ledger.times()[row.pk] < 400


@pytest.mark.faults(17)
@pytest.mark.django_db(transaction=True)
def test_a_commit_that_comes_late_with_a_lower_key_is_found_by_the_next_sweep():
    """The sweep has passed the key by the time that the row can be seen."""
    runner = declare()
    is_inserted, may_commit = threading.Event(), threading.Event()

    def insert_late() -> None:
        try:
            with transaction.atomic():
                if connection.vendor != "sqlite":  # which has one writer at a time
                    Document.objects.create(pk=5, title="late")
                is_inserted.set()
                may_commit.wait(30)
            if connection.vendor == "sqlite":
                Document.objects.create(pk=5, title="late")
        finally:
            connections.close_all()

    thread = threading.Thread(target=insert_late)
    with installed(runner):
        if connection.vendor == "sqlite":
            is_inserted.set()
        else:
            thread.start()
        assert is_inserted.wait(30)
        Document.objects.create(pk=10, title="early")
        tasks.sweep(runner.get_label())
        assert set(current_runs()) == {10}
        may_commit.set()
        if connection.vendor == "sqlite":
            thread.start()
        thread.join()
        tasks.sweep(runner.get_label())
        work_off()

        assert runner().progress().succeeded == 2


@pytest.mark.faults(19)
@pytest.mark.django_db
def test_rows_that_come_and_go_around_the_cursor(monkeypatch, set_constants):
    """Above the bound: left to the sweep. Below the cursor: likewise. Deleted ahead: not run."""
    set_constants(windows, DATABASE_WINDOW=10)
    Document.objects.bulk_create(Document(pk=100 + n, title="first") for n in range(30))
    runner = declare()
    planned = Planner.plan
    seen = []

    def plan(self, window, **options):
        if len(seen) == 1:
            Document.objects.create(pk=50, title="below the cursor")
            Document.objects.create(pk=500, title="above the bound")
            Document.objects.filter(pk=125).delete()
        seen.append(window.last_key)
        return planned(self, window, **options)

    monkeypatch.setattr(Planner, "plan", plan)
    with installed(runner):
        batch = runner().backfill()
        assert (batch.planned, batch.upper_bound) == (29, "129")
        tasks.sweep(runner.get_label())
        work_off()

        assert runner().progress().succeeded == runner().progress().total == 31
    assert not Run.objects.filter(object_id=125).exists()


@pytest.mark.faults(20)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"MAX_ATTEMPTS": 2, "RETRY_BACKOFF": 0.1}])
def test_half_the_rows_are_poison_and_the_others_succeed(lab: Lab):
    # In turns: twenty failures in a row would hold the runner up.
    for _ in range(100):
        lab.write(1, does="raise:poison")
        lab.write(1)
    lab.start_worker(concurrency=2)

    lab.runner.run()
    lab.until(lambda: lab.is_done(100))

    lab.check()
    progress = lab.runner.progress()
    assert (progress.succeeded, progress.failed) == (100, 100)
    assert Failure.objects.count() == 200
    assert set(Failure.objects.values_list("message", flat=True)) == {"poison"}
    assert set(lab.ledger.times().values()) == {1, 2}


def tried_in_vain(label: str) -> bool:
    """Whether a try of a runner that is held up has ended, and the next one has a time."""
    tries = Chunk.objects.filter(runner=label, started_at__isnull=False).exclude(reason="")
    return tries.filter(state=Chunk.State.FINISHED).exists() and bool(held_up(label))


@pytest.mark.faults(20)
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"MAX_ATTEMPTS": 1},
        {"MAX_ATTEMPTS": 2, "RETRY_BACKOFF": 0.1, "BATCH_SIZE": 1},
    ],
)
def test_bodies_that_all_fail_alike_wait_until_a_row_succeeds(lab: Lab):
    lab.write(49, does="full")
    lab.start_worker(concurrency=2)

    lab.runner.run()
    lab.until(lambda: held_up(lab.runner.label))
    begun = len(lab.ledger.executions())
    lab.save(does="full")
    lab.until(lambda: tried_in_vain(lab.runner.label))
    assert lab.runner.progress().failed == 0
    in_flight = 4  # two executed, and two in the queue
    assert len(lab.ledger.executions()) <= begun + in_flight + 1
    assert "No space left" in held_up(lab.runner.label)[0].reason
    lab.open_gate()
    lab.until_done(50)

    lab.check()
    progress = lab.runner.progress()
    assert (progress.succeeded, progress.failed) == (50, 0)


class Unspeakable(Exception):
    """Neither picklable nor printable."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.faults(21)
@pytest.mark.django_db
@pytest.mark.parametrize(
    "error",
    [ValueError("a\x00b"), ValueError("\ud800"), ValueError("x" * 50_000_000), Unspeakable()],
    ids=["nul", "lone surrogate", "50 MB", "unspeakable"],
)
def test_whatever_is_thrown_is_a_failure_that_can_be_read(error):
    rows = [Document.objects.create(title=title) for title in ("bad", "good")]

    def throw(value):
        if value == "bad":
            raise error

    runner = declare(throw, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 1)
    failure = Failure.objects.get(run__object_id=rows[0].pk)
    assert type(error).__name__ in failure.exception_class
    assert len(failure.message) + len(failure.traceback) <= 41_000
    assert "\x00" not in failure.message


@pytest.mark.faults(22)
@pytest.mark.django_db
@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"a": [object()]}, 'outputs["a"]'),
        ({"mean": float("nan")}, 'outputs["mean"]'),
        ({"text": "x" * 50_000_000}, "MAX_OUTPUT_BYTES"),
    ],
    ids=["not JSON", "NaN", "50 MB"],
)
def test_outputs_that_cannot_be_kept_fail_clearly_and_alone(outputs, words):
    for title in ("bad", "good"):
        Document.objects.create(title=title)
    runner = declare(lambda value: outputs if value == "bad" else value, MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        work_off()

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 1)
    assert words in Failure.objects.get().message


@pytest.mark.faults(45)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 2}])
def test_everything_again_that_is_cancelled_half_way_leaves_every_row_done(lab: Lab):
    lab.settings["WINDOW"] = 20
    lab.write(60, does="sleep:0.02")
    lab.start_worker(concurrency=2)
    lab.runner.run()
    lab.until_done(60)
    first = set(Run.objects.values_list("pk", flat=True))

    batch = lab.runner.backfill(force=True)
    lab.until(lambda: batches.counts(batch).succeeded >= 5)
    batches.cancel(batch)

    lab.check_counts()
    lab.until_done(60)
    lab.check()
    current = set(Run.objects.filter(is_current=True).values_list("pk", flat=True))
    assert len(current) == 60
    assert current & first
    assert current - first
    assert batches.counts(batch).cancelled == len(current & first)
    assert not lab.runner.run().planned
