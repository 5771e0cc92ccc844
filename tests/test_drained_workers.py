"""Workers that finish the chunks they have, and take no others until they are restarted."""

import datetime as dt
from collections.abc import Iterator
from typing import Any

import pytest
from celery.signals import worker_shutdown
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.core.management.base import CommandError
from django.db.models import F
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from autorun.execution.execute import execute
from autorun.models import Chunk, Pulse, Run
from autorun.observe.at_work import workers_at_work
from autorun.runner import QuerySetRunner
from autorun.state import draining
from autorun.state.clock import from_now
from autorun.tasks import plan
from autorun.upkeep.bootstep import JITTER, next_pause
from autorun.upkeep.rounds import upkeep
from tests.engine import declare, installed, work_off
from tests.library.models import Document
from tests.test_command_line import typed, typed_json

pytestmark = pytest.mark.django_db(transaction=True)

WORKER = "celery@lab-1"


@pytest.fixture(autouse=True)
def _sent(sent: list[Any]) -> list[Any]:
    return sent


@pytest.fixture
def this_worker() -> Iterator[None]:
    """This process is the worker's, and has looked at its note once."""
    draining.prepare(WORKER)
    draining.look()
    yield
    draining.prepare("")
    draining.consume_from([])
    draining.own = ""


@pytest.fixture
def echo() -> Iterator[QuerySetRunner]:
    Document.objects.create(title="a")
    runner = declare()
    with installed(runner):
        yield runner()


def show_life(worker: str = WORKER) -> None:
    """Leave the note that a worker's upkeep leaves."""
    name = draining.ALIVE + draining.pulse_of(worker).removeprefix(draining.PREFIX)
    Pulse.objects.create(name=name, beat_at=timezone.now())


def states() -> list[str]:
    found = Chunk.objects.order_by("pk").values_list("state", flat=True)
    return [Chunk.State(state).name for state in found]


@pytest.mark.usefixtures("this_worker")
def test_a_drained_worker_gives_the_chunks_back_that_it_has_not_started(echo) -> None:
    echo.run()
    chunk = Chunk.objects.get()
    draining.drain(WORKER)

    execute(chunk.pk)

    assert (states(), draining.has_begun()) == (["WAITING"], True)
    draining.undrain(WORKER)
    draining.look()
    upkeep(in_any_case=True)
    work_off()
    assert (states(), draining.has_begun()) == (["FINISHED"], False)


@pytest.mark.usefixtures("this_worker")
def test_a_worker_drained_at_an_urgent_chunk_finishes_it_and_starts_no_other() -> None:
    first, second = (Document.objects.create(title=title) for title in "ab")

    def be_drained(value: str) -> dict[str, str]:
        draining.drain(WORKER)
        draining.look()
        return {"value": value}

    drained = declare(be_drained, BATCH_SIZE=1)
    with installed(drained):
        drained().backfill(Document.objects.filter(pk=first.pk))
        backfilled = Chunk.objects.get()
        drained().run(Document.objects.filter(pk=second.pk))

        execute(backfilled.pk)

    assert states() == ["WAITING", "FINISHED"]
    assert Run.objects.get(object_id=second.pk).status == Run.Status.SUCCEEDED


@pytest.mark.usefixtures("this_worker")
def test_a_drained_worker_plans_saved_rows_and_starts_none_of_them(echo) -> None:
    draining.drain(WORKER)

    plan(Document._meta.label, list(Document.objects.values_list("pk", flat=True)))

    assert (states(), Run.objects.get().status) == (["QUEUED"], Run.Status.PENDING)


@pytest.mark.usefixtures("this_worker")
def test_a_restart_takes_a_worker_out_of_drain(echo) -> None:
    draining.drain(WORKER)
    draining.look()
    before = draining.has_begun()

    draining.prepare(WORKER)
    echo.run()
    work_off()  # before its upkeep has looked
    draining.look()

    assert (before, states()) == (True, ["FINISHED"])
    assert not Pulse.objects.filter(name__startswith=draining.PREFIX).exists()


@pytest.mark.usefixtures("this_worker")
def test_a_drained_worker_is_listed_for_as_long_as_it_lives(echo) -> None:
    draining.drain("celery@lab-2")
    before = typed("workers")  # it may have ended, or never have been
    draining.drain(WORKER)
    confirmed = typed_json("workers")
    Pulse.objects.update(beat_at=F("beat_at") - dt.timedelta(hours=1))

    assert "celery@lab-2" not in before
    assert [(each["name"], each["state"]) for each in confirmed] == [(WORKER, "drained")]
    assert workers_at_work() == []


def test_notes_about_workers_that_have_ended_are_deleted() -> None:
    draining.drain(WORKER)
    show_life()
    Pulse.objects.update(beat_at=from_now(-2 * draining.KEPT))

    upkeep(in_any_case=True)

    assert not Pulse.objects.filter(name__endswith=WORKER).exists()


@pytest.mark.usefixtures("this_worker")
def test_an_idle_worker_is_listed_and_can_be_drained(admin_client: Client) -> None:
    (worker,) = workers_at_work()
    page = admin_client.get(reverse("admin:autorun_health_changelist")).text
    drain = reverse("admin:autorun_health_drain")
    admin_client.post(drain, {"worker": WORKER, "confirmed": "1"})
    (drained,) = workers_at_work()

    assert (worker.name, worker.state, worker.chunks) == (WORKER, "", 0)
    assert worker.last_seen is not None
    assert "Drain…<span" in page
    assert drained.state == "drained"


@pytest.mark.usefixtures("this_worker")
def test_an_idle_worker_is_listed_with_its_queues_until_it_ends() -> None:
    long = "projects." + 60 * "q"
    draining.consume_from(["gpu", "celery", long])
    draining.look()
    (working,) = workers_at_work()
    # Started anew under its name, with fewer queues.
    Pulse.objects.update(beat_at=F("beat_at") - dt.timedelta(minutes=3))
    draining.consume_from(["celery"])
    draining.look()
    (fewer,) = workers_at_work()
    draining.end()

    assert working.queues.startswith("celery, gpu, projects.qqqq")
    assert fewer.queues == "celery"
    assert workers_at_work() == []


@pytest.mark.usefixtures("this_worker")
@pytest.mark.parametrize("is_busy", [False, True])
def test_a_silent_worker_is_not_offered_to_be_drained(echo, admin_client, is_busy) -> None:
    """It may have been killed with all of its processes, be frozen, or lack the database."""
    if is_busy:
        echo.run()
        begun = {"state": Chunk.State.RUNNING, "started_at": from_now(-300)}
        Chunk.objects.update(worker=f"{WORKER}:abcdef:1", expires_at=from_now(60 - 61), **begun)
    Pulse.objects.update(beat_at=from_now(-61 - 200 * is_busy))

    (silent,) = workers_at_work()
    page = admin_client.get(reverse("admin:autorun_health_changelist")).text
    asked = admin_client.post(
        reverse("admin:autorun_health_drain"), {"worker": WORKER}, follow=True
    )
    told = typed("workers")
    if is_busy:
        Chunk.objects.update(expires_at=from_now(60))  # its lease is extended
    else:
        draining.look()
    (back,) = workers_at_work()

    assert (silent.state, silent.chunks, back.state) == ("silent", int(is_busy), "")
    assert "not heard from for " in page
    assert "silent" in told
    assert "Drain…" not in page
    assert "No running worker with this name can be drained." in asked.text


@pytest.mark.parametrize("interval", [1.0, 5.0, 60.0])
def test_a_worker_gives_signs_of_life_more_often_than_it_is_called_silent(
    settings, interval
) -> None:
    settings.AUTORUN = {**settings.AUTORUN, "UPKEEP_INTERVAL": interval}
    longest = max(next_pause(1_000.0, is_made=is_made) for is_made in (False, True))

    assert longest * max(JITTER) < draining.longest_silence()


def test_another_process_that_executes_runs_is_not_offered_to_be_drained(echo) -> None:
    echo.run()
    Chunk.objects.update(state=Chunk.State.RUNNING, worker="web-1:abcdef:1")
    (web,) = workers_at_work()
    Chunk.objects.update(worker=f"{WORKER}:abcdef:1")  # of which no pulse is left
    (killed,) = workers_at_work()

    assert [(each.state, each.may_be_drained) for each in (web, killed)] == [
        ("", False),
        ("ended", False),
    ]


@pytest.mark.usefixtures("this_worker")
def test_a_worker_that_was_shut_down_has_ended_at_once(echo) -> None:
    echo.run()
    work_off()
    Chunk.objects.update(worker=f"{WORKER}:abcdef:1")
    before = workers_at_work()[0].state

    worker_shutdown.send(sender=None)

    (ended,) = workers_at_work()
    assert (before, ended.state, ended.may_be_drained) == ("", "ended", False)


def test_a_worker_is_draining_until_it_has_finished_its_chunks(echo) -> None:
    echo.run()
    long_name = f"celery@{'a' * 60}.example.org"
    show_life(long_name)
    Chunk.objects.update(
        state=Chunk.State.RUNNING, worker=f"{long_name}:abcdef:1", started_at=from_now(-9)
    )

    told = typed("workers", "--drain", long_name)
    again = typed("workers", "--drain", long_name)
    draining_one = typed_json("workers")
    Chunk.objects.update(state=Chunk.State.FINISHED, finished_at=from_now(-1))
    drained_one = typed_json("workers")
    undrained = typed("workers", "--undrain", long_name)

    assert "takes no more chunks." in told
    assert "was drained already." in again
    assert [each["state"] for each in (*draining_one, *drained_one)] == ["draining", "drained"]
    assert "takes chunks again." in undrained
    assert typed_json("workers")[0]["state"] == ""


def test_a_name_that_no_worker_has_is_not_drained() -> None:
    show_life()

    with pytest.raises(CommandError, match=rf"has the name celery@lba-1\. Did .* '{WORKER}'\?"):
        typed("workers", "--drain", "celery@lba-1")
    assert draining.drained() == set()
    with pytest.raises(CommandError, match=r"Choose one of --drain and --undrain\."):
        typed("workers", "--drain", WORKER, "--undrain", WORKER)


def test_the_page_of_health_drains_a_worker_once_that_is_confirmed(echo, client: Client) -> None:
    echo.run()
    work_off()
    Chunk.objects.update(worker=f"{WORKER}:abcdef:1")
    show_life()
    user = User.objects.create_user("ada", is_staff=True)
    user.user_permissions.set(Permission.objects.filter(codename__in=["view_run", "pause_run"]))
    client.force_login(user)
    drain, undrain = (reverse(f"admin:autorun_health_{name}") for name in ("drain", "undrain"))

    asked = client.post(drain, {"worker": WORKER}).text
    assert workers_at_work()[0].state == ""
    drained = client.post(drain, {"worker": WORKER, "confirmed": "1"}, follow=True).text
    state = workers_at_work()[0].state
    again = client.post(drain, {"worker": WORKER, "confirmed": "1"}, follow=True).text
    undrained, twice = (client.post(undrain, {"worker": WORKER}, follow=True).text for _ in "12")
    unknown = client.post(drain, {"worker": "celery@none"}, follow=True).text

    assert f"Drain {WORKER}?" in asked
    assert (state, "</span>drained</span>" in drained) == ("drained", True)
    assert f"Worker {WORKER} was drained already." in again
    assert f"Worker {WORKER} takes chunks again." in undrained
    assert f"Worker {WORKER} was not drained." in twice
    assert "No running worker with this name can be drained." in unknown
    entries = LogEntry.objects.order_by("pk").values_list("object_repr", "change_message")
    assert [name for name, _ in entries] == [WORKER] * 2
    assert entries[0][1] == f"Worker {WORKER} finishes the chunks it has and takes no others."


def test_a_name_that_the_database_refuses_is_that_of_no_drained_worker(admin_client) -> None:
    page = admin_client.post(
        reverse("admin:autorun_health_undrain"), {"worker": "a\0b"}, follow=True
    )

    assert "Worker ab was not drained" in page.text
