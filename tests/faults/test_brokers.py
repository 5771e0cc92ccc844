"""A broker that refuses, is silent, forgets, repeats, or is full; and what saves feel of it."""

import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from amqp.exceptions import ChannelError
from django.db import connections
from django.db.models.signals import post_save

from autorun.models import Batch, Chunk, Run, SpilledTrigger
from autorun.publishing import Message, publish
from autorun.triggers import on_save, publisher
from settings import celery_app
from tests.faultlab.models import Specimen
from tests.faults.driver import Lab
from tests.faults.servers import Redis, broker_at, proxied_broker

pytestmark = [pytest.mark.slow]

SAVES = 1_500
THREADS = 4


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
        if lab.broker != "redis":
            pytest.skip("Only a Redis of the test's own can be stopped or filled.")
        with Redis(directory) as server, broker_at(lab, server.port):
            if kind == "stopped":
                yield server.freeze, server.thaw
            else:
                memory = server.client().config_set
                yield (
                    lambda: memory("maxmemory", "1"),
                    lambda: memory("maxmemory", "0"),
                )
    else:
        with proxied_broker(lab) as proxy:
            yield getattr(proxy, kind), proxy.resume


def latencies(number: int, threads: int) -> list[float]:
    """Seconds that each of so many saves took, in threads with connections of their own."""
    found: list[float] = []

    def save_some() -> None:
        seconds = []
        try:
            for n in range(number // threads):
                began = time.perf_counter()
                Specimen.objects.create(value=f"s{n}")
                seconds.append(time.perf_counter() - began)
        finally:
            connections.close_all()
        found.extend(seconds)

    workers = [threading.Thread(target=save_some) for _ in range(threads)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()
    return found


@contextmanager
def without_autorun() -> Iterator[None]:
    post_save.disconnect(dispatch_uid="autorun.on_save")
    try:
        yield
    finally:
        on_save.connect()


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.faults(3)
@pytest.mark.parametrize("kind", ["refuse", "mute", "stopped", "full"])
def test_saves_feel_nothing_of_a_broker_in_trouble(
    lab_of_each_broker: Lab, tmp_path: Path, kind: str, capsys
):
    lab = lab_of_each_broker
    with troubled(lab, kind, tmp_path) as (begin, end):
        lab.start_worker(concurrency=2)
        lab.save(1)
        lab.until_done(1)
        with without_autorun():
            latencies(200, THREADS)  # warm
            plain = latencies(SAVES, THREADS)
        threads, files = threading.active_count(), open_files()

        begin()
        saved = latencies(SAVES, THREADS)
        publisher.wait_until_idle(10)
        assert threading.active_count() <= threads + 1, "I5"
        end()
        began = time.monotonic()
        mine = Specimen.objects.order_by("-pk").values_list("pk", flat=True)[:SAVES]
        lab.until(lambda: not lab.runner.pending(Specimen.objects.filter(pk__in=list(mine))))
        back = time.monotonic() - began
        lab.runner.run()
        lab.until_done()

        p99 = {
            name: statistics.quantiles(found, n=100)[98] * 1_000
            for name, found in (("plain", plain), ("troubled", saved))
        }
        with capsys.disabled():
            print(
                f"\n{lab.broker} {kind}: p99 in ms {p99}, max {max(saved) * 1000:.1f} ms, "
                f"planned {back:.1f} s after the end"
            )
        assert len(saved) == SAVES, "I4"
        assert p99["troubled"] <= 2 * p99["plain"] + 10, "I4"
        assert max(saved) < max(1.0, 2 * max(plain)), "I4"
        lab.check()
    lab.until(lambda: open_files() <= files + 2, seconds=10)


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
        lab.until_done(rows + 3, seconds=120)
        lab.check()
        assert set(lab.ledger.times().values()) == {1}
        assert Batch.objects.get().state == Batch.State.FINISHED

    if lab.broker == "redis":
        with Redis(tmp_path) as server, broker_at(lab, server.port):

            def crash() -> None:
                server.kill()
                server.start()

            forget_and_go_on(crash)
    else:
        with celery_app.connection_for_write() as connection:
            channel = connection.default_channel
            queue = celery_app.conf.task_default_queue
            forget_and_go_on(lambda: channel.queue_purge(queue))


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
        assert publisher.wait_until_idle(10)
        assert SpilledTrigger.objects.exists()
        proxy.resume()
        lab.start_worker()

        assert lab.until_done(20) < 30
        lab.check()
    assert not SpilledTrigger.objects.exists()
