"""Random faults against a running project, for as long as one likes, and a report of what it bore.

    python -m tests.faults.soak --minutes 20 --seed 7 --database postgres --broker rabbitmq

Live saves, silent writes and backfills go on all the time. One seed makes one sequence of faults.
The invariants are checked throughout, by what the bodies did and by autorun's tables; it ends by
itself, with exit code 1 where one did not hold.
"""

import argparse
import datetime as dt
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sample_app.processes import termination_as_interrupt

if TYPE_CHECKING:
    from tests.faults.driver import Lab, Process
    from tests.faults.proxy import Proxy
    from tests.faults.servers import Redis

#: Whatever message was lost, a sweep comes by: here, often.
OPTIONS = {"MAX_ATTEMPTS": 6, "RETRY_BACKOFF": 0.2, "BATCH_SIZE": 10, "SCHEDULE": 15}
#: A body that takes so many rows, and what it returns is landed on them.
OPTIONS |= {"CALL": 4, "OUTPUT_FIELDS": {"value": "landed"}}
SETTINGS = {"LEASE": 4, "HEARTBEAT": 1, "UPKEEP_INTERVAL": 0.5, "TIMEOUT": 20, "WINDOW": 200}
BACKLOG = 2_000
SAVES_A_SECOND = 8
WORKERS = 2
SLOW = 15.0  # seconds
PATIENCE = 60.0  # seconds without an attempt that ends, after which all must be done


@dataclass
class Report:
    """The events of a soak."""

    database: str
    broker: str
    seed: int
    minutes: float
    faults: Counter[str] = field(default_factory=Counter)
    recoveries: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    saves: int = 0
    slowest_save: float = 0.0
    failed_saves: int = 0
    checks: int = 0
    repeated_messages: int = 0
    numbers: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"### {self.database} and {self.broker}, seed {self.seed}, {self.minutes:g} minutes",
            "",
            "| fault | times | median recovery (s) | slowest (s) |",
            "|---|---:|---:|---:|",
        ]
        for kind, times in sorted(self.faults.items()):
            seconds = sorted(self.recoveries.get(kind, []))
            middle = f"{seconds[len(seconds) // 2]:.1f}" if seconds else ""
            slowest = f"{seconds[-1]:.1f}" if seconds else ""
            lines.append(f"| {kind} | {times} | {middle} | {slowest} |")
        lines += [f"| all | {self.faults.total()} | | {self.slowest:.1f} |", ""]
        lines += [f"- {name}: {value}" for name, value in self.numbers.items()]
        return "\n".join(lines)

    @property
    def slowest(self) -> float:
        return max((max(each) for each in self.recoveries.values() if each), default=0.0)


class Soak:
    """A lab that is given no peace."""

    def __init__(
        self, lab: "Lab", report: Report, proxies: dict[str, "Proxy"], server: "Redis | None"
    ) -> None:
        self.lab = lab
        self.report = report
        self.proxies = proxies
        self.server = server
        self.random = random.Random(report.seed)
        self.workers: list[Process] = []
        self.beat = lab.start_beat()
        self.suspended: dict[Process, float] = {}
        self.zombies: set[int] = set()
        self.probes: dict[int, tuple[str, dt.datetime]] = {}
        self.number = 0
        self.backfill: Process | None = None

    def run(self, minutes: float) -> None:
        end = time.monotonic() + 60 * minutes
        self.write_backlog()
        next_fault = next_look = time.monotonic() + 5
        while time.monotonic() < end:
            self.keep_workers()
            self.save()
            now = time.monotonic()
            if now >= next_fault:
                self.strike()
                next_fault = now + self.random.uniform(2, 7)
            if now >= next_look:
                self.look()
                next_look = now + 5
            time.sleep(1 / SAVES_A_SECOND)

    # What a project does

    def save(self) -> int:
        from tests.faultlab.models import Specimen

        self.number += 1
        does = self.random.choices(
            ["sleep:0.01", "sleep:0.3", "raise_once", "kill_once", "raise"], [90, 5, 3, 0.3, 1]
        )[0]
        began = time.perf_counter()
        try:
            row = Specimen.objects.create(value=f"saved {self.number}", does=does)
        except Exception as error:  # noqa: BLE001
            self.report.failed_saves += 1
            print(f"a save failed: {error!r}", file=sys.stderr)
            return 0
        self.report.saves += 1
        self.report.slowest_save = max(self.report.slowest_save, time.perf_counter() - began)
        return row.pk

    def write_backlog(self) -> None:
        self.lab.write(BACKLOG, does="sleep:0.01", value=f"backlog {self.number} ")
        self.start_backfill()

    def start_backfill(self, **environment: str) -> None:
        if self.backfill is None or self.backfill.has_ended:
            self.backfill = self.lab.start(
                "backfill",
                "-c",
                "import django; django.setup()\n"
                "from autorun import registry\n"
                "registry.get('faultlab.SpecimenRunner').backfill(window=100)",
                **environment,
            )

    def keep_workers(self) -> None:
        for process, until in list(self.suspended.items()):
            if time.monotonic() >= until:
                process.thaw()
                del self.suspended[process]
        self.workers = [each for each in self.workers if not each.has_ended]
        while len(self.workers) < WORKERS:
            self.start_worker()
        if self.beat.has_ended:
            self.beat = self.lab.start_beat()

    def start_worker(self, **environment: str) -> None:
        self.workers.append(
            self.lab.start_worker(
                concurrency=2, waits=False, REMAP_SIGTERM="SIGQUIT", **environment
            )
        )

    # What befalls it

    def strike(self) -> None:
        from django.utils import timezone

        from tests.faultlab.models import Specimen

        kinds = self.kinds()
        kind = self.random.choice(sorted(kinds))
        self.number += 1
        probe = Specimen.objects.create(value=f"probe {self.number}")
        # Saved before the fault begins: what it takes to be done is what the fault costs.
        self.probes[probe.pk] = (kind, timezone.now())
        kinds[kind]()
        self.report.faults[kind] += 1

    def kinds(self) -> dict[str, Callable[[], None]]:
        found = {
            "pool process killed": self.kill_child,
            "worker killed with its machine": self.kill_worker,
            "worker frozen past its lease": self.freeze_worker,
            "worker told to end": self.end_worker,
            "worker killed at a crash point": self.arm_worker,
            "beat killed": lambda: self.beat.kill(),
            "second beat": self.second_beat,
            "messages repeated": self.repeat_messages,
            "broker forgot everything": self.forget,
            "backfill killed while it plans": self.kill_backfill,
            "batch paused and resumed": self.pause_and_resume,
            "rows written silently, then a sweep": self.write_silently,
            "rows changed and deleted": self.change_and_delete,
        }
        if "broker" in self.proxies:
            found |= {
                "broker refused": lambda: self.trouble("broker", "refuse", 3),
                "broker silent": lambda: self.trouble("broker", "mute", 4),
                "broker's connections cut": lambda: self.proxies["broker"].cut(),
            }
        if "database" in self.proxies:
            found |= {
                "database's connections cut": lambda: self.proxies["database"].cut(),
                "database away": lambda: self.trouble("database", "refuse", 2),
                "commit without an answer": lambda: self.proxies["database"].lose_answer_to(
                    b"COMMIT"
                ),
            }
        if self.server is not None:
            found |= {"broker killed": self.restart_server, "broker stopped": self.freeze_server}
        return found

    def a_worker(self) -> "Process":
        return self.random.choice(self.workers)

    def kill_child(self) -> None:
        children = self.a_worker().children()
        if children:
            os.kill(self.random.choice(children), signal.SIGKILL)

    def kill_worker(self) -> None:
        self.a_worker().kill()

    def freeze_worker(self) -> None:
        worker = self.a_worker()
        self.zombies.update(worker.children())
        worker.freeze()
        self.suspended[worker] = time.monotonic() + 6

    def end_worker(self) -> None:
        worker = self.a_worker()
        if worker not in self.suspended:
            worker.signal(signal.SIGTERM)
            self.workers.remove(worker)
            self.start_worker()

    def arm_worker(self) -> None:
        from autorun.state.probes import POINTS
        from tests.crashes import ENVIRONMENT

        self.kill_worker()
        point = self.random.choice(sorted(POINTS))
        self.start_worker(**{ENVIRONMENT: f"{point}:{self.random.randint(1, 5)}"})

    def second_beat(self) -> None:
        if sum(each.name.startswith("beat") for each in self.lab.processes) < 3:
            self.lab.start_beat()

    def repeat_messages(self) -> None:
        from autorun.dispatch.publishing import Message, publish
        from autorun.exceptions import BrokerUnavailable
        from autorun.models import Chunk

        chunk_ids = list(Chunk.objects.order_by("-pk").values_list("pk", flat=True)[:20])
        messages = [Message("autorun.execute", (pk,)) for pk in chunk_ids] * 3
        messages += [Message("autorun.sweep", (self.lab.runner.label,))] * 3
        try:
            publish(messages)
        except BrokerUnavailable:
            return
        self.report.repeated_messages += len(messages)

    def forget(self) -> None:
        from settings import celery_app

        if self.server is not None:
            self.server.client().flushall()
            return
        url = os.environ["SOAK_BROKER"]
        from kombu import Connection

        with Connection(url, transport_options={}) as connection:
            channel = connection.default_channel
            channel.queue_purge(celery_app.conf.task_default_queue)

    def kill_backfill(self) -> None:
        from tests.crashes import ENVIRONMENT

        self.lab.write(200, does="sleep:0.01", value=f"more {self.number} ")
        points = ["plan.inserted", "plan.booked", "plan.committed", "backfill.unfinished"]
        self.start_backfill(**{ENVIRONMENT: self.random.choice(points)})

    def pause_and_resume(self) -> None:
        from autorun.models import Batch
        from autorun.planning import batches

        for batch in Batch.objects.filter(state=Batch.State.RUNNING)[:3]:
            batches.pause(batch)
            time.sleep(0.2)
            batches.resume(batch)

    def write_silently(self) -> None:
        from autorun.dispatch.publishing import Message, publish
        from autorun.exceptions import BrokerUnavailable

        self.lab.write(50, value=f"silent {self.number} ")
        try:
            publish([Message("autorun.sweep", (self.lab.runner.label,))])
        except BrokerUnavailable:
            return

    def change_and_delete(self) -> None:
        from tests.faultlab.models import Specimen

        rows = list(Specimen.objects.order_by("-pk")[:40])
        for row in self.random.sample(rows, min(len(rows), 10)):
            if row.pk in self.probes:
                continue
            if self.random.random() < 0.3:
                row.delete()
            else:
                row.value += "+"
                row.save()

    def trouble(self, name: str, kind: str, seconds: float) -> None:
        """Live saves go on meanwhile."""
        proxy = self.proxies[name]
        getattr(proxy, kind)()
        self.go_on_for(seconds)
        proxy.resume()

    def restart_server(self) -> None:
        assert self.server is not None
        self.server.kill()
        self.go_on_for(2)
        self.server.start()

    def freeze_server(self) -> None:
        assert self.server is not None
        self.server.freeze()
        self.go_on_for(4)
        self.server.thaw()

    def go_on_for(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.save()
            time.sleep(1 / SAVES_A_SECOND)

    # What must hold

    def look(self) -> None:
        """Counts are exact at any time; probes tell how long a fault is felt."""
        from autorun.models import Run

        self.lab.check_counts()
        self.report.checks += 1
        done = Run.objects.filter(
            object_id__in=self.probes, is_current=True, status=Run.Status.SUCCEEDED
        )
        for pk, finished_at in list(done.values_list("object_id", "finished_at")):
            kind, saved_at = self.probes.pop(pk)
            seconds = (finished_at - saved_at).total_seconds()
            self.report.recoveries[kind].append(seconds)
            if seconds > SLOW:
                print(f"Row {pk} took {seconds:.1f} s: {kind}.", flush=True)

    def finish(self) -> None:
        """The faults have ended: all must be done soon."""
        for proxy in self.proxies.values():
            proxy.resume()
        for process in list(self.suspended):
            process.thaw()
        self.suspended.clear()
        for process in self.lab.processes:
            if process.name.startswith("worker") and not process.has_ended:
                process.kill()
        self.workers.clear()
        self.keep_workers()
        began = time.monotonic()
        self.lab.runner.run(log_level=0)
        self.lab.until_done(seconds=PATIENCE)
        self.report.numbers["Seconds until all was done after the last fault"] = round(
            time.monotonic() - began, 1
        )
        self.look()
        self.lab.check(zombies=True)
        overlaps = [pair for pair in self.lab.ledger.overlaps() if pair[0].pid not in self.zombies]
        assert not overlaps, f"I2: {overlaps[:3]}"
        self.check_landed()

    def check_landed(self) -> None:
        """What a row's current run returned is on the row."""
        from django.db.models import F

        from autorun.models import Run
        from tests.faultlab.models import Specimen

        succeeded = Run.objects.current().succeeded().values("object_id")
        assert not Specimen.objects.filter(pk__in=succeeded).exclude(landed=F("value")).exists()


def fill_in(report: Report, lab: "Lab", soak: Soak) -> None:
    from autorun.models import Batch, Chunk, Failure, Run
    from tests.faultlab.models import Specimen

    logs = [process.log.read_text(errors="replace") for process in lab.processes]
    times = lab.ledger.times()
    lost = Failure.objects.filter(exception_class__endswith="WorkerLost")
    report.numbers |= {
        "Rows": Specimen.objects.count(),
        "Runs": Run.objects.count(),
        "Chunks": Chunk.objects.count(),
        "Batches": Batch.objects.count(),
        "Bodies started": times.total(),
        "Live saves": report.saves,
        "Live saves that failed": report.failed_saves,
        "Slowest live save (ms)": round(report.slowest_save * 1_000),
        "Chunks rescued": sum(log.count("stopped answering;") for log in logs),
        "Attempts that ended with their worker": lost.count(),
        "Messages repeated on purpose": report.repeated_messages,
        "Writes of zombies refused": sum(
            log.count("Results not yet recorded are lost") for log in logs
        ),
        "Runs failed, no attempts left": Run.objects.filter(
            status=Run.Status.FAILED, is_current=True
        ).count(),
        "Checks of the counts while the soak ran": report.checks,
        "Processes started": len(lab.processes),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=2)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    parser.add_argument("--database", default="sqlite", choices=["sqlite", "postgres", "mariadb"])
    parser.add_argument("--broker", default=None, choices=["embedded", "rabbitmq", "redis"])
    arguments = parser.parse_args()
    broker = arguments.broker or ("embedded" if arguments.database == "sqlite" else "rabbitmq")
    os.environ |= {
        "DJANGO_SETTINGS_MODULE": "settings.test",
        "AUTORUN_TEST_DATABASE": arguments.database,
        "AUTORUN_TEST_BROKER": broker,
        "AUTORUN_TEST_SETTINGS": json.dumps(SETTINGS),
    }
    os.nice(5)
    import django

    django.setup()
    report = Report(arguments.database, broker, arguments.seed, arguments.minutes)
    print(f"Seed {report.seed}.", flush=True)
    # A shell that starts it in the background has it ignore Ctrl-C; SIGTERM ends it in any case.
    with (
        termination_as_interrupt(),
        tempfile.TemporaryDirectory(prefix="autorun-soak-") as directory,
    ):
        held = soak(report, Path(directory))
    print(report)
    return 0 if held else 1


def soak(report: Report, directory: Path) -> bool:
    """Run it; whether everything held."""
    from django.db import connection
    from django.test.utils import setup_test_environment, teardown_test_environment

    setup_test_environment()
    connection.creation.create_test_db(verbosity=0)
    try:
        with ExitStack() as stack:
            lab, proxies, server = prepare(stack, report, directory)
            made = Soak(lab, report, proxies, server)
            try:
                made.run(report.minutes)
                made.finish()
            except BaseException as error:
                print(f"It did not hold: {error}", file=sys.stderr)
                fill_in(report, lab, made)
                if isinstance(error, KeyboardInterrupt):
                    raise
                return False
            fill_in(report, lab, made)
            return True
    finally:
        connection.close()
        connection.creation.destroy_test_db(connection.settings_dict["NAME"], verbosity=0)
        teardown_test_environment()


def prepare(
    stack: ExitStack, report: Report, directory: Path
) -> "tuple[Lab, dict[str, Proxy], Redis | None]":
    from types import SimpleNamespace

    from tests import conftest, services
    from tests.faults import driver
    from tests.faults.proxy import Proxy
    from tests.faults.servers import PORTS, Redis, broker_at

    conftest._broker_in_use = report.broker
    holder = SimpleNamespace()
    lab = stack.enter_context(driver.lab(directory, report.broker, holder, OPTIONS))
    lab.settings.update(SETTINGS)
    proxies: dict[str, Proxy] = {}
    server = None
    os.environ["SOAK_BROKER"] = services.BROKERS[report.broker]().url
    if report.broker == "redis":
        server = stack.enter_context(Redis(directory))
        proxies["broker"] = stack.enter_context(Proxy(server.port))
    elif report.broker == "rabbitmq":
        proxies["broker"] = stack.enter_context(Proxy(PORTS["rabbitmq"]))
    if "broker" in proxies:
        stack.enter_context(broker_at(lab, proxies["broker"].port))
    variables = {"postgres": "AUTORUN_POSTGRES_PORT", "mariadb": "AUTORUN_MARIADB_PORT"}
    if name := variables.get(report.database):
        port = os.environ.get(name, {"postgres": "5432", "mariadb": "3306"}[report.database])
        proxies["database"] = stack.enter_context(Proxy(int(port)))
        lab.environment[name] = str(proxies["database"].port)
    return lab, proxies, server


if __name__ == "__main__":
    sys.exit(main())
