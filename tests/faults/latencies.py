"""The cost of a save with and without autorun, while the broker is in trouble.

    python -m tests.faults.latencies --database postgres --rounds 15

Rounds with and without autorun take turns, so that a busy machine is unjust to both alike. No
worker is there: what it does is not the save's doing. It prints medians over the rounds.
"""

import argparse
import logging
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

THREADS = 4
TROUBLES = ("none", "refuses", "silent", "stopped", "out of memory")


class Latencies(NamedTuple):
    """Seconds of single saves, by whether autorun heard of them."""

    plain: list[float]
    heard: list[float]

    def p99s(self) -> tuple[float, float]:
        """The 99th percentiles, in milliseconds."""
        plain, heard = (statistics.quantiles(found, n=100)[98] * 1_000 for found in self)
        return plain, heard


def measure(number: int, *, pause: float = 0.0) -> Latencies:
    """So many saves without autorun and as many with it, in an order left to chance."""
    found = Latencies([], [])
    for is_heard in random.sample([False, True], 2):
        if is_heard:
            found.heard.extend(saves(number, pause=pause))
        else:
            with without_autorun():
                found.plain.extend(saves(number, pause=pause))
    return found


def saves(number: int, *, threads: int = THREADS, pause: float = 0.0) -> list[float]:
    """Seconds that each of so many saves took, in threads with connections of their own."""
    from django.db import connection, connections

    from tests.faultlab.models import Specimen

    found: list[float] = []
    all_connected = threading.Barrier(threads)

    def save_some() -> None:
        seconds = []
        try:
            connection.ensure_connection()
            all_connected.wait(30)
            for n in range(number // threads):
                time.sleep(pause)
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
    from django.db.models.signals import post_save

    from autorun.triggers import on_save

    post_save.disconnect(dispatch_uid="autorun.on_save")
    try:
        yield
    finally:
        on_save.connect()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="postgres", choices=["sqlite", "postgres", "mariadb"])
    parser.add_argument("--broker", action="append", choices=["rabbitmq", "redis"])
    parser.add_argument("--trouble", action="append", choices=TROUBLES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--saves", type=int, default=1_500, help="a round")
    parser.add_argument("--pause", type=float, default=0.0, help="milliseconds before each save")
    arguments = parser.parse_args()
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "settings.test",
        "AUTORUN_TEST_DATABASE": arguments.database,
    }
    import django

    django.setup()
    logging.disable(logging.CRITICAL)  # a terminal is slower than a broker
    with a_database(), tempfile.TemporaryDirectory(prefix="autorun-saves-") as directory:
        print(
            f"| {arguments.database} and | trouble | without autorun | with |\n|---|---|---:|---:|"
        )
        for broker in arguments.broker or ("rabbitmq", "redis"):
            for trouble in arguments.trouble or TROUBLES:
                plain, heard = under(broker, trouble, Path(directory), arguments)
                print(f"| {broker} | {trouble} | {plain:.1f} | {heard:.1f} |", flush=True)
    return 0


def under(broker: str, trouble: str, directory: Path, arguments: argparse.Namespace) -> list[float]:
    """Medians of the 99th percentiles without autorun and with it, in milliseconds."""
    from autorun.dispatch import publishing
    from autorun.models import SpilledTrigger
    from autorun.triggers import delivery
    from tests.faults import driver
    from tests.faults.servers import broker_at

    found = []
    with (
        driver.lab(directory, broker, SimpleNamespace()) as lab,
        broker_in(trouble, broker, directory) as port,
        broker_at(lab, port),
    ):
        publishing._courier._drop()
        for _ in range(arguments.rounds):
            found.append(measure(arguments.saves, pause=arguments.pause / 1_000).p99s())
            delivery.wait_until_idle(10)
            SpilledTrigger.objects.all().delete()
    return [statistics.median(each) for each in zip(*found, strict=True)]


@contextmanager
def broker_in(trouble: str, name: str, directory: Path) -> Iterator[int]:
    """The port of a broker that is in trouble, before anything is connected to it."""
    from tests.faults.servers import OWN, free_port

    if trouble == "refuses":
        yield free_port()
    elif trouble == "silent":
        with socket.create_server(("127.0.0.1", 0), backlog=512) as server:
            yield server.getsockname()[1]
    else:
        with (
            tempfile.TemporaryDirectory(dir=directory) as its_own,
            OWN[name](Path(its_own)) as server,
        ):
            if trouble == "stopped":
                server.freeze()
            elif trouble == "out of memory":
                server.fill()
            yield server.port


@contextmanager
def a_database() -> Iterator[None]:
    from django.db import connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    setup_test_environment()
    connection.creation.create_test_db(verbosity=0)
    try:
        yield
    finally:
        connection.close()
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)
        teardown_test_environment()


if __name__ == "__main__":
    sys.exit(main())
