"""Self-healing. Time passes because columns are back-dated."""

import datetime as dt
import re
from collections.abc import Iterator

import pytest
from django.db import OperationalError, connection
from django.db.models import F
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from autorun import tasks
from autorun.control import interventions
from autorun.dispatch import releasing
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Failure, Pulse, Run, SpilledTrigger
from autorun.planning import batches, named, on_demand
from autorun.planning.named import plan_keys
from autorun.planning.scope import Scope
from autorun.runner import QuerySetRunner
from autorun.state import clock, pulses
from autorun.state.clock import from_now
from autorun.state.leases import queued, start
from autorun.state.pulses import take_turn
from autorun.upkeep import folding, rounds, spilled
from autorun.upkeep.bootstep import next_pause
from autorun.upkeep.folding import prune
from autorun.upkeep.rescue import rescue, rescue_expired
from autorun.upkeep.rounds import finish_batches, hand_on_batches, send_again, upkeep
from tests.crashes import failing_at
from tests.engine import declare, installed, offer, plan_all_spilled, statuses, work_off
from tests.library.models import Document, Photo

pytestmark = pytest.mark.django_db


@pytest.fixture
def documents() -> list[Document]:
    return [Document.objects.create(title=f"title {n}") for n in range(4)]


def lose_worker(chunk: Chunk) -> None:
    """Start a chunk as a worker that dies at once does."""
    assert start(queued(chunk.pk)) is not None
    Chunk.objects.filter(pk=chunk.pk).update(expires_at=from_now(-1))


def test_runs_of_a_lost_worker_go_out_again_each_alone(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        lose_worker(Chunk.objects.get())

        assert rescue_expired(at_most=10) == 1
        assert sorted(
            Chunk.objects.filter(state=Chunk.State.WAITING).values_list("size", flat=True)
        ) == [1, 1, 1, 1]
        work_off()
        assert runner().progress().succeeded == 4
        assert runner().progress().total == 4
    assert set(Run.objects.values_list("attempts", flat=True)) == {2}
    assert "stopped answering" in Failure.objects.first().message


def test_a_live_lease_is_left_alone(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        start(queued(Chunk.objects.get().pk))

        assert rescue_expired(at_most=10) == 0


def test_a_chunk_is_rescued_once(documents):
    runner = declare()
    with installed(runner):
        runner().run()
        lose_worker(Chunk.objects.get())
        seen = Chunk.objects.get()

        assert rescue(seen)
        assert not rescue(seen)
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


def test_a_run_that_kills_every_worker_fails_with_that_reason_and_its_neighbours_succeed(documents):
    runner = declare(MAX_ATTEMPTS=2, RETRY_BACKOFF=0)
    killer = documents[1].pk
    with installed(runner):
        runner().run()
        for _ in range(10):
            releasing.release_everywhere()
            for chunk in Chunk.objects.filter(state=Chunk.State.QUEUED):
                if chunk.runs.filter(object_id=killer, status=Run.Status.PENDING).exists():
                    lose_worker(chunk)
                else:
                    execute(chunk.pk)
            rescue_expired(at_most=10)

        assert (runner().progress().failed, runner().progress().succeeded) == (1, 3)
    run = Run.objects.get(object_id=killer)
    assert (run.status, run.attempts) == (Run.Status.FAILED, 2)
    assert run.failures.count() == 2
    assert "WorkerLost" in run.failures.first().exception_class


def test_who_does_not_know_the_runner_of_a_lost_worker_fails_none_of_its_runs_for_good(documents):
    runner = declare(MAX_ATTEMPTS=10)
    with installed(runner):
        runner().run(Document.objects.filter(title="title 0"))
        Run.objects.update(attempts=QuerySetRunner.MAX_ATTEMPTS)
        lose_worker(Chunk.objects.get())
    rescue_expired(at_most=10)

    run = Run.objects.get()
    assert (run.status, run.attempts) == (Run.Status.PENDING, QuerySetRunner.MAX_ATTEMPTS + 1)


def test_superseded_runs_of_a_lost_worker_are_cancelled(documents):
    runner = declare()
    with installed(runner):
        runner().run(Document.objects.filter(title="title 0"))
        lose_worker(Chunk.objects.get())
        Document.objects.filter(title="title 0").update(title="new")
        runner().run(Document.objects.filter(title="new"))
        rescue_expired(at_most=10)
        work_off()

        assert runner().progress().total == 1
    assert statuses() == [Run.Status.CANCELLED, Run.Status.SUCCEEDED]


def test_a_queued_chunk_nobody_starts_is_sent_again_ever_less_often(documents, sent):
    runner = declare()
    with installed(runner):
        runner().run()
        assert send_again() == 0
        for publications in (1, 2):
            lease = 60 * 2 ** (publications - 1)
            Chunk.objects.update(published_at=from_now(1 - lease))
            assert send_again() == 0
            Chunk.objects.update(published_at=from_now(-1 - lease))
            assert send_again() == 1

    assert Chunk.objects.get().publications == 3
    assert len(sent) == 2


def test_parked_chunks_go_on_when_their_runner_is_back(documents):
    runner = declare()
    with installed(runner):
        runner().run()
    offer(Chunk.objects.get().pk)
    upkeep(in_any_case=True)
    assert Chunk.objects.get().state == Chunk.State.PARKED
    with installed(runner):
        upkeep(in_any_case=True)
    execute(Chunk.objects.get().pk)
    assert Chunk.objects.get().state == Chunk.State.QUEUED, "another worker may have it"
    with installed(runner):
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_parked_chunks_go_on_with_whoever_has_their_runner_although_others_come_first(documents):
    runner = declare()
    with installed(runner):
        runner().run()
    offer(Chunk.objects.get().pk)
    assert upkeep() is not None  # of a worker that has the runner no longer, or not yet

    with installed(runner):
        assert upkeep() is None

    assert Chunk.objects.get().state == Chunk.State.WAITING


def test_spilled_triggers_are_planned_and_then_deleted(documents):
    runner = declare()
    SpilledTrigger.objects.create(
        model_label="library.Document", keys=[documents[0].pk, documents[1].pk]
    )
    SpilledTrigger.objects.create(model_label="library.Document", keys=[documents[1].pk])
    with installed(runner):
        assert plan_all_spilled() == 2
        work_off()

    assert SpilledTrigger.objects.count() == 0
    assert statuses() == [Run.Status.SUCCEEDED] * 2


def test_spilled_triggers_of_a_model_without_a_runner_here_wait_for_another_worker(
    documents, caplog, set_constants
):
    set_constants(spilled, FIRST=1, MOST_ROWS=1, MOST_PORTIONS=1)
    SpilledTrigger.objects.create(model_label="library.Gone", keys=[1])
    SpilledTrigger.objects.create(model_label="library.Document", keys=[documents[0].pk])
    assert plan_all_spilled() == 0
    with installed(declare()):
        assert plan_all_spilled() == 1
    (left,) = SpilledTrigger.objects.all()
    SpilledTrigger.objects.update(created_at=from_now(-25 * 3600))

    assert (left.model_label, plan_all_spilled()) == ("library.Gone", 1)
    assert SpilledTrigger.objects.count() == 0
    assert "Saved library.Gone have had no runner for a day: 1 rows are dropped" in caplog.text


def test_spilled_triggers_of_one_model_hold_up_those_of_no_other(documents, caplog, set_constants):
    set_constants(spilled, FIRST=1, MOST_ROWS=1, MOST_PORTIONS=1)

    def filter_queryset(self, queryset, log_level=20):
        raise OperationalError("no such column")

    stuck = declare(NAME="Stuck", filter_queryset=filter_queryset)
    other = declare(NAME="Other", TITLE="Other", DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    photo = Photo.objects.create(caption="a")
    for document in documents:
        SpilledTrigger.objects.create(model_label="library.Document", keys=[document.pk])
    SpilledTrigger.objects.create(model_label="library.Photo", keys=[str(photo.pk)])

    with installed(stuck, other):
        drained = plan_all_spilled()
        total = other().progress().total

    assert (drained, total) == (2, 1)
    left = SpilledTrigger.objects.all()
    assert {trigger.runner for trigger in left} == {"", "tests.Stuck"}
    assert sorted(key for trigger in left for key in trigger.keys) == [
        each.pk for each in documents
    ]
    assert "OperationalError: no such column" in left.get(runner="tests.Stuck").reason


def test_more_spilled_rows_than_one_transaction_plans(documents, set_constants):
    set_constants(named, KEYS_AT_ONCE=2)
    set_constants(clock, LARGEST_BLOCK=2)
    SpilledTrigger.objects.create(
        model_label="library.Document", keys=[document.pk for document in documents]
    )
    with installed(declare(BATCH_SIZE=1)):
        plan_all_spilled()
        work_off()

    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_keys_that_are_none_are_passed_over(documents):
    SpilledTrigger.objects.create(model_label="library.Document", keys=["x", documents[0].pk])
    with installed(declare()):
        plan_all_spilled()

    assert Run.objects.count() == 1


def test_a_round_is_made_once_an_interval(documents):
    assert upkeep() is not None
    assert upkeep() is None
    Pulse.objects.update(beat_at=from_now(-60))
    assert upkeep() is not None


def test_one_broken_step_does_not_keep_the_others_from_their_work(documents, caplog):
    runner = declare(RETRY_BACKOFF=100, BATCH_SIZE=2)
    with installed(runner):
        runner().run()
        first, second = Chunk.objects.order_by("pk")
        lose_worker(first)
        Chunk.objects.filter(pk=second.pk).update(state=Chunk.State.WAITING)
        with failing_at("rescue.taken", [ValueError("broken step")]):
            report = upkeep(in_any_case=True)

    assert report.released == 1
    assert "broken step" in caplog.text


def test_turns_are_taken_one_at_a_time():
    assert pulses.take_turn("test", every=10)
    assert not pulses.take_turn("test", every=10)
    Pulse.objects.filter(name="test").update(beat_at=from_now(-8.1))
    assert pulses.take_turn("test", every=10)


def test_while_one_round_is_made_no_other_process_makes_one():
    held = pulses.take_lease(rounds.LEASE)
    assert upkeep() is None

    Pulse.objects.filter(name="upkeep").delete()
    pulses.end_lease(rounds.LEASE, held)

    assert upkeep() is not None
    assert pulses.take_lease(rounds.LEASE) is not None


def test_a_lease_that_ends_with_a_whole_second_is_known_again():
    pulses.take_lease("test")
    whole = pulses.beat_of("test").replace(microsecond=0)
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            text = whole.strftime("%Y-%m-%d %H:%M:%S.000000")
            cursor.execute("UPDATE autorun_pulse SET beat_at = %s WHERE name = 'test'", [text])
    else:
        Pulse.objects.filter(name="test").update(beat_at=whole)

    assert pulses.take_lease("test", held=whole) is not None


def test_a_round_whose_process_was_frozen_past_its_lease_ends_when_another_one_is_made(settings):
    settings.AUTORUN = settings.AUTORUN | {"LEASE": 0.000_001}  # shorter than any step

    def others_begin() -> int:
        Pulse.objects.filter(name=rounds.LEASE).update(beat_at=from_now(60))
        return 0

    upkeep(notify=others_begin)

    assert not Pulse.objects.filter(name__in=("fold", "prune")).exists()
    assert Pulse.objects.filter(name=rounds.LEASE, beat_at__gt=from_now(30)).exists()


def test_the_message_of_an_earlier_versions_schedule_makes_a_round(caplog):
    with caplog.at_level("INFO", "autorun"):
        tasks.upkeep()

    assert pulses.beat_of("upkeep") is not None
    assert caplog.records == [], "nothing was done"


def test_a_batch_whose_planner_died_is_planned_on(documents, sent):
    runner = declare()
    with installed(runner):
        batch = on_demand.begin(runner(), Batch.Trigger.BACKFILL, Scope())
        assert hand_on_batches() == 0
        Batch.objects.update(expires_at=from_now(-1))
        assert hand_on_batches() == 1
        (message,) = sent
        assert message.task == tasks.backfill.name
        tasks.backfill(*message.args)
        tasks.backfill(*message.args)
        work_off()

    batch.refresh_from_db()
    assert (batch.state, batch.planned) == (Batch.State.FINISHED, 4)
    assert statuses() == [Run.Status.SUCCEEDED] * 4


def test_a_batch_over_a_given_queryset_cannot_be_planned_on(documents):
    runner = declare()
    with installed(runner):
        batch = on_demand.begin(runner(), Batch.Trigger.CODE, Scope(given=True))
        Batch.objects.update(expires_at=from_now(-1))
        on_demand.go_on(batches.take_over(batch.pk))

    batch.refresh_from_db()
    assert batch.state == Batch.State.FAILED
    assert "only it had the queryset" in batch.reason


def test_a_batch_whose_runner_a_worker_does_not_know_is_left_to_another_one(documents):
    runner = declare()
    with installed(runner):
        batch = on_demand.begin(runner(), Batch.Trigger.BACKFILL, Scope())
    Batch.objects.update(expires_at=from_now(-1))

    on_demand.go_on(batches.take_over(batch.pk))
    assert hand_on_batches() == 0
    Batch.objects.update(expires_at=from_now(-1))
    with installed(runner):
        on_demand.go_on(batches.take_over(batch.pk))

    batch.refresh_from_db()
    assert (batch.state, batch.planned) == (Batch.State.RUNNING, 4)


def test_a_batch_whose_runner_is_gone_is_not_tried_for_ever(documents):
    runner = declare()
    with installed(runner):
        batch = interventions.request_backfill(runner(), Scope())
    waits = []
    for _ in range(batches.MOST_TRIES):
        Batch.objects.update(expires_at=from_now(-1))
        on_demand.go_on(batches.take_over(batch.pk))
        batch.refresh_from_db()
        if batch.expires_at is not None:
            waits.append(round((batch.expires_at - timezone.now()).total_seconds(), -1))

    assert waits == [60, 120, 240, 480]
    assert batch.state == Batch.State.FAILED
    assert "EchoRunner" in batch.reason


def test_planned_batches_with_nothing_left_are_finished(documents):
    runner = declare()
    with installed(runner):
        batch = runner().run()
        work_off()
        Batch.objects.update(state=Batch.State.RUNNING)

        assert finish_batches() == 1
    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED


def test_pruning_deletes_old_history_and_nothing_current(documents, settings):
    settings.AUTORUN = {"RETENTION": dt.timedelta(days=1)}
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()
        runner().backfill(force=True)
        work_off()
        assert prune() == 0
        Run.objects.update(finished_at=F("finished_at") - dt.timedelta(days=2))

        assert prune() == 4
        assert runner().progress().succeeded == 4
        assert runner().run().planned == 0
    assert Run.objects.count() == 4


@pytest.fixture
def old_history(documents, settings, set_constants) -> Iterator[QuerySetRunner]:
    """The runner of four rows, each alone in a chunk without a batch, that have run twice."""
    settings.AUTORUN = {"RETENTION": dt.timedelta(days=1)}
    set_constants(folding, FEW=1)
    runner = declare(BATCH_SIZE=1)
    with installed(runner):
        for title in ("old", "new"):
            Document.objects.update(title=title)
            plan_keys(runner(), [document.pk for document in documents])
            work_off()
        Run.objects.update(finished_at=F("finished_at") - dt.timedelta(days=2))
        yield runner()


def test_a_folded_chunk_goes_with_the_last_of_its_runs(old_history):
    before = old_history.progress()
    folding.fold(old_history.get_node().pk, quiet=0)

    assert prune() == 4
    assert Chunk.objects.count() == 4
    assert old_history.progress() == before


def test_a_chunk_that_its_node_has_not_counted_in_stays(old_history):
    before = old_history.progress()

    assert prune() == 4
    assert Chunk.objects.count() == 8
    assert old_history.progress() == before


def test_pruning_goes_in_the_order_of_ids_and_no_further_than_it_may(old_history, set_constants):
    set_constants(folding, DELETED_AT_ONCE=1)

    assert prune(at_most=3) == 3
    with CaptureQueriesContext(connection) as captured:
        assert prune() == 1
    statements = [query["sql"] for query in captured]
    looked = [sql for sql in statements if "chunk_id" in sql.partition(" FROM ")[0]]
    assert [re.findall(r"[`\"]id[`\"] > (\d+)", sql)[-1] == "0" for sql in looked] == [True, False]
    assert Run.objects.filter(is_current=True).count() == Run.objects.count() == 4


def test_superseded_runs_made_after_the_cutoff_are_not_read_by_pruning(old_history, set_constants):
    set_constants(folding, FEW_RUNS=2)
    second = Run.objects.order_by("pk")[1].pk

    assert prune() == 2
    assert Run.objects.filter(is_current=None).earliest("pk").pk == second + 1


def test_pruning_takes_few_statements_if_there_is_nothing_to_prune(old_history):
    assert prune() == 4

    with CaptureQueriesContext(connection) as captured:
        assert prune() == 0
    assert len(captured) == 3


def test_a_worker_that_is_one_of_many_looks_ever_less_often_whether_a_round_is_due():
    pauses = [5.0]
    for _ in range(20):
        pauses.append(next_pause(pauses[-1], is_made=False))
    assert pauses[1:3] == [7.5, 11.25]
    assert pauses[-1] == 45.0
    for _ in range(20):
        pauses.append(next_pause(pauses[-1], is_made=True))
    assert pauses[-1] == 5.0


def test_a_worker_out_of_turn_takes_two_statements_and_writes_nothing():
    assert take_turn("upkeep", every=5.0)

    with CaptureQueriesContext(connection) as captured:
        assert upkeep() is None
    assert len(captured) == 2
    assert all(query["sql"].startswith("SELECT") for query in captured)


def test_a_chunk_whose_runs_all_went_on_in_others_is_not_kept(documents, set_constants):
    set_constants(folding, FEW=1)
    runner = declare()
    with installed(runner):
        plan_keys(runner(), [document.pk for document in documents])
        lose_worker(Chunk.objects.get())
        rescue_expired(at_most=10)
        work_off()
        folding.fold(runner().get_node().pk, quiet=0)

        assert runner().progress().succeeded == runner().progress().total == 4
    assert not Chunk.objects.filter(moved=F("size")).exists()


@pytest.mark.parametrize(
    ("most", "pruned"), [(2, [2, 2, 0]), (3, [3, 1, 0]), (4, [4, 0, 0]), (5, [4, 0, 0])]
)
def test_pruning_goes_on_in_the_next_round_where_one_is_not_enough(
    old_history, set_constants, most, pruned
):
    set_constants(folding, MOST_RUNS=most, DELETED_AT_ONCE=1)
    made = [upkeep(in_any_case=True).pruned for _ in range(3)]

    assert made == pruned


def test_without_a_retention_nothing_is_pruned(documents, settings):
    settings.AUTORUN = {"RETENTION": None}
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()
        runner().backfill(force=True)
        Run.objects.update(finished_at="2001-01-01T00:00Z")

        assert prune() == 0
