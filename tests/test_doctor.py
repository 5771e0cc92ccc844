"""Each thing the doctor looks at, when it is well and when it is not."""

import datetime as dt
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone, translation
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from autorun.dispatch import publishing
from autorun.models import Batch, Chunk, Node, Pulse, SpilledTrigger
from autorun.observe import doctor
from autorun.observe.doctor import (
    Finding,
    backlog,
    database,
    examine,
    messaging,
    system_checks,
)
from autorun.triggers import on_schedule
from settings import celery_app
from tests import celery_settings
from tests.engine import declare, installed
from tests.library.models import Country
from tests.waiting import until

pytestmark = pytest.mark.django_db

LONG_AGO = dt.timedelta(days=2)


@pytest.fixture
def configured() -> Iterator[Any]:
    """A function that changes the Celery app's configuration for the test."""
    with celery_settings.configured():
        yield celery_settings.configure


def levels(findings: Any) -> dict[str, str]:
    return {each.subject: each.level for each in findings}


def only(findings: Any, level: str) -> Finding:
    """The one finding there is, of that level; it says what to do."""
    (found,) = findings
    assert found.level == level, found
    assert bool(found.hint) == (level != "ok")
    return found


def planned(**chunk: Any) -> Any:
    """A runner with one planned run, whose chunk has these values."""
    runner = declare()
    with installed(runner):
        from tests.library.models import Document

        Document.objects.create(title="a")
        runner().run()
    Chunk.objects.update(**chunk)
    return runner


def test_nothing_answers_and_all_is_examined_all_the_same(configured):
    configured(
        broker_url="amqp://guest:secret@127.0.0.1:1//",
        broker_write_url="amqp://guest:secret@127.0.0.1:1//",
    )
    findings = examine()

    found = levels(findings)
    assert found["broker"] == "error"
    assert found["upkeep"] == "error"
    assert found["database"] == "ok"
    assert not [each for each in findings if "could not be examined" in each.message]
    assert "secret" not in "".join(each.message for each in findings)
    assert all(each.hint for each in findings if each.level != "ok")


@pytest.mark.parametrize("scheme", ["amqp", "redis", "sqlite"])
def test_a_broker_url_that_cannot_be_parsed_shows_no_password(configured, scheme):
    url = f"{scheme}://guest:sec/ret@localhost/1"
    configured(broker_url=url, broker_write_url=url)

    findings = examine()

    assert levels(findings)["broker"] == "error"
    shown = "".join(f"{each.message}{each.hint}" for each in findings)
    assert "sec/" not in shown
    assert "'sec'" not in shown


def test_a_broker_that_accepts_and_says_nothing(configured, set_constants):
    set_constants(messaging, DEADLINE=0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"amqp://guest@127.0.0.1:{server.getsockname()[1]}//"
        configured(broker_url=url, broker_write_url=url)
        began = time.monotonic()

        found = only(messaging.examine_broker(), "error")

    assert time.monotonic() - began < 5
    assert found.subject == "broker"


def test_a_broker_whose_client_is_not_installed_says_what_to_install(configured, monkeypatch):
    configured(broker_url="redis://127.0.0.1:1/0", broker_write_url="redis://127.0.0.1:1/0")
    monkeypatch.setattr("kombu.transport.redis.redis", None)

    found = only(messaging.examine_broker(), "error")

    assert "client library cannot be used" in found.message
    assert "django-autorun[redis]" in found.hint


@pytest.fixture(params=["amqp", "redis"])
def silent_broker(request: pytest.FixtureRequest, configured: Any) -> Iterator[socket.socket]:
    """A broker that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"{request.param}://127.0.0.1:{server.getsockname()[1]}//"
        configured(broker_url=url, broker_write_url=url)
        yield server


def test_asking_a_silent_broker_leaves_no_thread_and_no_socket(silent_broker, set_constants):
    set_constants(publishing, TIMEOUT=0.5)

    only(messaging.examine_broker(), "error")

    until(lambda: "autorun-in-thread" not in {each.name for each in threading.enumerate()})
    connection, _ = silent_broker.accept()
    with connection:
        connection.settimeout(5)
        while connection.recv(1_000):  # the greeting, and then the end
            pass


def test_pages_that_ask_at_once_share_one_examination(monkeypatch, set_constants):
    monkeypatch.setattr(doctor, "_latest", {})
    set_constants(doctor, FRESH=60.0, FIRST=(examine_slowly := Slow(),), THEN=())

    with ThreadPoolExecutor(8) as pool:
        findings = list(pool.map(lambda _: doctor.examine_for_page(), range(8)))

    assert examine_slowly.calls == 1
    assert findings == [findings[0]] * 8


def test_pages_show_findings_in_their_own_language(monkeypatch, set_constants):
    monkeypatch.setattr(doctor, "_latest", {})
    set_constants(doctor, FRESH=60.0, FIRST=(), THEN=(backlog.examine_leases,))

    found = []
    for language in ("en", "de", "en"):
        with translation.override(language):
            found += [(each.subject, each.message) for each in doctor.examine_for_page()]

    english, german = ("leases", "None overdue."), ("Fristen", "Nichts überfällig.")
    assert found == [english, german, english]


def test_a_page_does_not_wait_for_an_examination_that_hangs(set_constants):
    set_constants(doctor, PATIENCE=0.01, FIRST=(examine_slowly := Slow(),), THEN=())
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(doctor.examine_for_page)
        assert examine_slowly.has_begun.wait(10)

        found = only(doctor.examine_for_page(), "error")

        examine_slowly.may_end.set()
        assert found.subject == "doctor"
        assert [each.level for each in other.result()] == ["ok"]


class Slow:
    """An examination that lasts until `may_end`, or a moment if nobody sets that."""

    def __init__(self) -> None:
        self.calls = 0
        self.has_begun, self.may_end = threading.Event(), threading.Event()

    def __call__(self) -> Iterator[Finding]:
        self.calls += 1
        self.has_begun.set()
        self.may_end.wait(0.5)
        yield Finding("ok", "It is well.")


@pytest.mark.slow
def test_a_broker_without_workers(embedded_broker):
    with installed(declare(QUEUE="slow")):
        found = levels(messaging.examine_broker())

    default = celery_app.conf.task_default_queue
    assert found["broker"] == "ok"
    assert (found["queue slow"], found[f"queue {default}"]) == ("error", "error")


@pytest.fixture
def routed() -> Iterator[None]:
    """Celery, which keeps its routes, sends autorun's messages to a queue of their own."""
    with celery_settings.configured(task_routes={"autorun.*": {"queue": "routed"}}):
        _route_anew()
        yield
    _route_anew()


def _route_anew() -> None:
    celery_app.amqp.flush_routes()
    celery_app.amqp.router = celery_app.amqp.Router()


@pytest.mark.slow
def test_queues_that_celery_routes_to(embedded_broker, routed):
    with installed(declare(NAME="Slow", QUEUE="slow"), declare()):
        found = levels(messaging.examine_broker())

    assert {name for name in found if name.startswith("queue ")} == {"queue slow", "queue routed"}


def test_a_route_names_the_queue_of_what_waits(routed):
    published_at = timezone.now() - LONG_AGO
    planned(created_at=published_at, published_at=published_at)

    assert "in queue 'routed' for" in only(backlog.examine_queued(), "warning").message


def test_workers_without_remote_control_cannot_be_asked(embedded_broker, configured):
    configured(worker_enable_remote_control=False)
    with installed(declare()):
        findings = list(messaging.examine_broker())

    assert levels(findings) == {"broker": "ok", "workers": "ok"}
    assert "cannot be asked" in findings[1].message


@pytest.mark.slow
@pytest.mark.django_db(transaction=True)
def test_a_worker_that_listens(broker, start_worker):
    start_worker("--concurrency", "1")
    from autorun.observe.doctor.messaging import examine_broker

    with installed(declare(QUEUE="slow")):
        found = levels(examine_broker())

    assert found[f"queue {celery_app.conf.task_default_queue}"] == "ok"
    assert found["queue slow"] == "error"


@pytest.mark.parametrize(
    ("patience", "timeout", "level"),
    [(3600, 600, "ok"), (300, 600, "warning"), (3600, None, "warning"), (None, 4000, "warning")],
)
def test_visibility_timeout(configured, patience, timeout, level):
    options = {} if patience is None else {"visibility_timeout": patience}
    configured(broker_write_url="redis://127.0.0.1/0", broker_transport_options=options)
    with installed(declare(TIMEOUT=timeout)):
        only(messaging.examine_visibility_timeout(), level)


def test_visibility_timeout_is_no_matter_of_rabbitmq(configured):
    configured(broker_write_url="amqp://127.0.0.1//")

    assert list(messaging.examine_visibility_timeout()) == []


def test_eager_mode(configured):
    assert list(system_checks.examine_eagerness()) == []
    configured(task_always_eager=True)
    assert "CELERY_TASK_ALWAYS_EAGER" in only(system_checks.examine_eagerness(), "error").hint


def test_system_checks_are_told():
    with installed(declare(MAX_ATTEMPTS=0)):
        errors = [each for each in system_checks.examine_checks() if each.level == "error"]

    assert [each.subject for each in errors] == ["check autorun.E014"], errors
    assert "MAX_ATTEMPTS is 0" in errors[0].message


def test_pickle_is_told():
    with override_settings(CELERY_ACCEPT_CONTENT=["pickle"]):
        assert "check autorun.W201" in levels(system_checks.examine_checks())


def test_migrations_that_are_missing():
    only(database.examine_database(), "ok")
    with connection.cursor() as cursor:
        cursor.execute("DELETE FROM django_migrations WHERE app = 'autorun'")

    found = only(database.examine_database(), "error")

    assert "autorun.0001_initial" in found.message
    assert found.hint == "Run `manage.py migrate`."


def test_a_clock_that_is_wrong(monkeypatch):
    only(database.examine_clock(), "ok")
    for skew, level in ((5, "warning"), (-90, "error")):
        now = timezone.now() + dt.timedelta(seconds=skew)
        with monkeypatch.context() as patch:
            patch.setattr(database.timezone, "now", lambda now=now: now)
            found = only(database.examine_clock(), level)
        assert ("ahead" if skew > 0 else "behind") in found.message


def test_schedules_that_are_not_synced():
    assert "autorun sync" in only(messaging.examine_schedules(), "warning").hint
    on_schedule.sync()
    only(messaging.examine_schedules(), "ok")


def test_beat():
    assert "celery -A settings beat" in only(messaging.examine_beat(), "warning").hint
    on_schedule.sync()
    entries = PeriodicTask.objects.filter(task=on_schedule.SWEEP)
    entries.update(last_run_at=timezone.now() - dt.timedelta(seconds=20))
    only(messaging.examine_beat(), "ok")
    entries.update(last_run_at=timezone.now() - LONG_AGO)
    assert "2 d" in only(messaging.examine_beat(), "error").message


def test_a_beat_whose_next_sweep_is_not_due_yet_may_be_silent():
    on_schedule.sync()
    monthly = IntervalSchedule.objects.create(every=30, period="days")
    PeriodicTask.objects.update(
        last_run_at=timezone.now() - LONG_AGO, interval=monthly, crontab=None
    )

    only(messaging.examine_beat(), "ok")


def test_upkeep():
    assert "It never ran" in only(messaging.examine_upkeep(), "error").message
    pulse = Pulse.objects.create(name="upkeep", beat_at=timezone.now())
    only(messaging.examine_upkeep(), "ok")
    Pulse.objects.filter(pk=pulse.pk).update(beat_at=timezone.now() - LONG_AGO)
    only(messaging.examine_upkeep(), "error")


def test_leases():
    only(backlog.examine_leases(), "ok")
    planned(state=Chunk.State.RUNNING, expires_at=timezone.now() - LONG_AGO, worker="w@lab:3")
    assert "w@lab:3" in only(backlog.examine_leases(), "error").message


def test_chunks_that_wait_for_a_worker():
    planned()
    assert list(backlog.examine_queued()) == []
    Chunk.objects.update(created_at=timezone.now() - LONG_AGO, queue="slow")
    assert "queue 'slow'" in only(backlog.examine_queued(), "warning").message


def test_parked_chunks():
    runner = planned(state=Chunk.State.PARKED, reason="No such analysis.")
    found = only(backlog.examine_held_up(), "error")
    assert "No such analysis." in found.message
    assert f"manage.py autorun cancel {runner.get_label()}" in found.hint


def test_runs_and_saved_rows_that_an_error_holds_up():
    planned(state=Chunk.State.PARKED, reason="no such column", not_before=timezone.now())
    SpilledTrigger.objects.create(
        model_label="library.Document", runner="tests.EchoRunner", keys=[1], reason="no such table"
    )
    runs, rows = backlog.examine_held_up()
    assert "1 run parked" in runs.message
    assert "no such column. Next try at" in runs.message
    assert "tests.EchoRunner: saved rows not planned" in rows.message
    assert "manage.py migrate" in runs.hint


def test_spilled_triggers():
    SpilledTrigger.objects.create(model_label="library.Document", keys=[1])
    only(backlog.examine_spilled(), "ok")
    SpilledTrigger.objects.update(created_at=timezone.now() - LONG_AGO)
    assert "no runner here" in only(backlog.examine_spilled(), "warning").message
    with installed(declare()):
        assert "Fix the broker" in only(backlog.examine_spilled(), "warning").hint


@pytest.mark.skipif(connection.vendor != "sqlite", reason="Other databases refuse such a key.")
def test_keys_that_cannot_be_stored_are_named_also_by_status(capsys):
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO library_country VALUES (CAST(X'62FF' AS TEXT), 'x')")
    with installed(declare(DATA_MODEL=Country, INPUT_FIELDS=("name",))):
        found = only(backlog.examine_keys(), "warning")
        call_command("autorun", "status")

        sentence = "tests.EchoRunner: rows are skipped because their keys cannot be stored or read"
        assert found.message == f"{sentence}, such as b'b\\xff'."
        assert found.bare == f"{sentence}."
        assert found.message in " ".join(capsys.readouterr().out.split())


def test_paused_nodes():
    runner = planned()
    Node.objects.update(paused_at=timezone.now())
    with installed(runner):
        found = only(backlog.examine_paused(), "warning")
    assert f"autorun resume {runner.get_label()}" in found.hint


def test_batches_that_broke_off():
    planned()
    Batch.objects.update(state=Batch.State.FAILED, reason="OSError: x", finished_at=timezone.now())
    assert "OSError: x" in only(backlog.examine_batches(), "warning").message


def test_an_examination_that_breaks_off_is_a_finding(monkeypatch, configured):
    configured(task_always_eager=True)  # nobody is asked
    monkeypatch.setattr(backlog.SpilledTrigger, "objects", None)

    found = [each for each in examine() if each.subject == "saved rows not yet planned"]

    assert "could not be examined: AttributeError" in only(found, "error").message


def test_keys_that_cannot_be_read_are_an_error_and_wrong_declarations_are_for_the_checks(
    monkeypatch,
):
    def read(runner: Any) -> str:
        raise OperationalError("no such table: library_country")

    with installed(declare(DATA_MODEL="Country"), declare(DATA_MODEL=Country, NAME="KeyRunner")):
        assert [each.level for each in backlog.examine_keys()] == []
        monkeypatch.setattr(backlog, "unnameable", read)
        found = [each for each in backlog.examine_keys() if "KeyRunner" in each.message]

    told = only(found, "error")
    bare = "tests.KeyRunner: It could not be examined: OperationalError"
    assert told.message == f"{bare}: no such table: library_country"
    assert told.bare == f"{bare}."
