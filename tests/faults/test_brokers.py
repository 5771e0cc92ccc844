"""A broker that refuses, is silent, forgets, repeats, or is full; and what saves feel of it."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from django.db import connection

from autorun.dispatch.publishing import Message, publish
from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.triggers import delivery
from settings import celery_app
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab
from tests.faults.latencies import Latencies, measure
from tests.faults.servers import OWN, RabbitMQ, broker_at, proxied_broker

pytestmark = [pytest.mark.slow]

SAVES = 1_500
ROUNDS = 5


@contextmanager
def troubled(lab: Lab, kind: str, directory: Path) -> Iterator[tuple[Callable, Callable]]:
    """How to begin the trouble with the broker, and how to end it."""
    if lab.broker == "embedded":
        if kind != "mute":
            pytest.skip("A file neither refuses nor is stopped.")
        url = celery_app.conf.broker_url
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"), timeout=30)) as file:
            file.isolation_level = None
            yield (lambda: file.execute("BEGIN EXCLUSIVE")), (lambda: file.execute("ROLLBACK"))
    elif kind in ("stopped", "full"):
        with OWN[lab.broker](directory) as server, broker_at(lab, server.port):
            if kind == "stopped":
                yield server.freeze, server.thaw
            else:
                yield server.fill, server.empty
    else:
        with proxied_broker(lab) as proxy:
            yield getattr(proxy, kind), proxy.resume


def open_files() -> list[str]:
    """Return the paths and socket numbers that the kernel lists as open in this process."""
    found = []
    for each in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # what this very function has open
            found.append(str(each.readlink()))
    return found


def open_connections() -> int:
    """How many connections to the database this process has."""
    files = open_files()
    if connection.vendor == "sqlite":
        return files.count(str(connection.settings_dict["NAME"]))
    port = f":{int(connection.settings_dict['PORT']):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[2].endswith(port) and f"socket:[{row[9]}]" in files for row in rows)


@pytest.mark.faults(3)
@pytest.mark.parametrize("kind", ["refuse", "mute", "stopped", "full"])
def test_saves_feel_nothing_of_a_broker_in_trouble(
    lab_of_each_broker: Lab, tmp_path: Path, kind: str, capsys
):
    lab = lab_of_each_broker
    with troubled(lab, kind, tmp_path) as (begin, end):
        worker = lab.start_worker(concurrency=2)
        lab.save(1)
        lab.until_done(1)
        measure(200)  # warm
        lab.runner.run()
        lab.until_done()
        delivery.wait_until_idle()
        threads, files, sessions = threading.active_count(), len(open_files()), open_connections()
        last = Specimen.objects.latest("pk").pk

        begin()
        # What a worker does meanwhile is not the save's doing. (With SQLite it may hold a lock.)
        if connection.vendor != "sqlite":
            worker.freeze()
        found = Latencies([], [])
        for _ in range(ROUNDS):
            for one, more in zip(found, measure(SAVES // ROUNDS), strict=True):
                one.extend(more)
        worker.thaw()
        delivery.wait_until_idle(10)
        assert threading.active_count() <= threads + 1, "I5"
        end()
        began = time.monotonic()
        spilled = SpilledTrigger.objects.all()
        lab.until(lambda: not spilled.exists())
        back = time.monotonic() - began
        lab.until(lambda: Run.objects.filter(object_id__gt=last).count() == len(found.heard))
        lab.runner.run()
        lab.until_done()

        plain, heard = found.p99s()
        with capsys.disabled():
            print(
                f"\n{lab.broker} {kind}: p99 without autorun {plain:.1f} ms, with {heard:.1f} ms, "
                f"max {max(found.heard) * 1_000:.1f} ms, planned {back:.1f} s after the end"
            )
        assert len(found.heard) == SAVES, "I4"
        assert heard <= 2 * plain + 10, "I4"
        assert max(found.heard) < max(1.0, 2 * max(found.plain)), "I4"
        lab.check()
    assert open_connections() <= sessions, "I5"
    lab.until(lambda: len(open_files()) <= files + 2, seconds=10)


@pytest.mark.faults(4)
@pytest.mark.parametrize("options", [{"BATCH_SIZE": 5}])
def test_a_broker_that_forgets_everything_mid_backfill_costs_time_only(
    lab_of_each_broker: Lab, tmp_path: Path
):
    lab = lab_of_each_broker
    lab.settings["WINDOW"] = 100
    rows = 300

    def forget_and_go_on(forget: Callable[[], object]) -> None:
        lab.write(rows, does="sleep:0.01")
        lab.start_worker(concurrency=2)
        lab.runner.backfill()
        lab.until(lambda: lab.runner.progress().succeeded > 20)
        forget()
        lab.save(3, value="live")
        # A worker that had fetched messages ends with an AttributeError of kombu's (5.7) when it
        # loses Redis.
        lab.until_done(rows + 3, seconds=120, supervised=lab.broker == "redis")
        lab.check()
        assert set(lab.ledger.times().values()) == {1}
        assert Batch.objects.get().state == Batch.State.FINISHED

    if lab.broker == "embedded":
        with celery_app.connection_for_write() as connection:
            channel = connection.default_channel
            queue = celery_app.conf.task_default_queue
            forget_and_go_on(lambda: channel.queue_purge(queue))
        return
    with OWN[lab.broker](tmp_path) as server, broker_at(lab, server.port):
        forget_and_go_on(server.lose_everything)


def is_empty(channel: Any) -> bool:
    """Whether nothing is left in the lab's queue; to Redis an empty queue is none."""
    try:
        declared = channel.queue_declare(celery_app.conf.task_default_queue, passive=True)
    except ChannelError:
        return True
    return not declared.message_count


@pytest.mark.faults(5)
def test_messages_that_come_five_times_and_very_late_run_once(lab_of_each_broker: Lab):
    lab = lab_of_each_broker
    lab.write(3, does="sleep:0.2")
    lab.runner.run()
    chunk_ids = list(Chunk.objects.values_list("pk", flat=True))
    again = [Message("autorun.execute", (pk,)) for pk in chunk_ids] * 5
    publish(again)

    lab.start_worker(concurrency=4)
    lab.until_done(3)
    publish([*again, Message("autorun.execute", (1,))])
    publish([Message("autorun.plan", ("faultlab.Specimen", [row.pk])) for row in lab.save(1)] * 5)
    lab.until_done(4)
    with celery_app.connection_for_write() as connection:
        lab.until(lambda: is_empty(connection.default_channel))

    lab.check()
    assert set(lab.ledger.times().values()) == {1}
    assert set(Run.objects.values_list("attempts", flat=True)) == {1}


@pytest.mark.faults(6)
def test_a_message_that_the_broker_delivers_again_while_its_body_runs_does_nothing(
    lab_of_each_broker: Lab, tmp_path: Path
):
    """Redis after its visibility timeout. What RabbitMQ does then is what a broken channel does."""
    lab = lab_of_each_broker
    lab.environment["AUTORUN_TEST_VISIBILITY"] = "1"
    lab.start_worker(concurrency=2)
    lab.save(1, does="sleep:6")
    lab.until(lambda: lab.ledger.executions())
    publish([Message("autorun.execute", (Chunk.objects.get().pk,))] * 3)
    lab.start_worker(concurrency=2)
    lab.until_done(1)

    lab.check()
    assert lab.ledger.times().most_common(1)[0][1] == 1


@pytest.mark.faults(6)
@pytest.mark.timeout(300)
def test_a_rabbitmq_that_closes_channels_over_what_waits_for_its_turn_costs_time_only(
    lab_of_each_broker: Lab, tmp_path: Path
):
    """Its consumer timeout is shorter than a body, and messages wait unacknowledged behind it."""
    lab = lab_of_each_broker
    if lab.broker != "rabbitmq":
        pytest.skip("Only RabbitMQ has a consumer timeout.")
    impatient = RabbitMQ(tmp_path, consumer_timeout=1_000, channel_tick_interval=1_000)
    with impatient as server, broker_at(lab, server.port):
        lab.start_worker(concurrency=1)
        lab.write(4, does="sleep:3")
        lab.runner.run()
        lab.until_done(4, seconds=200, supervised=True)

        assert b"Timeout value used: 1000 ms" in server.log.read_bytes()
        lab.check()


@pytest.mark.faults(3)
def test_saved_rows_that_wait_in_the_database_are_planned_when_the_broker_is_back(
    lab_of_each_broker: Lab,
):
    lab = lab_of_each_broker
    if lab.broker == "embedded":
        pytest.skip("A file does not refuse.")
    with proxied_broker(lab) as proxy:
        proxy.refuse()
        lab.save(20)
        assert delivery.wait_until_idle(10)
        assert SpilledTrigger.objects.exists()
        proxy.resume()
        lab.start_worker()

        assert lab.until_done(20) < 30
        lab.check()
    assert not SpilledTrigger.objects.exists()
