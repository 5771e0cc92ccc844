"""User code that raises, is slow, or returns nonsense, and what that costs others."""

import math
import threading
import time
from collections import Counter

import pytest
from django.db import connection

from autorun.declare import hooks, interruption, nodes, page_time
from autorun.dispatch.publishing import Message, publish
from autorun.models import Batch, Chunk, Failure, Pulse, Run, SpilledTrigger
from autorun.observe.notifying import hand_over_reports
from autorun.planning.named import plan_for_all, plan_keys
from autorun.planning.on_demand import sweep_now
from autorun.planning.windows import MOST_DEATHS
from autorun.signals import batch_finished, run_failed
from autorun.state.clock import from_now
from autorun.upkeep import rounds
from tests.crashes import Crash
from tests.engine import declare, installed, plan_at_once, work_off
from tests.faults.driver import Lab
from tests.library.models import Document


def query_nowhere(runner):
    with connection.cursor() as cursor:
        cursor.execute("SELECT nothing FROM nowhere")


def raise_anything(runner):
    raise LookupError("as it was told")


def take_time(runner):
    time.sleep(0.02)
    return {}


@pytest.mark.faults(30)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("hook", [query_nowhere, raise_anything, take_time])
def test_a_configuration_that_cannot_be_created_keeps_no_other_runner_from_its_work(hook):
    """Release with limits, dependents and rescue all ask which runners share a node."""
    calls = []

    def create(runner):
        calls.append(connection.in_atomic_block)
        return hook(runner)

    first = declare(NAME="FirstRunner", TITLE="First", MAX_PARALLEL=1, BATCH_SIZE=1)
    broken = declare(NAME="BrokenRunner", TITLE="Broken", create_configuration=create)
    other = declare(NAME="OtherRunner", TITLE="Other", DEPENDS_ON=(first,))
    of_broken = declare(NAME="PastRunner", TITLE="Past", DEPENDS_ON=(broken,))
    with installed(first, broken, other, of_broken):
        documents = [Document.objects.create(title=f"title {n}") for n in range(3)]
        first().run()
        running = Chunk.objects.get(state=Chunk.State.QUEUED)
        Chunk.objects.filter(pk=running.pk).update(
            state=Chunk.State.RUNNING, token=1, expires_at=from_now(-1)
        )
        report = rounds.upkeep(in_any_case=True)
        Chunk.objects.update(not_before=None)
        rounds.upkeep(in_any_case=True)
        while work_off():
            rounds.upkeep(in_any_case=True)
        plan_for_all([broken()], [document.pk for document in documents])

        assert report.rescued == 1
        assert first().progress().succeeded == len(documents)
        assert other().progress().succeeded == len(documents)
    assert calls
    assert not any(calls)
    assert len(calls) < 5


@pytest.mark.faults(30)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("has_signals", [True, False])
@pytest.mark.parametrize("hook", hooks.LIMITED)
def test_a_hook_that_hangs_holds_up_no_other_runner(hook, has_signals, set_constants, monkeypatch):
    """Upkeep calls it at most once, and sends the other runner's chunk again."""
    set_constants(page_time, SECONDS=0.3)
    if not has_signals:
        monkeypatch.setattr(interruption, "can_use_signals", lambda: False)
    released = threading.Event()
    is_hanging = False
    asked = []

    def hang(runner):
        if is_hanging:
            asked.append(runner)
            released.wait(60)
        return getattr(super(type(runner), runner), hook)()

    broken = declare(NAME="BrokenRunner", TITLE="Broken", BATCH_SIZE=1, **{hook: hang})
    other = declare(NAME="OtherRunner", TITLE="Other")
    with installed(broken, other):
        Document.objects.bulk_create([Document(title="title") for _ in range(3)])
        broken().run()
        other().run()
        nodes._forget_runners()
        Chunk.objects.queued().update(published_at=from_now(-1e5))
        is_hanging = True
        began_at = time.monotonic()
        try:
            rounds.upkeep(in_any_case=True)
            took = time.monotonic() - began_at
        finally:
            released.set()
        is_hanging = False
        sent_again = Chunk.objects.get(runner=other().label).publications

    assert len(asked) == (hook != "get_schedule")  # which only beat and pages ask for
    assert took < 10
    assert sent_again == 2


@pytest.mark.faults(29)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": None}])
@pytest.mark.parametrize("does", ["segfault", "kill"])
def test_a_representation_that_kills_its_process_fails_its_row_and_upkeep_goes_on(
    lab: Lab, does: str
):
    lab.start_worker()
    lab.save(2)
    (lethal,) = lab.save(1, does=f"represent:{does}", value="lethal")
    lab.save(2, value="w")

    lab.until(lambda: lab.runner.progress().failed == 1 and lab.runner.progress().succeeded == 4)
    assert not SpilledTrigger.objects.exists()
    failure = Failure.objects.get()
    assert failure.run.object_id == lethal.pk
    assert failure.exception_class == "autorun.exceptions.WorkerLost"


@pytest.mark.faults(29)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": None}])
def test_a_representation_that_kills_each_planner_of_a_batch_fails_its_row_alone(lab: Lab):
    lab.write(20)
    (lethal,) = lab.write(1, does="represent:kill")
    lab.write(20)
    lab.start_worker()
    publish([Message("autorun.sweep", (lab.runner.label,))])

    def is_done() -> bool:
        progress = lab.runner.progress()
        return (progress.succeeded, progress.failed) == (40, 1)

    lab.until(is_done, seconds=120)
    assert Failure.objects.get().run.object_id == lethal.pk
    assert lab.runner.run().planned == 0


@pytest.mark.faults(29)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("position", [0, 3, 9])
@pytest.mark.parametrize("has_run", [False, True])
def test_a_row_that_planners_die_of_is_tried_alone_and_only_until_it_fails(position, has_run):
    documents = [Document.objects.create(title=f"title {n}") for n in range(10)]
    bad = documents[position]
    is_lethal, deaths = False, 0

    def represent(runner, instance):
        if is_lethal and instance.pk == bad.pk:
            raise Crash
        return instance.title

    runner = declare(get_instance_representation=represent, INPUT_FIELDS=None)
    with installed(runner):
        if has_run:
            plan_keys(runner(), [bad.pk])
            work_off()
        is_lethal = True
        while True:
            try:
                sweep_now(runner())
            except Crash:
                deaths += 1
                Batch.objects.update(expires_at=from_now(-1))
            else:
                break
        work_off()
        assert (runner().progress().succeeded, runner().progress().failed) == (9, 1)
        assert not runner().pending().exists()
        assert sweep_now(runner()).planned == 0
        assert Batch.objects.first().state == Batch.State.FINISHED
        assert Failure.objects.get().exception_class == "autorun.exceptions.WorkerLost"

        is_lethal = False
        plan_keys(runner(), [bad.pk])
        work_off()
        assert runner().progress().succeeded == 10
    assert deaths <= MOST_DEATHS + 2


@pytest.mark.faults(38)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"INPUT_FIELDS": None}])
def test_rows_that_take_long_to_prepare_are_prepared_once_whatever_rounds_overlap(lab: Lab):
    lab.write(60, does="represent:sleep:0.1")
    for row in lab.runner.get_base_queryset():
        SpilledTrigger.objects.create(model_label="faultlab.Specimen", keys=[row.pk])
    for _ in range(2):
        lab.start_worker(concurrency=2)

    lab.until_done(60)

    prepared = Counter(each["row"] for each in lab.ledger.lines() if each["event"] == "represent")
    # Once to plan its run, and once to execute it.
    assert set(prepared.values()) == {2}
    lab.check()


@pytest.mark.faults(29)
@pytest.mark.django_db(transaction=True)
def test_a_round_of_upkeep_calls_no_user_code(sent: list[Message], settings):
    """Saved rows wait, a worker is lost, a batch has ended, and failures are not reported."""
    called: list[str] = []

    def note(name, result=None):
        def hook(*args, **_):
            called.append(name)
            return args[1] if result is None else result

        return hook

    settings.AUTORUN = {"ON_FAILURE": lambda report: called.append("ON_FAILURE")}
    runner = declare(
        INPUT_FIELDS=None,
        MAX_ATTEMPTS=1,
        get_retry_backoff=note("get_retry_backoff", 1),
        filter_queryset=note("filter_queryset"),
        get_instance_representation=note("get_instance_representation"),
    )
    dependent = declare(
        NAME="DependentRunner",
        TITLE="Dependent",
        DEPENDS_ON=(runner,),
        filter_queryset=note("filter_queryset"),
    )
    retried = declare(NAME="Retried", TITLE="Retried", get_retry_backoff=note("backoff", 1))
    heard = (run_failed, batch_finished)
    hear = note("receiver", True)
    with installed(runner, dependent, retried):
        document = Document.objects.create(title="title")
        runner().run()
        retried().run()
        SpilledTrigger.objects.create(model_label="library.Document", keys=[document.pk])
        Chunk.objects.update(state=Chunk.State.RUNNING, token=1, expires_at=from_now(-1))
        called.clear()
        sent.clear()
        for signal in heard:
            signal.connect(hear)
        try:
            rounds.upkeep(in_any_case=True, notify=hand_over_reports)
            Run.objects.pending().update(status=Run.Status.SUCCEEDED)
            Chunk.objects.update(state=Chunk.State.FINISHED)
            Pulse.objects.all().delete()
            Failure.objects.update(failed_at=from_now(-61))
            rounds.upkeep(in_any_case=True, notify=hand_over_reports)
            in_upkeep = list(called)
            plan_at_once(sent)
        finally:
            for signal in heard:
                signal.disconnect(hear)

    assert in_upkeep == []
    handed_over = {"autorun.plan_spilled", "autorun.announce", "autorun.notify"}
    assert {message.task for message in sent} - {"autorun.execute"} == handed_over
    assert {"filter_queryset", "receiver", "ON_FAILURE"} <= set(called)


@pytest.mark.faults(40)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("given", [math.inf, math.nan, -1, "soon", None, 1e300, LookupError])
def test_a_backoff_that_is_none_costs_time_and_no_attempt(given, caplog):
    def fail(value):
        raise ValueError

    runner = declare(fail, get_retry_backoff=returning(given), MAX_ATTEMPTS=2)
    with installed(runner):
        Document.objects.create(title="title")
        runner().run()
        work_off()
        Chunk.objects.update(not_before=from_now(-1))
        rounds.upkeep(in_any_case=True)
        work_off()

        assert runner().progress().failed == 1
    assert Failure.objects.count() == 2
    assert "get_retry_backoff" in caplog.text


@pytest.mark.faults(40)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("given", [math.inf, math.nan, 0, -1, "soon", 1e300, LookupError])
def test_a_timeout_that_is_none_is_replaced_and_uses_no_attempt(given, caplog):
    runner = declare(get_timeout=returning(given), get_schedule=returning(given))
    with installed(runner):
        Document.objects.create(title="title")
        runner().run()
        work_off()

        assert runner().progress().succeeded == 1
    assert Run.objects.get().attempts == 1
    assert ("get_timeout" in caplog.text) == (given not in (math.inf, 1e300))


def returning(given):
    def hook(runner, *_):
        if isinstance(given, type):
            raise given
        return given

    return hook


@pytest.mark.faults(40)
@pytest.mark.django_db
def test_an_argument_that_can_never_fit_fails_its_row_at_once():
    def add(value: int):
        return value + 1

    runner = declare(add)
    with installed(runner):
        document = Document.objects.create(title="no number")
        plan_keys(runner(), [document.pk])
        work_off()

        assert runner().progress().failed == 1
    assert Failure.objects.get().exception_class == "autorun.exceptions.ConfigurationError"


@pytest.mark.faults(33)
@pytest.mark.slow
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 5, "MAX_ATTEMPTS": 1}])
def test_a_process_in_which_no_failure_can_be_recorded_costs_no_row_an_attempt(lab: Lab):
    lab.write(2)
    (bad,) = lab.write(1, does="unrecorded,raise", value="bad")
    lab.write(2, value="w")
    worker = lab.start_worker()
    lab.runner.run()

    lab.until(lambda: Chunk.objects.parked().exists() and lab.runner.progress().succeeded == 4)
    chunk = Chunk.objects.parked().get()
    assert chunk.reason == "TypeError: a receiver for every model"
    assert "cannot be recorded; tried again later" in worker.log.read_text()
    assert Run.objects.get(object_id=bad.pk).attempts == 0
    lab.open_gate()
    lab.save(1, value="another")
    Chunk.objects.update(not_before=from_now(-1))
    lab.until(lambda: lab.runner.progress().failed == 1 and lab.is_done(5))

    lab.check()
    assert Failure.objects.get().exception_class == "ValueError"
    assert [*lab.ledger.times().values()].count(1) == 5


@pytest.mark.faults(11)
@pytest.mark.slow
@pytest.mark.parametrize("what", ["made", "started"])
def test_a_process_that_can_start_no_thread_gives_its_next_chunk_back_and_ends(lab: Lab, what: str):
    """As after bodies that leaked threads; its lease could not be kept."""
    lab.start_worker()
    lab.save(1, does=f"threads:{what}")
    lab.until_done(1)
    lab.save(3, value="w")

    lab.until_done(4)
    lab.check()
    assert not Failure.objects.exists()
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}
    assert len({each.pid for each in lab.ledger.executions()}) == 2
    assert set(lab.ledger.times().values()) == {1}
