"""A database that is away, locked, or does not say whether it has committed."""

import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from django.core.management import call_command
from django.db import OperationalError, connection, connections
from django.db.models import F

from autorun.exceptions import LeaseLost
from autorun.execution import work
from autorun.execution.results import Result, Tally, record
from autorun.models import Batch, Chunk, Failure, Run
from autorun.planning import batches, windows
from autorun.planning.named import plan_keys
from autorun.state.clock import from_now
from autorun.state.exception_text import ExceptionText
from autorun.triggers import delivery
from autorun.upkeep import rounds
from tests.crashes import AWAY
from tests.engine import declare, installed, leased, work_off
from tests.faultlab import steps
from tests.faults.driver import Lab
from tests.faults.proxy import Proxy
from tests.faults.servers import PostgreSQL, Replica
from tests.library.models import Document

FAILURE = ExceptionText("ValueError", "no", "")


@pytest.mark.faults(12)
@pytest.mark.django_db(transaction=True)
def test_results_whose_commit_got_no_answer_are_recorded_once(monkeypatch, settings):
    """Until they are written again, others have done what went on, and rows have changed."""
    settings.AUTORUN = {"TIMEOUT": None}
    documents = [Document.objects.create(title=f"title {n}") for n in range(4)]
    runner = declare(BATCH_SIZE=4)
    with installed(runner):
        lease = leased(runner)
        runs = list(Run.objects.order_by("pk"))
        results = [
            Result(runs[0].pk, Run.Status.SUCCEEDED, 1, runs[0].fingerprint, '"here"'),
            *(
                Result(run.pk, Run.Status.PENDING, 1, run.fingerprint, failure=FAILURE)
                for run in runs[1:]
            ),
        ]

        def meanwhile() -> None:
            Document.objects.filter(pk=documents[0].pk).update(title="changed")
            plan_keys(runner(), [documents[0].pk])
            work_off()

        lose_answer_to_commit(monkeypatch, meanwhile)
        recorded = record(lease, results, Tally(), size=1, is_last=True)

        assert (recorded.succeeded, recorded.moved) == (1, 3)
        progress = runner().progress()
        assert progress.succeeded == progress.total == 4
    assert Run.objects.filter(is_current=True, status=Run.Status.SUCCEEDED).count() == 4
    assert Failure.objects.count() == 3
    assert not Chunk.objects.annotate(left=Chunk.RUNS_LEFT).exclude(left=0).exists()


def lose_answer_to_commit(monkeypatch, meanwhile) -> None:
    """The next commit succeeds; before its connection breaks, `meanwhile` happens elsewhere."""
    commit = connection.commit
    lost = []

    def commit_and_break() -> None:
        commit()
        if not lost:
            lost.append(True)
            elsewhere = threading.Thread(target=in_own_connection, args=[meanwhile])
            elsewhere.start()
            elsewhere.join()
            connection.close()
            raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(connection, "commit", commit_and_break)


def in_own_connection(work) -> None:
    try:
        work()
    finally:
        connections.close_all()


@pytest.mark.faults(12)
@pytest.mark.django_db
def test_a_chunk_that_was_rescued_in_between_takes_no_results():
    Document.objects.create(title="title")
    runner = declare()
    with installed(runner):
        lease = leased(runner)
        run = Run.objects.get()
        result = Result(run.pk, Run.Status.SUCCEEDED, 1, run.fingerprint, "1")
        record(lease, [result], Tally(), size=1, is_last=False)
        Chunk.objects.update(token=F("token") + 1)

        with pytest.raises(LeaseLost):
            record(lease, [result], Tally(), size=1, is_last=False)


@contextmanager
def proxied_database(lab: Lab) -> Iterator[Proxy]:
    """A proxy between the database and the processes that the lab starts."""
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no connections to break.")
    settings = connection.settings_dict
    name = {"postgresql": "AUTORUN_POSTGRES_PORT", "mysql": "AUTORUN_MARIADB_PORT"}
    with Proxy(int(settings["PORT"]), host=settings["HOST"]) as proxy:
        lab.environment[name[connection.vendor]] = str(proxy.port)
        try:
            yield proxy
        finally:
            lab.stop()


@contextmanager
def database_on(server: PostgreSQL | Proxy, lab: Lab) -> Iterator[None]:
    """The lab's database is one on `server`, for this process and those that the lab starts."""
    settings = connection.settings_dict
    before = dict(settings)
    connection.close()
    host = getattr(server, "address", "127.0.0.1")
    settings.update(HOST=host, PORT=str(server.port), USER="postgres", PASSWORD="")
    for name in ("HOST", "PORT", "USER", "PASSWORD"):
        lab.environment[f"AUTORUN_POSTGRES_{name}"] = settings[name]
    try:
        with connection._nodb_cursor() as cursor:
            cursor.execute(f'CREATE DATABASE "{settings["NAME"]}"')
        call_command("migrate", run_syncdb=True, verbosity=0)
        yield
    finally:
        lab.stop()
        connection.close()
        settings.update(before)


@pytest.mark.faults(12)
@pytest.mark.slow
def test_a_worker_whose_connections_break_during_a_body_records_it_on_new_ones(lab: Lab):
    with proxied_database(lab) as proxy:
        lab.start_worker()
        lab.save(3, does="gate")
        lab.until(lambda: lab.ledger.executions())

        proxy.cut()
        lab.open_gate()
        lab.until_done(3)

        lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(12)
@pytest.mark.slow
def test_a_database_that_is_away_for_seconds_costs_time_only(lab: Lab):
    with proxied_database(lab) as proxy:
        lab.start_worker(concurrency=2)
        lab.write(40, does="sleep:0.1")
        lab.runner.run()
        lab.until(lambda: lab.ledger.executions())

        for _ in range(2):
            proxy.refuse()
            time.sleep(2)
            proxy.resume()
            time.sleep(1)
        lab.until_done(40, seconds=120)

        lab.check()
    assert Run.objects.filter(status=Run.Status.FAILED).count() == 0


@pytest.mark.faults(35)
@pytest.mark.slow
def test_a_database_that_is_away_for_half_a_lease_loses_no_result(lab: Lab):
    lab.settings.update(LEASE=40, HEARTBEAT=2)
    with proxied_database(lab) as proxy:
        lab.start_worker(concurrency=2)
        lab.write(4, does="gate")
        lab.runner.run()
        lab.until(lambda: lab.ledger.executions())

        proxy.refuse()
        lab.open_gate()
        time.sleep(20)
        proxy.resume()
        lab.until_done(4)

        lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(35)
@pytest.mark.django_db(transaction=True)
def test_runs_whose_rows_cannot_be_read_for_a_moment_use_no_attempt(monkeypatch):
    def away(*args: object, **options: object) -> None:
        raise AWAY

    Document.objects.create(title="title")
    runner = declare(MAX_ATTEMPTS=1)
    with installed(runner):
        runner().run()
        with monkeypatch.context() as patch:
            patch.setattr(work, "load", away)
            work_off()
        Chunk.objects.exclude(not_before=None).update(not_before=from_now(-1))
        rounds.upkeep(in_any_case=True)
        work_off()

        assert runner().progress().succeeded == 1
    assert Run.objects.get().attempts == 1


@pytest.mark.faults(12)
@pytest.mark.slow
@pytest.mark.skipif(connection.vendor != "postgresql", reason="starts a PostgreSQL of its own")
def test_a_server_that_is_restarted_twice_costs_time_only(lab: Lab):
    with PostgreSQL() as server, database_on(server, lab):
        lab.start_worker(concurrency=2)
        lab.write(40, does="sleep:0.1")
        lab.runner.run()
        for rows in (5, 20):
            lab.until(lambda done=rows: len(lab.ledger.executions()) > done)
            server.restart()
            connection.close()
        lab.save(5, value="live")
        lab.until_done(45, seconds=120)

        lab.check()
        assert not Run.objects.filter(status=Run.Status.FAILED).exists()


@pytest.mark.faults(53, 54, 55)
@pytest.mark.slow
@pytest.mark.skipif(connection.vendor != "postgresql", reason="starts a PostgreSQL of its own")
@pytest.mark.parametrize("bodies", [1, 60])
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 100}])
def test_a_replica_that_lacks_the_last_commits_takes_over(lab: Lab, bodies: int):
    """From before the first start, or in the middle; sweeps find what no process remembers.

    The chunks outlast what the replica lacks: one that had ended by then would cost an attempt.
    """
    with (
        PostgreSQL() as primary,
        Proxy(primary.port) as proxy,
        database_on(proxy, lab),
        Replica(primary) as replica,
    ):
        lab.start_worker(concurrency=2)
        lab.write(200, does="sleep:0.1")
        if bodies > 1:
            lab.runner.run()
            lab.until(lambda: len(lab.ledger.executions()) >= bodies)
        replica.fall_behind()
        if bodies == 1:
            lab.runner.run()
        lab.save(5, value="live")
        delivery.wait_until_idle()
        more = len(lab.ledger.executions()) + 50
        lab.until(lambda: len(lab.ledger.executions()) >= more)

        primary.kill()
        proxy.target = ("127.0.0.1", replica.port)
        proxy.cut()
        replica.promote()
        connection.close()
        lab.runner.run()
        lab.until_done(200)

        lab.check(zombies=True)
        assert not Failure.objects.exists()
        lab.stop()
        connection.close()  # before the servers end


@pytest.mark.faults(12)
@pytest.mark.slow
def test_a_commit_without_an_answer_is_not_repeated(lab: Lab):
    with proxied_database(lab) as proxy:
        lab.start_worker()
        lab.write(3, does="gate")
        lab.runner.run()
        lab.until(lambda: lab.ledger.executions())

        proxy.lose_answer_to(b"COMMIT")
        lab.open_gate()
        lab.until_done(3)

        assert proxy.cuts == 1
        lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(12)
@pytest.mark.slow
def test_sessions_that_the_server_ends_are_opened_again(lab: Lab):
    if connection.vendor != "postgresql":
        pytest.skip("Of the databases, PostgreSQL is asked to.")
    lab.start_worker(concurrency=2)
    lab.write(60, does="sleep:0.05")
    lab.runner.backfill()
    for _ in range(3):
        number = len(lab.ledger.executions())
        lab.until(lambda number=number: len(lab.ledger.executions()) > number + 5)
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
    lab.until_done(60)

    lab.check()


@pytest.mark.faults(13)
@pytest.mark.slow
def test_a_database_that_another_writer_holds_for_seconds_fails_no_save(lab: Lab):
    if connection.vendor != "sqlite":
        pytest.skip("Only SQLite locks as a whole.")
    lab.start_worker(concurrency=2)
    lab.save(4, does="gate")
    lab.until(lambda: lab.ledger.executions())

    with closing(sqlite3.connect(connection.settings_dict["NAME"])) as other:
        other.isolation_level = None
        other.execute("BEGIN EXCLUSIVE")
        lab.open_gate()
        saving = threading.Thread(target=in_own_connection, args=[lambda: lab.save(2, value="w")])
        saving.start()
        time.sleep(4)  # as long as a lease
        other.execute("ROLLBACK")
    saving.join(30)
    lab.until_done(6)

    lab.check()
    assert Run.objects.count() == 6


@pytest.mark.faults(12, 18)
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_committed", [True, False])
def test_a_backfill_whose_connection_breaks_goes_on_where_it_was(
    monkeypatch, set_constants, is_committed
):
    set_constants(windows, DATABASE_WINDOW=3)
    Document.objects.bulk_create(Document(title=f"title {n}") for n in range(10))
    advance = batches.advance
    commit = connection.commit
    booked = []

    def count_and_advance(batch, outcome, **kwargs):
        advance(batch, outcome, **kwargs)
        booked.append(outcome)

    def break_at_second_window() -> None:
        if len(booked) == 2:
            booked.append(None)
            if is_committed:
                commit()
            connection.close()
            raise OperationalError(2013, "Lost connection to server during query")
        commit()

    monkeypatch.setattr(batches, "advance", count_and_advance)
    monkeypatch.setattr(connection, "commit", break_at_second_window)
    runner = declare()
    with installed(runner):
        with pytest.raises(OperationalError):
            runner().run()
        batch = Batch.objects.get()
        assert (batch.state, batch.planned) == (Batch.State.RUNNING, 6 if is_committed else 3)
        steps.heal()

        batch.refresh_from_db()
        assert (batch.state, batch.planned) == (Batch.State.FINISHED, 10)
        assert runner().progress().succeeded == runner().progress().total == 10


@pytest.mark.faults(56)
@pytest.mark.django_db
@pytest.mark.skipif(connection.vendor != "mysql", reason="PostgreSQL's driver has options for it")
def test_sockets_of_mariadb_give_a_silent_server_up():
    connection.ensure_connection()
    opened = connection.connection._sock

    assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 25_000
    assert opened.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 10
