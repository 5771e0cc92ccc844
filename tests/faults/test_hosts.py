"""Several hosts, with a private PostgreSQL and Redis, that vanish: `make test-hosts`."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

from autorun import tasks
from autorun.models import Run
from tests.faults.driver import Lab
from tests.faults.hosts import Host, Network
from tests.faults.servers import PostgreSQL, Redis, broker_at
from tests.faults.test_database import database_on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(connection.vendor != "postgresql", reason="starts a PostgreSQL of its own"),
    pytest.mark.parametrize("lab", ["redis"], indirect=True),
    pytest.mark.parametrize("options", [{"MAX_ATTEMPTS": 10}]),
]


@dataclass
class Site:
    """A database, a broker and two workers, each on a host of its own."""

    database: Host
    broker: Host
    workers: list[Host]
    redis: Redis


@contextmanager
def site(lab: Lab, directory: Path) -> Iterator[Site]:
    with Network() as network:
        made = Site(network.host(), network.host(), [network.host(), network.host()], None)
        made.redis = Redis(directory, host=made.broker)
        with (
            PostgreSQL(made.database) as server,
            made.redis as redis,
            database_on(server, lab),
            broker_at(lab, redis.port, host=redis.address),
        ):
            for host in made.workers:
                lab.start_worker(concurrency=2, within=host.within)
            yield made


def seconds_until_it_fails(opened: Any, statement: str) -> float:
    began = time.monotonic()
    with pytest.raises(OperationalError), opened.cursor() as cursor:
        cursor.execute(statement)
    return time.monotonic() - began


@pytest.mark.faults(56)
def test_a_process_notices_within_half_a_minute_that_the_databases_host_has_vanished(lab: Lab):
    """Whether it waits for an answer or has something to say."""
    with Network() as network:
        host = network.host()
        with PostgreSQL(host) as server, database_on(server, lab):
            waiting, saying = connection.copy(), connection.copy()
            seconds: list[float] = []

            def wait() -> None:
                seconds.append(seconds_until_it_fails(waiting, "SELECT pg_sleep(300)"))

            with closing(waiting), closing(saying):
                waiting.inc_thread_sharing()
                waiting.connect()
                saying.connect()
                thread = threading.Thread(target=wait)
                thread.start()
                time.sleep(1)
                host.vanish()
                seconds.append(seconds_until_it_fails(saying, "SELECT 1"))
                thread.join(120)

                assert max(seconds) < 40
                assert len(seconds) == 2
            host.come_back()


@pytest.mark.faults(56)
@pytest.mark.parametrize("seconds", [3, 10, 60])
def test_cuts_between_hosts_cost_time_only(lab: Lab, tmp_path: Path, seconds: int):
    with site(lab, tmp_path) as made:
        lab.write(200, does="sleep:0.1")
        lab.runner.run()
        for host in (made.database, made.broker, made.workers[0]):
            lab.until(lambda: lab.ledger.executions())
            host.vanish()
            time.sleep(seconds)
            host.come_back()
            connection.close()
            lab.save(20, value=host.name)
            more = len(lab.ledger.executions()) + 1
            lab.until(lambda more=more: len(lab.ledger.executions()) >= more, seconds=60)
        # Redis may hand a message to a connection that ended while its host was away.
        tasks.sweep(lab.runner.get_label())
        lab.until_done(260, seconds=180, supervised=True)

        lab.check(zombies=True)
        assert not Run.objects.failed().exists()


@pytest.mark.faults(56)
def test_a_broker_that_is_wiped_while_its_host_is_away_costs_time_only(lab: Lab, tmp_path: Path):
    with site(lab, tmp_path) as made:
        lab.write(100, does="sleep:0.1")
        lab.runner.run()
        lab.until(lambda: lab.ledger.executions())

        made.broker.vanish()
        made.redis.kill()
        lab.save(5, value="live")
        made.broker.come_back()
        made.redis.start()
        lab.until_done(105, seconds=180)

        lab.check(zombies=True)
        assert not Run.objects.failed().exists()


@pytest.mark.faults(56)
def test_a_network_that_loses_a_third_of_its_packets_costs_time_only(lab: Lab, tmp_path: Path):
    with site(lab, tmp_path) as made:
        for host in (made.database, made.broker):
            host.lose(30)
        lab.write(50, does="sleep:0.1")
        lab.runner.run()
        lab.until_done(50, seconds=300)

        lab.check(zombies=True)
        assert not Run.objects.failed().exists()
