"""Which signals are sent for what ended, with what, and what their receivers cannot spoil."""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import F
from django.dispatch import Signal
from django.test.utils import CaptureQueriesContext

from autorun import signals
from autorun.dispatch.publishing import redirected
from autorun.exceptions import RunTimeout
from autorun.execution import keeper, work
from autorun.execution.execute import execute
from autorun.models import Batch, Chunk, Run
from autorun.planning import batches
from autorun.signals import batch_finished, run_failed, run_succeeded
from autorun.testing import run_inline
from autorun.upkeep.rescue import rescue
from tests.engine import declare, echo, installed, plan_at_once, work_off
from tests.library.models import Document, Photo

Listen = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def listen() -> Iterator[Listen]:
    """`listen(signal, sender=None)` gives a list of what is sent from then on."""
    connected = []

    def start(signal: Signal, sender: Any = None) -> list[dict[str, Any]]:
        heard: list[dict[str, Any]] = []

        def hear(**sent: Any) -> None:
            heard.append({name: each for name, each in sent.items() if name != "signal"})

        signal.connect(hear, sender=sender)
        connected.append((signal, hear, sender))
        return heard

    yield start
    for signal, hear, sender in connected:
        signal.disconnect(hear, sender=sender)


def broken(value):
    raise ValueError(f"No good: {value}")


@pytest.mark.django_db
def test_a_success_is_told_with_its_outputs(listen):
    heard = listen(run_succeeded)
    document = Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        runner().run()
        work_off()

    assert heard == [
        {
            "sender": runner,
            "run_id": Run.objects.get().pk,
            "key": document.pk,
            "runner": "tests.EchoRunner",
            "attempts": 1,
            "outputs": {"value": "a"},
        }
    ]


@pytest.mark.django_db
def test_keys_are_told_as_autorun_keeps_them(listen):
    heard = listen(run_succeeded)
    Photo.objects.create(caption="a")
    runner = declare(DATA_MODEL=Photo, INPUT_FIELDS=("caption",))
    with installed(runner):
        runner().run()
        work_off()

    assert [each["key"] for each in heard] == [Run.objects.get().object_key]


@pytest.mark.django_db
def test_a_failure_is_told_once_the_attempts_are_used_up(listen):
    failed, succeeded = listen(run_failed), listen(run_succeeded)
    document = Document.objects.create(title="a")
    runner = declare(broken, MAX_ATTEMPTS=2)
    with installed(runner):
        runner().run()
        work_off()
        assert failed == []

        work_off(retry_now=True)

    failure = failed[0].pop("failure")
    assert failed == [
        {
            "sender": runner,
            "run_id": Run.objects.get().pk,
            "key": document.pk,
            "runner": "tests.EchoRunner",
            "attempts": 2,
        }
    ]
    assert failure.exception_class == "ValueError"
    assert failure.message == "No good: a"
    assert "in broken" in failure.traceback
    assert succeeded == []


@pytest.mark.django_db
def test_a_row_whose_input_cannot_be_prepared_is_told_of(listen):
    def prepare(self, instance):
        raise LookupError("No file.")

    heard = listen(run_failed)
    document = Document.objects.create(title="a")
    runner = declare(INPUT_FIELDS=None, get_instance_representation=prepare)
    with installed(runner), run_inline(), transaction.atomic():
        runner().run()
        assert heard == []

    assert [(each["key"], each["attempts"]) for each in heard] == [(document.pk, 0)]
    assert heard[0]["failure"].message == "No file."


@pytest.mark.django_db(transaction=True)
def test_a_lost_worker_is_told_of_when_it_was_the_last_attempt(listen):
    heard = listen(run_failed)
    document = Document.objects.create(title="a")
    runner = declare(MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        Chunk.objects.update(
            state=Chunk.State.RUNNING, token=F("token") + 1, expires_at="2001-01-01T00:00Z"
        )

        with redirected(plan_at_once):
            assert rescue(Chunk.objects.get())

    assert [(each["key"], each["attempts"]) for each in heard] == [(document.pk, 1)]
    assert heard[0]["failure"].exception_class == "autorun.exceptions.WorkerLost"


@pytest.mark.django_db(transaction=True)
def test_signals_are_sent_when_the_results_are_committed():
    seen: list[tuple[bool, int]] = []

    def look(run_id, **kwargs):
        run = Run.objects.get(pk=run_id)
        seen.append((connection.in_atomic_block, run.status))

    Document.objects.create(title="a")
    runner = declare()
    run_succeeded.connect(look)
    try:
        with installed(runner):
            runner().run()
            work_off()
    finally:
        run_succeeded.disconnect(look)

    assert seen == [(False, Run.Status.SUCCEEDED)]


@pytest.mark.django_db(transaction=True)
def test_results_that_are_written_early_are_told_early(listen, set_constants):
    set_constants(work, WRITE_EVERY=0.0)
    heard = listen(run_succeeded)
    told = []

    def body(value):
        told.append(len(heard))
        return value

    Document.objects.bulk_create(Document(title=str(number)) for number in range(3))
    runner = declare(body)
    with installed(runner):
        runner().run()
        work_off()

    assert told == [0, 1, 2]
    assert len(heard) == 3


@pytest.mark.django_db(transaction=True)
def test_what_a_receiver_raises_hurts_nothing(listen):
    def spoil(**kwargs):
        raise RuntimeError("Not my day.")

    Document.objects.bulk_create(Document(title=str(number)) for number in range(2))
    runner = declare(NAME="SpoiledRunner")
    for signal in (run_succeeded, batch_finished):
        signal.connect(spoil)
    heard = listen(run_succeeded)
    try:
        with installed(runner):
            batch = runner().run()
            work_off()
            assert runner().progress().succeeded == 2
    finally:
        for signal in (run_succeeded, batch_finished):
            signal.disconnect(spoil)

    batch.refresh_from_db()
    assert batch.state == Batch.State.FINISHED
    assert len(heard) == 2


@pytest.mark.django_db
def test_a_sender_is_told_of_its_own_runs_only(listen):
    mine, other = declare(NAME="MineRunner", TITLE="Mine"), declare(NAME="OtherRunner")
    heard = listen(run_succeeded, mine)
    batches_heard = listen(batch_finished, mine)
    Document.objects.create(title="a")
    with installed(mine, other):
        mine().run()
        other().run()
        work_off()

    assert [each["runner"] for each in heard] == ["tests.MineRunner"]
    assert [each["batch"].runner for each in batches_heard] == ["tests.MineRunner"]


@pytest.mark.django_db
def test_adopted_and_cancelled_runs_send_none(listen):
    succeeded, failed = listen(run_succeeded), listen(run_failed)
    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        runner().adopt()
        batch = runner().backfill(force=True)
        batches.cancel(batch)
        work_off()

    assert (succeeded, failed) == ([], [])


@pytest.mark.django_db
def test_a_finished_batch_is_told_once(listen):
    heard = listen(batch_finished)
    Document.objects.bulk_create(Document(title=str(number)) for number in range(4))
    runner = declare(BATCH_SIZE=2)
    with installed(runner):
        batch = runner().run()
        assert heard == []
        work_off()
        batches.finish_if_done(batch.pk)

    assert heard == [{"sender": runner, "batch": batch}]
    assert heard[0]["batch"].state == Batch.State.FINISHED


@pytest.mark.django_db(transaction=True)
def test_a_batch_that_had_nothing_to_do_has_finished(listen):
    heard = listen(batch_finished)
    runner = declare()
    with installed(runner):
        batch = runner().run()

    assert [each["batch"] for each in heard] == [batch]


@pytest.mark.django_db(transaction=True)
def test_a_batch_of_a_runner_that_is_gone_has_no_sender(listen):
    heard = listen(batch_finished)
    runner = declare()
    Document.objects.create(title="a")
    with installed(runner):
        batch = runner().run()
    Chunk.objects.update(state=Chunk.State.FINISHED)

    assert batches.finish_if_done(batch.pk)

    assert [each["sender"] for each in heard] == [None]


@pytest.mark.django_db
def test_nobody_listening_costs_no_statement(monkeypatch, listen):
    def statements_of_a_chunk() -> list[str]:
        """Their beginnings, up to the first value."""
        Document.objects.create(title="a")
        runner().run()
        chunk = Chunk.objects.get(state=Chunk.State.QUEUED)
        with CaptureQueriesContext(connection) as queries:
            execute(chunk.pk)
        bare = [re.sub(r"^SET STATEMENT .*? FOR ", "", each["sql"]) for each in queries]
        return [re.split(r"[\d']", each)[0] for each in bare]

    runner = declare(echo)
    with installed(runner):
        statements_of_a_chunk()  # the first one finds content types and the like
        silent = statements_of_a_chunk()
        monkeypatch.setattr(signals, "announce_runs", None)  # not even called
        quiet = statements_of_a_chunk()

    assert silent == quiet


@pytest.mark.django_db
def test_telling_of_runs_costs_no_statement_either(listen):
    runner = declare()
    with installed(runner):
        counts = []
        for _ in range(3):
            Document.objects.create(title="a")
            runner().run()
            chunk = Chunk.objects.get(state=Chunk.State.QUEUED)
            with CaptureQueriesContext(connection) as queries:
                execute(chunk.pk)
            # How long a run takes is written down now and then.
            counts.append(
                sum(not re.search("SET .run_seconds. =", each["sql"]) for each in queries)
            )
            listen(run_succeeded)

    assert counts[1] == counts[2]


@pytest.mark.django_db(transaction=True)
def test_a_run_that_does_not_react_is_told_of_by_its_keeper(listen, set_constants):
    set_constants(keeper, INTERVAL=0.02, GRACE=0.0)
    heard = listen(run_failed)
    succeeded = listen(run_succeeded)

    def stubborn(value):
        deadline = time.monotonic() + 10
        while not heard and time.monotonic() < deadline:
            with suppress(RunTimeout):
                time.sleep(0.02)
        return value

    document = Document.objects.create(title="a")
    runner = declare(stubborn, MAX_ATTEMPTS=1, TIMEOUT=0.05)
    with installed(runner):
        runner().run()
        work_off()

    assert [each["key"] for each in heard] == [document.pk]
    assert heard[0]["failure"].exception_class == "autorun.exceptions.RunTimeout"
    assert succeeded == []
